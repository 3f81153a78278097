"""A demo's page and result: what was made so far, what is to come, and first of all whether something was cut."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from unified.files.atomic import write_text
from unified.files.images import read_image
from unified.files.jsonl import read_lines
from unified.files.records import HARDWARE
from unified.files.results import code_version, versions
from unified.image_tokenizer.configuration import VQConfig
from unified.image_tokenizer.scales import normalize_patch_nums
from unified.reports.demo import AFTER, BEFORE, Demo, progress_of
from unified.reports.demo_scores import NAMES, ceilings, change, results, rows, scored
from unified.reports.demo_transcript import RECORD, DemoTranscript
from unified.reports.page import Drawing, Group, ModelPage, Notice, Score
from unified.scenes.glyphs import CLASSES, NEW_OBJECTS
from unified.training.log_history import read_logs

PAGE, RESULT = "index.html", "result.json"
REFRESH = 20  # seconds
STRIPS = 4  # of the new and as many of the known prompts, whose images are shown scale by scale
PAIRED = "Each pair has one prompt and one seed."
SCORE_NOTE = (
    "Shares of right images ± standard error. New objects: the nearest of all reference images is the one that was "
    "asked for (eval/nearest_object.py). Known objects: combinations that no training image shows, by GenEval's rules "
    "and the Scenes detector (eval/geneval.py). True images went through the image tokenizer, as drawn ones come out "
    "of it: nobody can draw better."
)


def write(demo: Demo) -> None:
    """Write the page and the result as they are now."""
    write_text(demo.out / PAGE, page(demo).html())
    write_text(demo.out / RESULT, json.dumps(result(demo), indent=1) + "\n")


def page(demo: Demo) -> ModelPage:
    """All that was made so far."""
    found = transcripts(demo)
    shown = training_images(demo)
    table, headlines = scores(demo)
    args, drawn = demo.args, groups(demo, found)
    grids = normalize_patch_nums(VQConfig.from_pretrained(args.vq).patch_nums)
    newest = list(found.values())[-1].drawn if found else ()
    strips = [(f"{one.prompt} (seed {one.seed})", one.scales) for one in newest]
    count = len(args.new_prompts)
    return ModelPage(
        title=title(demo),
        refresh=REFRESH if demo.steps.to_come and not demo.steps.stopped else 0,
        summary=summary(demo, len(shown)),
        notices=notices(demo),
        numbers=headlines,
        shown=shown[: len(NEW_OBJECTS)],
        groups=drawn,
        strips=[*strips[:count][:STRIPS], *strips[count:][:STRIPS]],
        scales=", ".join(f"{height}x{width}" for height, width in grids),
        chats=[(when if len(found) > 1 else "", one.chat) for when, one in found.items()],
        scores=table,
        versions_scored=versions_scored(demo),
        score_notes=[*losses(demo), SCORE_NOTE],
        log=read_logs(demo.trained) if args.runs else None,
        facts=facts(demo, len(shown)),
        steps=demo.steps.record(),
    )


def transcripts(demo: Demo) -> dict[str, DemoTranscript]:
    """What was asked and drawn, before and after."""
    there = [when for when in (BEFORE, AFTER) if (demo.out / when / RECORD).is_file()]
    return {when: DemoTranscript.read(demo.out / when) for when in there}


def groups(demo: Demo, found: dict[str, DemoTranscript]) -> list[Group]:
    """The drawings: of new objects, and of known ones."""
    if not found:
        return []
    names = [when if len(found) > 1 else "" for when in found]
    together = zip(*(one.drawn for one in found.values()), strict=True)
    drawings = [
        Drawing(
            f"{same[0].prompt} (seed {same[0].seed})",
            [(n, one.scales[-1]) for n, one in zip(names, same, strict=True)],
        )
        for same in together
    ]
    sides, note = (", before and after", PAIRED) if len(found) > 1 else ("", "")
    count = len(demo.args.new_prompts)
    known = "Known objects" if demo.args.start is not None else "Drawn from prompts"
    return [Group(f"New objects{sides}", drawings[:count], note), Group(f"{known}{sides}", drawings[count:], note)]


def training_images(demo: Demo) -> list[tuple[str, Image.Image]]:
    """Caption and image of all new objects in training, those in their own colours first."""
    folder = demo.out / "objects"
    if not (folder / "metadata.jsonl").is_file():
        return []
    records = [record for _, record in read_lines(folder / "metadata.jsonl")]
    files = [folder / record["file_name"] for record in records]
    return [(record["text"][0], read_image(file, str(file))) for record, file in zip(records, files, strict=True)]


def versions_scored(demo: Demo) -> list[str]:
    """Before and after, where all that is measured was."""
    found = [results(demo, what).keys() for what in scored(demo)]
    return [when for when in (BEFORE, AFTER) if found and all(when in one for one in found)]


def scores(demo: Demo) -> tuple[list[Score], list[Score]]:
    """All rows of the table, and its headlines."""
    names, table, headlines = versions_scored(demo), [], []
    for what in scored(demo) if names else ():
        found = [results(demo, what)[when] for when in names]
        part = rows(NAMES[what], found, ceilings(what, found[-1]))
        table += part
        headlines.append(part[0])
    return table, headlines


def losses(demo: Demo) -> list[str]:
    """What known objects lose, pair by pair."""
    files = [demo.out / when / "known" / "results.jsonl" for when in (BEFORE, AFTER)]
    if not all(file.is_file() for file in files):
        return []
    value, stderr = change(*files)
    return [f"Known objects, after less before on the same prompts and seeds: {value:+.3f} ± {stderr or 0:.3f}."]


def seconds(demo: Demo, beginning: str) -> float:
    """Time of all steps whose names begin so, whether or not they were stopped."""
    return sum(float(entry["seconds"]) for entry in demo.steps.record() if entry["step"].startswith(beginning))


def training_seconds(demo: Demo) -> float:
    """Time of all fine-tuning, by the trainings' own clocks where a step was killed and left no record."""
    own = sum(float(progress_of(out).get("seconds", 0)) for out in demo.trained)
    return max(own, seconds(demo, "fine-tune"))


