"""One page of many result JSONs: models by metrics, the parts of each score, images that were right or wrong."""

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from unified.files.atomic import write_text
from unified.files.images import read_image
from unified.files.jsonl import read_lines
from unified.reports.page import render

FORMATS = (".html", ".md")
# of a result: they go with its settings
CIRCUMSTANCES = ("tokenizer", "prompts_sha256", "seed", "commit", "versions")
EXAMPLES = 4  # right and wrong images of a task that are shown
LONG, CUT = 24, 12  # a table of more rows is folded away in HTML, in Markdown cut to so many


@dataclass(frozen=True)
class Result:
    """What one JSON says; `details` is all that is not named here."""

    path: Path
    metric: str
    value: float
    n: int
    model: str
    config: dict[str, Any]
    details: dict[str, Any]

    @property
    def settings(self) -> dict[str, Any]:
        """All that the value depends on."""
        return self.config | {name: self.details[name] for name in CIRCUMSTANCES if name in self.details}

    @property
    def cell(self) -> str:
        """The headline with its standard error and count."""
        stderr = self.details.get("stderr")
        spread = "" if stderr is None else f" ± {stderr:.2g}"
        return f"{self.value:.4g}{spread} (n = {self.n})"


@dataclass(frozen=True)
class Table:
    """Rows of text under a header; `bars` has a share for every row that is to have a bar."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    bars: Sequence[float] = field(default=())

    def markdown(self) -> str:
        """For a .md file."""
        lines = [self.header, ["---"] * len(self.header), *self.rows]
        if self.is_long:
            lines = [*lines[: 2 + CUT], [f"and {len(self.rows) - CUT} more rows, see the JSON or the .html"]]
        return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in lines) + "\n"

    @property
    def is_long(self) -> bool:
        """Whether it is folded away."""
        return len(self.rows) > LONG

    def width(self, row: int) -> str:
        """Of a row's bar, in CSS."""
        return f"{10 * min(max(self.bars[row], 0), 1):.2f}rem"


@dataclass(frozen=True)
class Examples:
    """Images with captions under a title."""

    title: str
    images: Sequence[tuple[Image.Image, str]]


@dataclass(frozen=True)
class Section:
    """What the page says of one result."""

    title: str
    note: str
    tables: Sequence[Table]
    settings: str
    examples: Sequence[Examples]


@dataclass
class ShownImages:
    """Files that results name: how many were `wanted`, and the names of those that are `missing`."""

    wanted: int = 0
    missing: list[str] = field(default_factory=list)
    lists: list[str] = field(default_factory=list)

    def note(self) -> str:
        """One line about what is missing; empty where all is there."""
        parts = [f"{name} not found, nor its pictures" for name in self.lists]
        if self.missing:
            parts.append(f"{len(self.missing)} of {self.wanted} pictures not found, {self.missing[0]} first")
        return "; ".join(parts)


def read_results(paths: Iterable[Path]) -> list[Result]:
    """Results of files, and of all *.json under folders that have a `metric`, by name; one named twice counts once.

    Raises ValueError naming what is missing, no JSON or no result.
    """
    results: dict[Path, Result] = {}
    for path in paths:
        if not path.exists():
            raise ValueError(f"{path} does not exist; give result JSONs or folders that hold some")
        for file in sorted(path.rglob("*.json")) if path.is_dir() else [path]:
            record = _read_json(file)
            if path.is_file() or (isinstance(record, dict) and "metric" in record):
                results.setdefault(file.resolve(), _result(file, record))
    if not results:
        raise ValueError("no result JSON there (an object with `metric`, `value`, `n`, `model`); score something")
    return list(results.values())


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not JSON ({error}); delete it or write it again") from None


def _result(path: Path, record: Any) -> Result:
    kinds = {"metric": str, "value": (int, float), "n": int, "model": str, "config": dict}
    for name, kind in kinds.items():
        found = record.get(name) if isinstance(record, dict) else record
        if not isinstance(found, kind) or isinstance(found, bool):  # type: ignore[arg-type]
            raise ValueError(f"{path} is no result: its `{name}` is {found!r:.40}; write it with an eval/ script")
    stderr = record.get("stderr")
    if not all(isinstance(x, int | float) and math.isfinite(x) for x in (record["value"], stderr or 0)):
        raise ValueError(f"{path} is no result: value {record['value']}, stderr {stderr!r:.40}; both must be finite")
    return Result(path, details={k: v for k, v in record.items() if k not in kinds}, **{k: record[k] for k in kinds})


def overview(results: Sequence[Result]) -> Table:
    """Models down, metrics across; several results of a model and metric stand in rows named by their files."""
    metrics = list(dict.fromkeys(result.metric for result in results))
    cells: dict[tuple[str, str], dict[str, str]] = {}
    for model in dict.fromkeys(result.model for result in results):
        own = [result for result in results if result.model == model]
        for result in own:
            rivals = [other for other in own if other.metric == result.metric]
            cells.setdefault((model, _label(result, rivals)), {})[result.metric] = result.cell
    rows = [[*place, *(cells[place].get(metric, "") for metric in metrics)] for place in cells]
    return Table(["model", "result", *metrics], rows)


