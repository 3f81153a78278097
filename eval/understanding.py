"""Understanding of Scenes pictures: POPE's questions, counting, colours, relations, captions.

    python eval/understanding.py --model out/mine --n 200 --seed 0 --out results/understanding.json
    python eval/understanding.py --model out/mine --n 200 --split heldout --out results/understanding_heldout.json
    python eval/understanding.py --model out/mine --layout tidy --classes apple dog cat cup car --out results/five.json

Each of the five parts has --n scenes of its own; existence asks four questions about each, the others one. Scenes,
questions and their order depend on --seed alone, and no seed of data_prep/render_scenes.py gives the same ones. A
training-style scene may still equal one that was trained on (a tidy single apple has one picture); scenes of
--split heldout show a colouring or a pair of classes that no training scene does. --wordings unseen asks in wordings
that are not trained on. --describe_first has the picture described and asks in the same chat, where an answer can be
found in the model's own caption; captions are asked for once. `unified.scenes.understanding` has the questions and
`unified.scenes.answer_parsing` the parsing of answers.

Answers are greedy, in words, in left-padded batches. Printed, and written to --out, is one JSON:

    value, stderr   unweighted mean of the five accuracies; existence is the mean of its three settings
    parts           accuracy (value), standard error, questions (n) and unreadable answers, which count as wrong.
                    Guessing gives existence .5, counting .25 (heldout .5), colour .1, relation .25, caption about 0
    existence       accuracy, precision, recall, f1 and yes_share for random, popular and adversarial negatives
    caption         the captions' accuracy for every task of GenEval

OUT.answers.jsonl (--out without .json) has every question, its answer, what was parsed from it and why it is wrong. A
run that was stopped goes on there, and gives the same numbers.
"""

from unified.hardware.waiting import set_wait_policy

set_wait_policy()  # before torch loads

import json
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from tqdm import tqdm

from unified.arguments.parser import check_minimum, parse, run_main
from unified.checkpoints.load_options import LoadOptions
from unified.files.results import prompts_digest, write_result
from unified.hardware.arguments import HardwareArguments
from unified.hardware.setup import products, set_up
from unified.inference.batched_answers import AnswerLog, answer, follow_up, image_question
from unified.models.modeling import UnifiedForCausalLM
from unified.models.processing import UnifiedProcessor
from unified.reports.endings import end_evaluation
from unified.scenes.rendering import CLASSES, COLOURS, check_names, draw_scene
from unified.scenes.understanding import (
    PARTS,
    WORDINGS,
    Domain,
    Question,
    ScoredAnswer,
    questions,
    score_answer,
    summary,
)


@dataclass
class UnderstandingArguments(LoadOptions):
    """Which model is asked, and what."""

    model: str = field(metadata={"help": "checkpoint, or adapter"})
    out: str = field(metadata={"help": "JSON to write, beside printing it; ends with .json"})
    n: int = field(default=200, metadata={"help": "scenes of each of the five parts"})
    seed: int = field(default=0, metadata={"help": "another seed asks about other scenes"})
    split: Literal["train", "heldout"] = field(
        default="train", metadata={"help": "heldout: only scenes with a colouring or a pair that train never shows"}
    )
    layout: Literal["free", "tidy"] = field(default="free", metadata={"help": "as the training scenes were laid out"})
    wordings: Literal["training", "unseen"] = field(default="training", metadata={"help": "words of the questions"})
    question_first: bool = field(default=False, metadata={"help": "ask before the picture and not after it"})
    describe_first: bool = field(default=False, metadata={"help": "have the picture described, then ask in that chat"})
    classes: list[str] = field(default_factory=list, metadata={"help": "object classes; empty: all 68"})
    colours: list[str] = field(default_factory=list, metadata={"help": "colours; empty: all ten"})
    batch_size: int = field(default=16, metadata={"help": "questions at once"})
    max_new_tokens: int = field(default=48, metadata={"help": "an answer is cut here; training's longest have 20"})

    def __post_init__(self) -> None:
        check_minimum(self, n=1, seed=0, batch_size=1, max_new_tokens=1)
        if Path(self.out).suffix != ".json":
            raise ValueError(f"--out {self.out} does not end with .json; the answers go beside it")
        check_names("class", self.classes, CLASSES)
        check_names("colour", self.colours, COLOURS)

    @property
    def domain(self) -> Domain:
        """The scenes that are asked about."""
        return Domain(self.split, self.layout, tuple(self.classes or CLASSES), tuple(self.colours or COLOURS))


