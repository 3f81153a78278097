"""README and docs: the site builds strictly, commands shown exist with flags and files, every name has a page."""

import ast
import importlib
import re
import subprocess
import sys
from io import BytesIO
from pathlib import Path

import datasets
import pytest
import yaml
from accelerate.commands.launch import launch_command_parser
from conftest import load_script
from PIL import Image
from shell_blocks import BLOCK, Line, Page, blocks, read_page

import unified
from unified.arguments.manual import grouped
from unified.data.rows import read_rows

ROOT = Path(__file__).parents[1]
REFERENCE = load_script(".ci/write_reference.py")
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
MAKE = (ROOT / "Makefile").read_text(encoding="utf-8")
# what a command leaves, beside the values of these flags
HELP = {"help", "help_all"}
OUTPUTS = {"out", "output_dir", "out_dir", "jsonl", "grid", "rules", "records", "eval_out", "sheet"}
MADE_BY_MAKE = {
    "chat": ("out/smollm2", "out/scenes-base"),
    "demo": ("out/demo", "out/smollm2", "out/scenes-base"),
    "venv": (".venv",),
    "docs": ("out/site",),
}
# programs of others, whose arguments are theirs
OTHERS = {"source", "pip", "cat", "cp", "hf", "git", "tensorboard", "lm_eval", "lmms-eval", "pre-commit", "srun"}
OTHERS |= {"curl", "openssl"}
SUFFIXES = re.compile(r".*\.(ya?ml|jsonl?|png|jpg|pth|parquet|html|safetensors)")


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def program_of(line: Line) -> tuple[str, list[str], list[str]]:
    """`(script or subcommand or program, its arguments, accelerate's)` of a command."""
    words = line.words
    if words[:2] in (["accelerate", "launch"], ["unified", "run"]):
        place = next((i for i, word in enumerate(words) if word.endswith(".py")), len(words) - 1)
        return words[place], words[place + 1 :], words[2:place]
    if words[0] == "python":
        return (words[1], words[2:], []) if words[1].endswith(".py") else (f"python {words[1]}", words[2:], [])
    if words[0] in ("unified", "make"):
        return " ".join(words[:2]), words[2:], []
    return words[0], words[1:], []


def flags_of(program: str) -> set[str]:
    """Names of the flags a program of ours takes, with underscores."""
    if program.endswith(".py"):
        return REFERENCE.all_flags(ROOT / program)
    parameters = REFERENCE.unified_flags()[program.split()[1]].params
    return {option.lstrip("-").replace("-", "_") for parameter in parameters for option in parameter.opts}


def values(arguments: list[str]) -> list[tuple[str, str]]:
    """`(flag, value)` of all arguments; a positional one has the flag ""."""
    found, flag = [], ""
    for word in arguments:
        if word.startswith("--"):
            flag, equals, value = word[2:].partition("=")
            flag = flag.replace("-", "_")
            found += [(flag, value)] if equals else []
        else:
            found.append((flag, word))
    return found


def is_path(word: str) -> bool:
    return ("/" in word or SUFFIXES.fullmatch(word) is not None) and not re.search(r"[\s${]|^[A-Z_.]+$", word)


def is_there(word: str, made: set[str], prose: set[str]) -> bool:
    """Whether a path is in the repository, made by a command above, or named in the text above."""
    folder = word.split("*")[0].rstrip("/")
    if (ROOT / folder).exists() and not folder.startswith(("out", "data/")):
        return True
    known = made | {word.rstrip("/") for word in prose}
    return any(folder == path or folder.startswith(f"{path}/") or path.startswith(f"{folder}/") for path in known)