def _label(result: Result, rivals: Sequence[Result]) -> str:
    if len(rivals) == 1:
        return ""
    same = [other for other in rivals if other.path.stem == result.path.stem]
    return result.path.stem if len(same) == 1 else str(result.path)


def detail_tables(details: dict[str, Any]) -> list[Table]:
    """Tables of the details: first the numbers and words, then every group of them, such as GenEval's tasks."""
    shown = {name: value for name, value in details.items() if name not in CIRCUMSTANCES and value is not None}
    plain = [[name.replace("_", " "), text(value)] for name, value in shown.items() if not isinstance(value, dict)]
    tables = [Table(["", "value"], plain)] if plain else []
    return tables + [_group_table(name, group) for name, group in shown.items() if isinstance(group, dict) and group]


def _group_table(name: str, group: dict[str, Any]) -> Table:
    rows = {key: value if isinstance(value, dict) else {"value": value} for key, value in group.items()}
    columns = list(dict.fromkeys(column for row in rows.values() for column in row))
    cells = [[key, *(text(row.get(column)) for column in columns)] for key, row in rows.items()]
    values = [row.get("value") for row in rows.values()]
    shares = [float(value) for value in values if isinstance(value, int | float) and 0 <= value <= 1]
    return Table([name.replace("_", " "), *columns], cells, shares if len(shares) == len(rows) else ())


def text(value: Any) -> str:
    """A value as a cell shows it."""
    if isinstance(value, list):
        return ", ".join(map(text, value))
    if isinstance(value, dict):
        return ", ".join(f"{name} {text(part)}" for name, part in value.items())
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def find(name: str, result: Path) -> Path | None:
    """The file that a result calls `name`; None where it is gone.

    A relative name begins where the scorer ran: at the current folder, or at that of `result` or one above it.
    """
    places = (place / name for place in (Path(), *result.resolve().parents))
    return next((place for place in places if place.is_file()), None)


def examples(result: Result, pictures: ShownImages) -> list[Examples]:
    """Some right and some wrong images of every task of a GenEval result; none of other results.

    `details["results"]` names the JSONL with a line for every image, as eval/geneval.py writes it. What is not there
    is added to `pictures`.
    """
    name = result.details.get("results")
    if not isinstance(name, str):
        return []
    path = find(name, result.path)
    if path is None:
        pictures.lists.append(f"{name} of {result.path.name}")
        return []
    records = [record for _, record in read_lines(path)]
    found = []
    for tag in dict.fromkeys(record["tag"] for record in records):
        for correct in (True, False):
            chosen = {r["prompt"]: r for r in records[::-1] if (r["tag"], r["correct"]) == (tag, correct)}
            latest = list(chosen.values())[::-1][:EXAMPLES]
            shown = [_captioned(record, result.path, pictures) for record in latest]
            if shown:
                found.append(Examples(f"{tag}, {'right' if correct else 'wrong'}", shown))
    return found


def _captioned(record: dict[str, Any], result: Path, pictures: ShownImages) -> tuple[Image.Image, str]:
    caption = ": ".join(filter(None, (record["prompt"], record["reason"].replace("\n", "; "))))
    pictures.wanted += 1
    try:
        return read_image(find(record["filename"], result) or record["filename"], record["filename"]), caption
    except ValueError:
        pictures.missing.append(record["filename"])
        return Image.new("RGB", (1, 1), "white"), f"{caption} ({record['filename']} is gone)"


def as_markdown(results: Sequence[Result]) -> str:
    """The report without images."""
    parts = ["# Results\n\n", overview(results).markdown()]
    for result in results:
        parts.append(f"## {result.metric} of {result.model}\n\n{result.cell}, from `{result.path}`\n\n")
        parts += [table.markdown() for table in detail_tables(result.details)]
        parts.append(f"```json\n{json.dumps(result.settings)}\n```\n\n")
    return "".join(parts)


def as_html(results: Sequence[Result], pictures: ShownImages) -> str:
    """The report as one self-contained page; `pictures` learns which are missing."""
    sections = [
        Section(
            f"{result.metric} of {result.model}",
            f"{result.cell}, from {result.path}",
            detail_tables(result.details),
            json.dumps(result.settings, indent=1),
            examples(result, pictures),
        )
        for result in results
    ]
    values = {"title": "Results", "note": pictures.note(), "overview": overview(results), "sections": sections}
    return render("results.html.jinja", **values)


@dataclass(frozen=True)
class Report:
    """What was written: how many `results`, and one line about images that were not found, or none."""

    results: int
    note: str


def write_report(paths: Sequence[Path], out: Path) -> Report:
    """Write the report of the results under `paths` to `out` atomically.

    Raises ValueError for a name that ends with neither .html nor .md, and where `read_results` does.
    """
    if out.suffix not in FORMATS:
        raise ValueError(f"{out} ends with {out.suffix or 'nothing'}; a report is {' or '.join(FORMATS)}")
    results, pictures = read_results(paths), ShownImages()
    page = as_html(results, pictures) if out.suffix == ".html" else as_markdown(results)
    write_text(out, page)
    return Report(len(results), pictures.note())