def title(demo: Demo) -> str:
    """What the page is about, as far as it has come."""
    minutes = f"{training_seconds(demo) / 60:.0f} minutes"
    if not (demo.out / AFTER / RECORD).is_file():
        return "A language model that draws" if demo.args.start is not None else "A language model learns to draw"
    if demo.args.repeat:
        return f"Fine-tuned on {len(NEW_OBJECTS)} new objects in {minutes}"
    return f"A language model that has learnt to draw in {minutes}"


def summary(demo: Demo, pictures: int) -> str:
    """One sentence for everyone."""
    if not pictures:
        return ""
    objects, after = ", ".join(NEW_OBJECTS), (demo.out / AFTER / RECORD).is_file()
    told = f"{pictures} pictures with captions of things it had never seen: {objects}."
    if not after:
        return f"A small language model draws {len(CLASSES)} kinds of objects. It is to be fine-tuned on {told}"
    minutes = training_seconds(demo) / 60
    return (
        f"A small language model could draw {len(CLASSES)} kinds of objects. Then it was fine-tuned on {told} This is "
        f"what it drew before, and after {minutes:.0f} minutes of training on this machine."
    )


def cuts(demo: Demo) -> dict[str, str]:
    """Steps that were cut short when they were run last, and by how much."""
    return {name: entry["cut"] for name, entry in demo.steps.last().items() if entry["cut"]}


