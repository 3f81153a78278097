"""`unified report`: what the JSONs say is on the page, and a bad one is named."""

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from typer.testing import CliRunner

from unified.cli.main import app
from unified.files.results import write_result
from unified.reports.results_page import detail_tables, overview, read_results, write_report

TASKS = {
    "counting": {"value": 0.25, "stderr": 0.125, "images": 8, "prompts": 2},
    "colors": {"value": 0.75, "stderr": None, "images": 4, "prompts": 1},
}


SHARED: dict[str, Any] = {"tokenizer": "feed", "prompts_sha256": None, "seed": 3, "seconds": 1.0}


def geneval(
    path: Path, model: str = "out/sft", value: float = 0.5, stderr: float | None = None, **details: Any
) -> Path:
    made = {"stderr": stderr, **SHARED, "tasks": TASKS, **details}
    write_result(path, "geneval_overall", value, 12, model, {"detector": "scenes"}, **made)
    return path


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """Two models; one has GenEval on two prompt sets and another score; a checkpoint's files lie among them."""
    folder = tmp_path / "results"
    geneval(folder / "train.json", stderr=0.0123)
    geneval(folder / "heldout.json", value=0.25)
    psnrs = {"stderr": None, **SHARED, "psnr_by_scale": [12.5, 28.3125]}
    write_result(folder / "vq.json", "psnr", 28.3125, 512, "weights|vq", {"n": 512}, **psnrs)
    # as results were before all of them had the same fields
    (folder / "sub").mkdir()
    old = {"metric": "kl", "value": 0.000123, "n": 50, "model": "out/sft", "config": {}}
    (folder / "sub" / "language.json").write_text(json.dumps(old))
    (folder / "config.json").write_text('{"model_type": "unified"}')
    (folder / "list.json").write_text("[1, 2]")
    return folder


def test_models_go_down_and_metrics_across(results: Path) -> None:
    table = overview(read_results([results]))
    assert list(table.header) == ["model", "result", "geneval_overall", "kl", "psnr"]
    assert [list(row) for row in table.rows] == [
        ["out/sft", "heldout", "0.25 (n = 12)", "", ""],
        ["out/sft", "", "", "0.000123 (n = 50)", ""],
        ["out/sft", "train", "0.5 ± 0.012 (n = 12)", "", ""],
        ["weights|vq", "", "", "", "28.31 (n = 512)"],
    ]


def test_a_file_named_twice_counts_once(results: Path) -> None:
    assert len(read_results([results, results / "vq.json"])) == 4
    assert [result.metric for result in read_results([results / "vq.json"])] == ["psnr"]
    (results / "again").mkdir()
    geneval(results / "again" / "train.json", value=0.75)
    labels = [row[1] for row in overview(read_results([results])).rows if row[2]]
    assert labels == [str(results / "again" / "train.json"), "heldout", str(results / "train.json")]


def test_details_become_tables() -> None:
    plain, tasks = detail_tables({"psnr_by_scale": [12.5, 28.3125], "seconds": 3, "tasks": TASKS, "empty": {}})
    assert plain.rows == [["psnr by scale", "12.5, 28.31"], ["seconds", "3"]]
    assert list(tasks.header) == ["tasks", "value", "stderr", "images", "prompts"]
    assert tasks.rows == [["counting", "0.25", "0.125", "8", "2"], ["colors", "0.75", "", "4", "1"]]
    assert tasks.bars == [0.25, 0.75]
    assert detail_tables({"stderr": None, "tokenizer": "feed", "prompts_sha256": "beef", "seed": 3}) == []
    (counts,) = detail_tables({"counts": {"a": 3, "b": 4}, "commit": "abc", "versions": {"python": "3.11"}})
    assert counts.rows == [["a", "3"], ["b", "4"]] and not counts.bars
    (deep,) = detail_tables({"drawn": {"tasks": {"colors": {"value": 0.5, "n": 2}}}})
    assert deep.rows == [["tasks", "value 0.5, n 2"]]


