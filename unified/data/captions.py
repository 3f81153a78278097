"""Images with captions, in the forms in which people have them, as chats: an image is asked for, or described."""

import csv
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from unified.arguments.parser import check_minimum, nearest
from unified.data.mixtures import read_weights
from unified.files.atomic import write_text
from unified.files.image_sets import KINDS as IMAGE_KINDS
from unified.files.image_sets import METADATA, image_files, visible_files
from unified.files.jsonl import read_lines
from unified.image_tokenizer.image_dataset import held_out_split, image_shards

KINDS = ("draw", "describe")
REQUESTS = ("Describe the picture.", "What is in the picture?", "What do you see?", "Please write a caption.")
FILE_NAME = "file_name"


@dataclass
class CaptionArguments:
    """Arguments of convert_captions.py."""

    images: str = field(metadata={"help": "folder of pictures with captions"})
    out: str = field(metadata={"help": "JSONL for the rows, overwritten"})
    caption_column: str = field(default="text", metadata={"help": "column of metadata.jsonl or metadata.csv"})
    caption_template: str | None = field(
        default=None,
        metadata={
            "help": "caption of pictures in folders of classes, cat/1.jpg: 'a photo of a {}' with the folder's name"
        },
    )
    kinds: str = field(default="draw:0.8,describe:0.2", metadata={"help": "kinds of conversation and their weights"})
    wordings: list[str] = field(
        default_factory=lambda: ["{}", "Draw {}.", "a picture of {}"],
        metadata={"help": "how a picture is asked for; the caption takes the place of {}"},
    )
    repeat: int = field(default=1, metadata={"help": "conversations for each picture"})
    eval_images: int = field(
        default=0,
        metadata={
            "help": "pictures held out of --out: those that recipes/train_vq.py holds out of the folder with this "
            "number and seed"
        },
    )
    eval_out: str | None = field(
        default=None, metadata={"help": "JSONL for the rows of those, one of every kind a picture, overwritten"}
    )
    prompts: str | None = field(
        default=None,
        metadata={"help": "JSONL for eval/generate_images.py: their captions, and as many that are trained on"},
    )
    seed: int = field(
        default=0, metadata={"help": "what kinds, captions, wordings and held-out pictures are chosen by"}
    )

    def __post_init__(self) -> None:
        check_minimum(self, repeat=1, eval_images=0, seed=0)
        for name in ("out", "eval_out"):
            path = getattr(self, name)
            if path is not None and not path.endswith(".jsonl"):
                raise ValueError(
                    f"--{name} {path} is no .jsonl, which data_prep/encode_images.py reads; let it end so"
                )
        given = [name for name in ("eval_out", "prompts") if getattr(self, name) is not None]
        if given and not self.eval_images:
            raise ValueError(f"--{given[0]} would be empty without --eval_images, the number of pictures held out")
        if self.eval_images and not given:
            raise ValueError(f"--eval_images {self.eval_images} would be lost; give --eval_out, --prompts or both")
        if self.caption_template is not None and self.caption_template.count("{}") != 1:
            raise ValueError(
                f"--caption_template {self.caption_template!r} has not one {{}} for the class; write 'a {{}}'"
            )
        for wording in self.wordings:
            if wording.count("{}") != 1:
                raise ValueError(f"--wordings {wording!r} has not one {{}} for the caption; write 'Draw {{}}.'")


@dataclass(frozen=True)
class Captioned:
    """An image, what is written below it, and where that was read (`file:line`, or the file)."""

    path: Path
    captions: list[str]
    where: str


def write_conversations(args: CaptionArguments) -> dict[str, Any]:
    """Write the rows of a folder to `args.out` atomically; returns how many images, rows and kinds.

    Raises ValueError as `read_folder`, and for kinds that are none.
    """
    weights = dict.fromkeys(KINDS, 0.0) | read_weights("kind", args.kinds, KINDS)  # in one order for every --kinds
    folder = Path(os.path.normpath(args.images))
    pictures = read_folder(folder, args.caption_column, args.caption_template)
    held_out: list[Captioned] = []
    if args.eval_images:
        shuffled, held_out = split(folder, pictures, args.eval_images, args.seed)
        apart = {item.path for item in held_out}
        pictures = [item for item in pictures if item.path not in apart]
    rows = list(conversations(pictures, weights, args))
    write_lines(args.out, rows)
    if args.eval_out is not None:
        asked = [kind for kind, weight in weights.items() if weight]
        write_lines(args.eval_out, [first_row(kind, item, args) for item in held_out for kind in asked])
    if args.prompts is not None:
        trained = [prompt(item, args, False) for item in shuffled[: len(held_out)]]
        write_lines(args.prompts, [*(prompt(item, args, True) for item in held_out), *trained])
    made = [row["metadata"]["kind"] for row in rows]
    counts = {kind: made.count(kind) for kind in KINDS}
    more = {"held_out": len(held_out)} if held_out else {}
    return {"out": args.out, "pictures": len(pictures), **more, "rows": len(rows)} | counts