def notices(demo: Demo) -> list[Notice]:
    """What a reader must know first."""
    steps, found = demo.steps, []
    for out in demo.trained:
        name, how = f"fine-tune {out.name}", progress_of(out)
        runs = steps.to_come[:1] == [name] and not steps.stopped
        if how and how["ending"] != "whole" and not runs:
            found.append(Notice(f"{name}: {how['said']}"))
    if steps.stopped:
        found.append(
            Notice(f"This demo was stopped in '{steps.stopped}' and is not finished. To go on:", steps.command)
        )
    elif steps.to_come:
        now, *later = steps.to_come
        progress = f" ({demo.progress})" if demo.progress else ""
        limit = demo.args.max_minutes
        patience = f" (at most {limit:g} minutes)" if limit is not None and demo.args.runs else ""
        left = [name + patience * name.startswith("fine-tune") for name in later]
        to_come = f" Still to come: {', '.join(left)}." if left else ""
        words = f"Not finished. Running: {now}{progress or patience * now.startswith('fine-tune')}.{to_come}"
        found.append(Notice(f"{words} This page renews itself. If nothing runs any more, go on with:", steps.command))
    return found


def facts(demo: Demo, pictures: int) -> list[str]:
    """The small print."""
    args = demo.args
    start = args.start or f"SmolLM2-135M-Instruct, its vocabulary extended by the codes of {args.vq}"
    told = []
    if pictures:
        told.append(
            f"{pictures} pictures of {', '.join(NEW_OBJECTS)}, each in its own colours and some others, and in pairs, "
            f"each in {args.repeat} conversations"
        )
    classes = ", ".join(args.classes) or f"{len(CLASSES)} classes"
    told.append(f"{args.train_scenes} Scenes ({classes}; tasks {args.tags or 'all six of GenEval'})")
    told += [f"{file}, {args.text_repeats} times" for file in args.text_files]
    last = args.seed + len(args.prompts) - 1
    lines = [f"Start: {start}."]
    if args.runs:
        limit = "" if args.max_minutes is None else f", each for at most {args.max_minutes:g} minutes"
        seen = max((entry.get("images_seen", 0.0) for entry in read_logs(demo.trained)), default=0.0)
        lines.append(f"Trained on: {'; '.join(told)}. {', '.join(args.runs)}{limit}; {seen:.0f} images seen.")
    return [
        *lines,
        *machines(demo),
        f"Drawings shown: prompts in this order, seeds {args.seed} to {last}, the same before and after, none left "
        f"out. Drawings scored: one of each prompt, seeds made of {args.seed}. All with guidance_scale "
        f"{args.guidance_scale:g} and temperature {args.temperature:g}.",
        "Glyphs: OpenMoji 17 (openmoji.org), CC BY-SA 4.0. All pictures on this page derive from them: whoever shares "
        "them names OpenMoji and keeps the licence.",
    ]


def machines(demo: Demo) -> list[str]:
    """What each training ran on."""
    found = {out.name: out / HARDWARE for out in demo.trained if (out / HARDWARE).is_file()}
    chosen = {name: json.loads(file.read_text(encoding="utf-8")) for name, file in found.items()}
    return [
        f"{name} ran on {one['machine']}: {one['device']}, {one['precision']}, {one['threads']} threads."
        for name, one in chosen.items()
    ]


def result(demo: Demo) -> dict[str, Any]:
    """What came out, for programs: first whether it is all there, what was cut, and what goes on."""
    steps = demo.steps
    complete = not (steps.to_come or steps.stopped or cuts(demo))
    found: dict[str, Any] = {"complete": complete, "cut": cuts(demo), "to_come": steps.to_come}
    found["trainings"] = {
        out.name: progress_of(out).get("said") or "whole" for out in demo.trained if progress_of(out)
    }
    found |= {"go_on": None if complete else steps.command, "start": str(demo.start)}
    found |= {"hardware": machines(demo), "minutes": round(seconds(demo, "") / 60, 2)}
    found |= {"minutes_of_training": round(training_seconds(demo) / 60, 2)}
    for what in scored(demo):
        found[what] = {when: [one["value"], one["stderr"], one["n"]] for when, one in results(demo, what).items()}
    files: Sequence[Path] = [demo.out / when / "known" / "results.jsonl" for when in (BEFORE, AFTER)]
    found["known_change"] = change(*files) if all(file.is_file() for file in files) else None
    return found | {"commit": code_version(), "versions": versions()}