def main() -> None:
    hardware, args = parse((HardwareArguments, UnderstandingArguments))
    set_up(hardware)
    start = time.time()
    asked = [question for part in PARTS for question in questions(part, args.n, args.seed, args.domain, args.wordings)]
    model, processor = args.load(args.model)
    config = settings(args)
    log = AnswerLog(Path(args.out).with_suffix(".answers.jsonl"), config, args.batch_size)
    with products():
        scored = ask(model, processor, asked, log, args)
    log.write(answer.record() for answer in scored)  # old answers as they are parsed today
    made = {"tokenizer": model.config.vq_fingerprint, "prompts_sha256": digest(asked), "seconds": time.time() - start}
    report(summary(scored) | made, config, args)


def settings(args: UnderstandingArguments) -> dict[str, Any]:
    """Everything the answers depend on."""
    config = {name: value for name, value in asdict(args).items() if name not in ("out", "base", "quantize")}
    return config | args.quantized() | {"weights_sha256": args.digest(args.model)}


def ask(
    model: UnifiedForCausalLM,
    processor: UnifiedProcessor,
    asked: list[Question],
    log: AnswerLog,
    args: UnderstandingArguments,
) -> list[ScoredAnswer]:
    """Answers to all questions, scored; those of the log are not asked again."""
    old = zip(asked, log.records, strict=False)
    scored = [score_answer(question, record["answer"]) for question, record in old]
    with tqdm(total=len(asked), initial=len(scored), unit="question") as bar:
        for start in range(len(scored), len(asked), args.batch_size):
            batch = asked[start : start + args.batch_size]
            answers = put(model, processor, batch, args)
            new = [score_answer(question, text) for question, text in zip(batch, answers, strict=True)]
            log.add(answer.record() for answer in new)
            scored += new
            bar.update(len(batch))
    return scored


def put(
    model: UnifiedForCausalLM, processor: UnifiedProcessor, batch: list[Question], args: UnderstandingArguments
) -> list[str]:
    """Answers to a batch; with `describe_first` all but captions are asked for after the model's own caption."""
    opening = WORDINGS[args.wordings]["caption"][0]
    later = [args.describe_first and question.part != "caption" for question in batch]
    pictures = [draw_scene(question.scene) for question in batch]
    words = [opening if behind else question.text for question, behind in zip(batch, later, strict=True)]
    queries = [image_question(*both, args.question_first) for both in zip(pictures, words, strict=True)]
    answers = answer(model, processor, queries, args.max_new_tokens)
    places = [place for place, behind in enumerate(later) if behind]
    if places:
        asked = [follow_up(queries[place], answers[place], batch[place].text) for place in places]
        for place, text in zip(places, answer(model, processor, asked, args.max_new_tokens), strict=True):
            answers[place] = text
    return answers


def digest(asked: list[Question]) -> str:
    """SHA-256 of the questions, of what their scenes show, and of the right answers."""
    return prompts_digest(json.dumps([q.scene.metadata, q.text, q.truth]) for q in asked)


def report(found: dict[str, Any], config: dict[str, Any], args: UnderstandingArguments) -> None:
    """Write and print the result, and its parts for people to stderr; `found` is named as in `write_result`."""
    found |= {"model": args.model, "seed": args.seed, "answers": str(Path(args.out).with_suffix(".answers.jsonl"))}
    result = write_result(Path(args.out), "understanding", config=config, **found)
    for name, part in found["parts"].items():
        sys.stderr.write(f"{name:10} {part['value']:.3f} of {part['n']}, {part['unreadable']} unreadable\n")
    end_evaluation(result, args.out)


if __name__ == "__main__":
    run_main(main)