def split(folder: Path, pictures: list[Captioned], count: int, seed: int) -> tuple[list[Captioned], list[Captioned]]:
    """Images to train on, shuffled, and `count` held out, as recipes/train_vq.py chooses them among the folder's.

    Raises ValueError as `held_out_split`, and for a folder of which that reads more than these.
    """
    for shards in image_shards(folder).values():
        raise ValueError(
            f"{shards[0]} holds images that recipes/train_vq.py counts among the folder's, too, so that it would hold "
            "others out; move it elsewhere, or leave out --eval_images"
        )
    by_path, names = {item.path: item for item in pictures}, image_files(folder)
    parts = held_out_split(len(names), count, seed)
    trained, held_out = ([by_path[names[index]] for index in part.tolist()] for part in parts)
    return trained, held_out


# --- reading


def read_folder(folder: Path, column: str, template: str | None = None) -> list[Captioned]:
    """Every image of the folder, by the order of its metadata, or of the names where captions are .txt.

    With a `template` the folders that images lie in are their classes, and their names the captions.
    Raises ValueError naming file and line of whatever does not fit.
    """
    if folder.is_file() and folder.suffix in (".parquet", ".jsonl", ".json"):
        raise ValueError(f"--images {folder} is a file of rows, which data_prep/encode_images.py reads as it is")
    if not folder.is_dir():
        raise ValueError(f"--images {folder} is not a folder; give one of pictures with captions")
    files, pictures = visible_files(folder), image_files(folder)
    texts = [path for path in files if path.suffix.lower() == ".txt"]
    tables = [folder / name for name in METADATA if (folder / name).is_file()]
    if len(tables) + bool(texts) > 1:
        found = ", ".join(path.name for path in [*tables, *texts[:1]])
        raise ValueError(f"{folder} has captions in more than one form ({found}); keep one of them")
    if not pictures:
        raise ValueError(f"{folder} holds no pictures ({IMAGE_KINDS}); put them there, or give another")
    if template is not None:
        if tables or texts:
            found = ", ".join(path.name for path in [*tables, *texts[:1]])
            raise ValueError(f"{folder} has captions ({found}) beside --caption_template; keep one of them")
        return from_classes(folder, pictures, template)
    if not tables and not texts:
        raise ValueError(f"{folder} has no captions: {no_captions(folder, files, pictures)}")
    captioned = from_table(tables[0], column) if tables else from_texts(pictures, texts)
    check_all_captioned(pictures, captioned, tables[0].name if tables else "a .txt beside it")
    return captioned


def no_captions(folder: Path, files: list[Path], pictures: list[Path]) -> str:
    """What to do about a folder without captions."""
    inner = [path for path in files if path.name in METADATA]
    if inner:
        return f"{inner[0]} lies deeper; give --images {inner[0].parent}"
    if all(path.parent != folder for path in pictures):
        named = class_of(pictures[0])
        return f"are its folders classes? then give --caption_template 'a photo of a {{}}' (the first: {named!r})"
    return f"write {METADATA[0]}, {METADATA[1]}, or a .txt beside each picture"


def class_of(picture: Path) -> str:
    """The name of the folder that an image lies in, in words."""
    return " ".join(picture.parent.name.replace("_", " ").split())


def from_classes(folder: Path, pictures: list[Path], template: str) -> list[Captioned]:
    """Images in folders of classes, each with the template's caption; ValueError for one that lies in none."""
    for path in pictures:
        if path.parent == folder or not class_of(path):
            raise ValueError(f"{path} lies in no folder of a class; move it into one, or leave out --caption_template")
    return [Captioned(path, [template.replace("{}", class_of(path))], str(path)) for path in pictures]


def from_table(table: Path, column: str) -> list[Captioned]:
    """Images of a metadata.jsonl or metadata.csv, whose file names are relative to it."""
    seen: dict[Path, str] = {}
    captioned = []
    for number, record in read_lines(table) if table.suffix == ".jsonl" else csv_lines(table):
        where = f"{table}:{number}"
        for name in (FILE_NAME, column):
            if name not in record:
                remedy = " (--caption_column names the captions')" if name == column else ""
                raise ValueError(f"{where}: no column {name!r}; {nearest(name, record)}{remedy}")
        path = image_at(table, record[FILE_NAME], where)
        if path in seen:
            raise ValueError(f"{where}: {path.name} was named in {seen[path]}; write all its captions in one line")
        seen[path] = where
        captioned.append(Captioned(path, checked_captions(record[column], column, where), where))
    return captioned


def image_at(table: Path, name: Any, where: str) -> Path:
    """The file that `file_name` names."""
    if not isinstance(name, str) or not name.strip():
        raise ValueError(f"{where}: {FILE_NAME} {name!r} names no file; write the picture's path in the folder")
    path = Path(os.path.normpath(table.parent / name))
    if not path.is_file():
        raise ValueError(f"{where}: there is no picture {path}; put it there, or take the line out")
    return path