def check_line(line: Line, page: Page, made: set[str]) -> list[str]:
    """What is wrong with a command; what it makes is added to `made`."""
    program, arguments, launch = program_of(line)
    if line.output:
        made.add(line.output)
    if program.startswith("make "):
        made.update(MADE_BY_MAKE.get(line.words[1], ()))
        targets = re.search(r"^\.PHONY: (.*)$", MAKE, re.MULTILINE)
        assert targets
        return [] if line.words[1] in targets[1].split() else [f"make has no target {line.words[1]}"]
    if program in OTHERS or program.startswith("python -") or program == "unified --version":
        return []
    if program.endswith(".py") and not (ROOT / program).is_file():
        return [f"{program} is not there"]
    if not program.endswith(".py") and program.split()[-1] not in REFERENCE.unified_flags():
        return [f"{program} is no command of this project; see OTHERS"]
    given, wrong = values(arguments), []
    options = {option.lstrip("-") for option in launch_command_parser()._option_string_actions}
    wrong += [f"accelerate launch has no --{flag}" for flag, _ in values(launch) if flag and flag not in options]
    used = {word[2:].split("=")[0].replace("-", "_") for word in arguments if word.startswith("--")}
    wrong += [f"{program} has no --{flag}" for flag in used - flags_of(program) - HELP]
    outputs = {value for flag, value in given if flag in OUTPUTS}
    if program in ("data_prep/render_objects.py", "data_prep/convert_captions.py"):
        outputs |= {value for flag, value in given if flag == "prompts"}
    if program in ("data_prep/convert_var_vq.py", "unified cp"):
        outputs.add(arguments[1])
    for flag, value in [*given, *values(launch)]:
        if value not in outputs and is_path(value) and not is_there(value, made, page.prose[line.number]):
            wrong.append(f"{value} (--{flag}) is neither there nor made above nor named in the text")
        if flag == "config" and (ROOT / value).is_file():
            made.update(str(v) for k, v in yaml.safe_load((ROOT / value).read_text()).items() if k == "output_dir")
    made |= outputs
    return wrong


@pytest.mark.parametrize("path", PAGES, ids=name)
def test_commands_shown_exist_with_their_flags_and_files(path: Path) -> None:
    page = read_page(path)
    made = {str(run["output_dir"]) for run in page.runs if "output_dir" in run}
    wrong = {f"{name(path)}:{line.number}": bad for line in page.lines if (bad := check_line(line, page, made))}
    assert not wrong
    untagged = [code for tag, code in BLOCK.findall(path.read_text(encoding="utf-8")) if not tag]
    assert not untagged, "say of every block what it is: bash, python, yaml, json, text"


@pytest.mark.parametrize("path", PAGES, ids=name)
def test_runs_shown_have_keys_of_the_recipe(path: Path) -> None:
    keys = flags_of("recipes/sft.py")
    assert not {key for run in read_page(path).runs for key in run} - keys


@pytest.mark.parametrize("path", PAGES, ids=name)
def test_python_shown_compiles_and_imports_what_is_there(path: Path) -> None:
    for number, code, _ in blocks(path.read_text(encoding="utf-8"), "python"):
        compile(code, f"{name(path)}:{number}", "exec")
        for module, names in re.findall(r"^from (unified[\w.]*) import (.*)$", code, re.MULTILINE):
            assert not [word for word in names.split(", ") if not hasattr(importlib.import_module(module), word)]


def test_commands_that_a_run_names_next_exist_with_their_flags() -> None:
    places = [path for folder in ("recipes", "data_prep", "eval") for path in sorted((ROOT / folder).glob("*.py"))]
    places += [ROOT / "unified/cli/main.py", ROOT / "unified/reports/endings.py"]
    found = set()
    for path in places:
        for text in re.findall(r'"(unified (?:run \S+\.py|\w+) [^"]*--[^"]*)"', path.read_text(encoding="utf-8")):
            words = re.sub(r"\{[^{}]*\}", "X", text.split("    #")[0]).split()
            program, arguments, _ = program_of(Line(words, path, 0))
            used = {word[2:].replace("-", "_") for word in arguments if word.startswith("--")}
            assert not used - flags_of(program), f"{name(path)}: {text}"
            found.add(program)
    assert {"recipes/sft.py", "data_prep/encode_images.py", "eval/geneval.py", "unified extend"} <= found


def test_the_parquet_that_is_shown_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (_, code, _), *_ = blocks((ROOT / "docs/data.md").read_text(encoding="utf-8"), "python")
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (20, 16), (200, 30, 30)).save("cat.png")
    exec(code, {})
    Path("cat.png").unlink()  # the bytes are inside
    (row,) = read_rows("rows.parquet")
    assert [message["content"][0]["type"] for message in row.messages] == ["text", "image"]
    assert Image.open(BytesIO(row.images[0].read())).size == (20, 16)


