"""Write questions about Scenes pictures to one parquet file, for lmms-eval and for models that are not ours.

    python eval/export_questions.py --out eval/lmms/scenes.parquet --n 6
    python eval/export_questions.py --out scenes_heldout.parquet --n 500 --split heldout

The questions are those of eval/understanding.py with the same settings, without the captions. A row has `image` (PNG),
`part`, `question` and `answer` (a word: yes, three, red, left). The file in the repository was made by the first line;
eval/lmms/scenes_vqa.yaml is a task on it.
"""

import io
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from datasets import Dataset, Features, Image, Value

from unified.arguments.parser import check_minimum, parse, run_main
from unified.files.atomic import atomic_path
from unified.scenes.rendering import NUMBERS, draw_scene
from unified.scenes.understanding import PARTS, Domain, Question, questions

FEATURES = Features({"image": Image(), **{name: Value("string") for name in ("part", "question", "answer")}})


@dataclass
class ExportArguments:
    """Which questions go where."""

    out: str = field(metadata={"help": "parquet file"})
    n: int = field(default=200, metadata={"help": "scenes of each of the four parts"})
    seed: int = field(default=0, metadata={"help": "another seed asks about other scenes"})
    split: Literal["train", "heldout"] = field(default="train", metadata={"help": "see eval/understanding.py"})
    layout: Literal["free", "tidy"] = field(default="free", metadata={"help": "see eval/understanding.py"})
    wordings: Literal["training", "unseen"] = field(default="training", metadata={"help": "words of the questions"})

    def __post_init__(self) -> None:
        check_minimum(self, n=1, seed=0)
        if not self.out.endswith(".parquet"):
            raise ValueError(f"--out {self.out} does not end with .parquet; give such a name")


def main() -> None:
    (args,) = parse((ExportArguments,))
    domain = Domain(args.split, args.layout)
    asked = [q for part in PARTS[:-1] for q in questions(part, args.n, args.seed, domain, args.wordings)]
    write(Path(args.out), [row(question) for question in asked])
    print(f"{args.out}: {len(asked)} questions")


def row(question: Question) -> dict[str, Any]:
    """One line of the file."""
    png = io.BytesIO()
    draw_scene(question.scene).save(png, format="PNG")
    asked = {"part": question.part, "question": question.text, "answer": word(question.part, question.truth)}
    return asked | {"image": {"bytes": png.getvalue(), "path": None}}


def word(part: str, truth: str) -> str:
    """A truth in the wording of models' answers."""
    return NUMBERS[int(truth)] if part == "counting" else truth.removesuffix(" of")


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write the file atomically."""
    with atomic_path(path) as partial:
        Dataset.from_list(rows, features=FEATURES).to_parquet(partial)


if __name__ == "__main__":
    run_main(main)