def csv_lines(table: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Records of a CSV with a header, and the number of the line each one ends on."""
    try:
        with open(table, encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, strict=True)
            for record in reader:
                if None in record or None in record.values():
                    raise ValueError(
                        f"{table}:{reader.line_num}: not {len(reader.fieldnames or ())} columns as in the first line; "
                        "put captions with a comma into double quotes"
                    )
                yield reader.line_num, record
    except csv.Error as error:
        raise ValueError(f"{table}:{reader.reader.line_num}: not CSV ({error}); mend the line") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{table}: not UTF-8 ({error.reason}); save the file as UTF-8") from None


def checked_captions(value: Any, column: str, where: str) -> list[str]:
    """One caption or a list of them, without surrounding blanks."""
    captions = value if isinstance(value, list) else [value]
    if not captions:
        raise ValueError(f"{where}: {column} is an empty list; write a caption")
    for caption in captions:
        if not isinstance(caption, str) or not caption.strip():
            raise ValueError(f"{where}: {column} {caption!r} is no caption; write some words")
    return [caption.strip() for caption in captions]


def from_texts(pictures: list[Path], texts: list[Path]) -> list[Captioned]:
    """Images with a `.txt` of the same name beside them, a caption a line."""
    stems: dict[Path, Path] = {}
    for path in pictures:
        other = stems.setdefault(path.with_suffix(""), path)
        if other != path:
            raise ValueError(f"{path} and {other.name} would share their .txt; rename one of them")
    captioned = []
    for text in texts:
        picture = stems.get(text.with_suffix(""))
        if picture is None:
            raise ValueError(f"{text}: no picture of that name ({IMAGE_KINDS}); add it, or move this")
        try:
            lines = text.read_text(encoding="utf-8-sig").split("\n")
        except UnicodeDecodeError as error:
            raise ValueError(f"{text}: not UTF-8 ({error.reason}); save the file as UTF-8") from None
        captions = [line.strip() for line in lines if line.strip()]
        if not captions:
            raise ValueError(f"{text}:1: no caption; write some words")
        captioned.append(Captioned(picture, captions, str(text)))
    return captioned


def check_all_captioned(pictures: list[Path], captioned: list[Captioned], place: str) -> None:
    """Raise ValueError for the first image of the folder that has no caption."""
    known = {item.path for item in captioned}
    for path in pictures:
        if path not in known:
            raise ValueError(f"{path} has no caption; write one into {place}, or take the picture out")


# --- writing


def conversations(
    pictures: list[Captioned], weights: dict[str, float], args: CaptionArguments
) -> Iterator[dict[str, Any]]:
    """--repeat rows for every image; all images come once before one comes again."""
    rng = np.random.default_rng(args.seed)
    for _ in range(args.repeat):
        for item in pictures:
            kind = str(rng.choice(list(weights), p=list(weights.values())))
            caption, wording, request = (str(rng.choice(words)) for words in (item.captions, args.wordings, REQUESTS))
            text = wording.replace("{}", caption) if kind == "draw" else request
            yield row(kind, relative(item.path, args.out), text, caption)


def first_row(kind: str, item: Captioned, args: CaptionArguments) -> dict[str, Any]:
    """The conversation of an image with the first of its captions, of the wordings and of the requests."""
    caption, text = item.captions[0], asked_for(item, args) if kind == "draw" else REQUESTS[0]
    return row(kind, relative(item.path, str(args.eval_out)), text, caption)


def prompt(item: Captioned, args: CaptionArguments, held_out: bool) -> dict[str, Any]:
    """A prompt to draw, with the picture that it is the caption of."""
    return {
        "prompt": asked_for(item, args),
        "image": relative(item.path, str(args.prompts)),
        "held_out": held_out,
    }


def asked_for(item: Captioned, args: CaptionArguments) -> str:
    """The first caption in the first wording."""
    return args.wordings[0].replace("{}", item.captions[0])


def write_lines(path: str, records: list[dict[str, Any]]) -> None:
    """Write a JSONL, atomically."""
    write_text(Path(path), "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records))


def row(kind: str, picture: str, text: str, caption: str) -> dict[str, Any]:
    """One conversation as `unified.data.rows` has it: the image in the answer (draw) or in the question (describe)."""
    image, asked, told = {"type": "image"}, {"type": "text", "text": text}, {"type": "text", "text": caption}
    question, answer = ([asked], [image]) if kind == "draw" else ([image, asked], [told])
    return {
        "messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}],
        "images": [picture],
        "metadata": {"kind": kind, "caption": caption},
    }


def relative(path: Path, out: str) -> str:
    """The path as seen from the folder of `out`."""
    return Path(os.path.relpath(path, Path(out).parent)).as_posix()