@pytest.mark.parametrize("suffix", [".html", ".md"])
def test_the_page_holds_everything(results: Path, tmp_path: Path, suffix: str) -> None:
    out = tmp_path / "new" / f"report{suffix}"
    run = CliRunner().invoke(app, ["report", str(results), "--out", str(out)])
    assert run.exit_code == 0 and run.stdout == f"{out}: 4 results\n"
    page = out.read_text(encoding="utf-8")
    for words in (
        "0.5 ± 0.012 (n = 12)",
        "counting",
        "heldout.json",
        "psnr by scale",
        "detector",
        "28.31",
        "versions",
        "tokenizer",
    ):
        assert words in page
    assert [path.name for path in out.parent.iterdir()] == [out.name]


def test_markdown_keeps_its_columns(results: Path, tmp_path: Path) -> None:
    write_report([results], tmp_path / "report.md")
    rows = [line for line in (tmp_path / "report.md").read_text().splitlines() if "28.31 (n" in line and "| " in line]
    assert rows == ["| weights\\|vq |  |  |  | 28.31 (n = 512) |"]


def test_html_shows_pictures_with_their_reasons_and_nothing_runs(tmp_path: Path) -> None:
    verdicts, lines = [("right", True, ""), ("wrong", False, "expected cat>=1, found 0"), ("right", True, "")], []
    for number, (prompt, correct, reason) in enumerate(verdicts):
        Image.new("RGB", (8, 8), "red").save(tmp_path / f"{number}.png")
        record = {"filename": str(tmp_path / f"{number}.png"), "tag": "colors", "prompt": f"{prompt} <script>"}
        lines.append(json.dumps(record | {"correct": correct, "reason": reason}))
    lines.append(lines[1].replace("1.png", "gone.png").replace("wrong", "another"))
    (tmp_path / "results.jsonl").write_text("\n".join(lines))
    write_report([geneval(tmp_path / "geneval.json", results=str(tmp_path / "results.jsonl"))], tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert page.count("data:image/png") == 3  # one a prompt
    assert "colors, right" in page and "colors, wrong" in page and "gone.png is gone" in page
    assert "wrong &lt;script&gt;: expected cat&gt;=1, found 0" in page and "<script>" not in page


def drawn(root: Path, relative: bool = True, count: int = 3) -> Path:
    """A GenEval result in `root`/results, made by a command that ran in `root`, with that many pictures."""
    folder, lines = root / "out/drawn", []
    for number in range(count):
        picture = folder / f"{number:05d}/samples/0000.png"
        picture.parent.mkdir(parents=True)
        Image.new("RGB", (8, 8), "red").save(picture)
        name = picture.relative_to(root) if relative else picture
        lines.append(json.dumps({"filename": str(name), "tag": "colors", "prompt": f"cat {number}", "correct": True,
                                 "reason": ""}))  # fmt: skip
    (folder / "results.jsonl").write_text("\n".join(lines))
    (root / "results").mkdir()
    named = "out/drawn/results.jsonl" if relative else str(folder / "results.jsonl")
    return geneval(root / "results/geneval.json", results=named)


@pytest.mark.parametrize("relative", [True, False])
@pytest.mark.parametrize("where", [".", "results", "elsewhere"])
def test_pictures_are_found_from_any_folder(
    relative: bool, where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A path in a result begins at the folder that the scorer ran in: at or above the JSON, or the current one."""
    result = drawn(tmp_path, relative)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / where)
    run = CliRunner().invoke(app, ["report", str(result), "--out", "page.html"])
    assert run.exit_code == 0 and run.stdout == "page.html: 1 results\n" and not run.stderr
    assert Path("page.html").read_text(encoding="utf-8").count("data:image/png") == 3


def test_pictures_may_lie_beside_the_current_folder_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result = drawn(tmp_path / "a").rename(tmp_path / "moved.json")
    monkeypatch.chdir(tmp_path / "a")
    assert write_report([result], tmp_path / "page.html").note == ""
    assert (tmp_path / "page.html").read_text(encoding="utf-8").count("data:image/png") == 3


def test_pictures_that_are_gone_are_counted_in_one_line(tmp_path: Path) -> None:
    result = drawn(tmp_path)
    (tmp_path / "out/drawn/00001/samples/0000.png").unlink()
    for out in ("page.html", "page.md"):
        run = CliRunner().invoke(app, ["report", str(result), "--out", str(tmp_path / out)])
        assert run.exit_code == 0 and run.stdout.count("\n") == 1
        said = "1 of 3 pictures not found, out/drawn/00001/samples/0000.png first"
        assert (said in run.stderr) == (out == "page.html") and run.stderr.count("\n") == (out == "page.html")
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert page.count("0000.png is gone)<") == 1 and page.count(said) == 1


def test_a_list_of_pictures_that_is_gone_is_named(tmp_path: Path) -> None:
    result = drawn(tmp_path)
    (tmp_path / "out/drawn/results.jsonl").unlink()
    run = CliRunner().invoke(app, ["report", str(result), "--out", str(tmp_path / "page.html")])
    said = "out/drawn/results.jsonl of geneval.json not found, nor its pictures"
    assert said in run.stderr and said in (tmp_path / "page.html").read_text(encoding="utf-8")


def test_a_long_table_does_not_fill_the_page(tmp_path: Path) -> None:
    """A confusion of 96 prompts: folded away on the page, cut with its count in Markdown."""
    confusion = {f"prompt {number}": {"cat": number + 1} for number in range(96)}
    result = geneval(tmp_path / "nearest.json", confusion=confusion)
    short, long = detail_tables({"tasks": TASKS, "confusion": confusion})
    assert not short.is_long and long.is_long
    assert len(short.markdown().splitlines()) == 2 + len(TASKS) + 1
    lines = long.markdown().splitlines()
    assert len(lines) < 20 and "and 84 more rows" in lines[-2] and lines[2].startswith("| prompt 0 |")
    for out in ("page.html", "page.md"):
        write_report([result], tmp_path / out)
    page = (tmp_path / "page.html").read_text()
    assert "<details><summary>confusion (96 rows)</summary><table" in page and page.count("rows)") == 1
    assert (
        "prompt 95" in (tmp_path / "page.html").read_text() and "prompt 95" not in (tmp_path / "page.md").read_text()
    )


GOOD = {"metric": "psnr", "value": 1.0, "n": 1, "model": "vq", "config": {}}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"metric": "psnr", ', "is not JSON"),
        ("[]", "its `metric` is []"),
        (json.dumps({"value": 1}), "its `metric` is None"),
        (json.dumps(GOOD | {"value": "high"}), "its `value` is 'high'"),
        (json.dumps(GOOD | {"value": True}), "its `value` is True"),
        (json.dumps(GOOD | {"value": float("nan")}), "must be finite"),
        (json.dumps(GOOD | {"stderr": "small"}), "must be finite"),
        (json.dumps(GOOD | {"n": 1.5}), "its `n` is 1.5"),
        (json.dumps({key: value for key, value in GOOD.items() if key != "config"}), "its `config` is None"),
    ],
)
def test_a_bad_result_is_named(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "good.json").write_text(json.dumps(GOOD))
    bad = tmp_path / "bad.json"
    bad.write_text(text)
    run = CliRunner().invoke(app, ["report", str(tmp_path / "good.json"), str(bad), "--out", str(tmp_path / "x.md")])
    lines = [line for line in run.stderr.splitlines() if line.startswith("error: ")]
    assert run.exit_code == 2 and len(lines) == 1 and f"{bad} is" in lines[0] and words in lines[0]
    assert not (tmp_path / "x.md").exists()


def test_no_results_and_no_format_are_errors(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    for paths, out, words in (
        ([tmp_path], "x.html", "no result JSON"),
        ([tmp_path / "nothing"], "x.html", "does not exist"),
        ([tmp_path], "x.pdf", "ends with .pdf; a report is .html or .md"),
        ([tmp_path], "x", "ends with nothing"),
    ):
        with pytest.raises(ValueError, match=words):
            write_report(paths, tmp_path / out)