def test_a_parquet_of_images_and_captions_is_read_as_it_is(tmp_path: Path) -> None:
    Image.new("RGB", (20, 16), (200, 30, 30)).save(tmp_path / "cat.png")
    captions = [{"image": (tmp_path / "cat.png").read_bytes(), "caption": f"cat {number}"} for number in range(3)]
    features = datasets.Features(image=datasets.Image(), caption=datasets.Value("string"))
    datasets.Dataset.from_list(captions, features=features).to_parquet(tmp_path / "captions.parquet")
    (tmp_path / "cat.png").unlink()
    rows = list(read_rows(tmp_path / "captions.parquet"))
    assert [row.messages[0]["content"][0]["text"] for row in rows] == ["cat 0", "cat 1", "cat 2"]
    assert Image.open(BytesIO(rows[2].images[0].read())).size == (20, 16)


def test_rows_that_are_shown_are_rows(tmp_path: Path) -> None:
    text = "".join(code for _, code, _ in blocks((ROOT / "docs/data.md").read_text(encoding="utf-8"), "json"))
    (tmp_path / "rows.jsonl").write_text(text, encoding="utf-8")
    (tmp_path / "rows.json").write_text(f"[{','.join(text.splitlines())}]", encoding="utf-8")  # as LLaVA's file is
    for name in ("rows.jsonl", "rows.json"):
        assert [len(row.images) for row in read_rows(tmp_path / name)] == [1, 1, 0, 2, 1, 1, 1, 1]


def test_readme_is_short_and_its_links_lead_somewhere() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(readme.encode()) <= 10_240
    for page in PAGES[:2]:
        for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text(encoding="utf-8")):
            assert target.startswith("https://") or (ROOT / target).exists(), target


def test_every_error_that_is_explained_is_one() -> None:
    text = (ROOT / "docs/troubleshooting.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (.*?`) \| ", text, re.MULTILINE)
    sources = [
        path for folder in ("unified", "data_prep", "recipes", "eval") for path in (ROOT / folder).rglob("*.py")
    ]
    code = "\n".join(path.read_text(encoding="utf-8") for path in sources)
    joined = re.sub(r'"\s*\n\s*f?"', "", code)  # messages of several lines
    parts = [part for row in rows for part in re.findall(r"``? ?(.+?) ?``?(?= |$)", row)]
    assert len(parts) > 20
    assert not [part for part in parts if part not in joined]


def test_every_public_name_has_a_page() -> None:
    api = (ROOT / "docs/reference/api.md").read_text(encoding="utf-8")
    assert {*re.findall(r"^::: unified\.(\w+)$", api, re.MULTILINE)} >= {*unified.__all__}


def sections(page: str) -> dict[str, str]:
    """The text below every heading of the third level."""
    return dict(re.findall(r"^### (.*)\n((?:(?!^#).*\n?)*)", page, re.MULTILINE))


def test_every_script_and_each_of_its_own_flags_has_a_page() -> None:
    """The flags that `--help` lists as the project's are those of the table, each with its help."""
    found = sections(REFERENCE.page())
    for script in REFERENCE.scripts():
        kinds = REFERENCE.dataclasses_of(script)
        shown = {flag for flags in grouped(kinds).values() for flag in flags}
        own = REFERENCE.own_flags(script)
        assert own and shown <= {flag.name for flag in own}, f"{name(script)}: a parse((A, B)) that is not understood"
        cells = dict(re.findall(r"^\| `(?:--)?(\w[\w-]*)` \| .*? \| (.+) \|$", found[name(script)], re.MULTILINE))
        assert {flag.name.upper() if flag.positional else flag.name for flag in own} == cells.keys(), name(script)
        assert ast.get_docstring(ast.parse(script.read_text(encoding="utf-8"))), name(script)
    for command, flags in REFERENCE.unified_flags().items():
        text = found[f"unified {command}"]
        assert all((flag.help or "x").split()[0] in text for flag in flags.params) and flags.help


def test_every_script_and_command_is_named_in_a_guide() -> None:
    guides = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    missing = [name(script) for script in REFERENCE.scripts() if script.name not in guides]
    missing += [command for command in REFERENCE.unified_flags() if f"unified {command}" not in guides]
    assert not missing, "say in a page of docs/ when one needs it"


def test_the_site_builds_without_a_warning() -> None:
    REFERENCE.write_text(REFERENCE.OUT, REFERENCE.page())
    build = [sys.executable, "-m", "zensical", "build", "--strict", "--clean"]
    done = subprocess.run(build, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (ROOT / "out/site/reference/commands/index.html").is_file()
    assert "griffe" not in done.stdout + done.stderr
