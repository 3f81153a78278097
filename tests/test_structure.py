"""The shape of the code: who may import whom, how long things may be, and that every configuration can be read."""

import ast
import importlib
import re
import statistics
import subprocess
import tomllib
from collections import Counter
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
from accelerate.commands.config.config_args import load_config_from_file
from conftest import load_script
from transformers import TrainingArguments

from unified.arguments.parser import parse

ROOT = Path(__file__).parent.parent
OUTER = ("recipes", "data_prep", "eval", "tests")
SCRIPTS = [path for folder in OUTER[:3] for path in sorted((ROOT / folder).glob("*.py")) if path.stem != "__init__"]
PACKAGES = sorted(path.parent.name for path in (ROOT / "unified").glob("*/__init__.py"))
MODULES = [path for path in sorted((ROOT / "unified").glob("*/*.py")) if path.stem != "__init__"]
SOURCES = [*MODULES, *SCRIPTS, *sorted((ROOT / "tests").rglob("*.py"))]
RUNS = sorted((ROOT / "recipes" / "configs").rglob("*.yaml"))
LAUNCHES = sorted((ROOT / "recipes" / "accelerate_configs").glob("*.yaml"))

# What a package may import of ours, from the bottom up; `cli` may import anything and nothing imports it.
ARROWS = {
    "hardware": "",
    "files": "hardware",
    "arguments": "files hardware",
    "image_tokenizer": "files hardware",
    "models": "files hardware image_tokenizer",
    "checkpoints": "arguments files hardware image_tokenizer models",
    "data": "arguments files image_tokenizer models",
    "inference": "arguments files models",
    "training": "arguments checkpoints data files hardware image_tokenizer inference models",
    "evaluation": "arguments checkpoints data files hardware image_tokenizer inference models",
    "scenes": "arguments data evaluation files image_tokenizer training",
    "serving": "files image_tokenizer inference models",
    "reports": "arguments checkpoints data evaluation files hardware image_tokenizer inference models scenes training",
}

# what lies at the root of the repository
FOLDERS = {".ci", "data_prep", "docs", "eval", "recipes", "tests", "unified", "weights"}
FILES = {".gitignore", ".pre-commit-config.yaml", "CHANGELOG.md", "CITATION.cff", "CONTRIBUTING.md", "LICENSE"}
FILES |= {"MANIFEST.in", "Makefile", "README.md", "THIRD_PARTY.md", "constraints.txt", "pyproject.toml", "setup.py"}
FILES |= {"zensical.toml"}
POSIX = {"fcntl", "grp", "pty", "pwd", "resource", "termios", "tty"}


def imports(path: Path) -> list[str]:
    """Full names of the modules a file imports, anywhere in it; `from a import b` gives `a`."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            found.append("." * node.level + (node.module or ""))
    return found


def functions(path: Path) -> dict[str, int]:
    """Lines of every function of a file."""
    nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    return {f"{path.stem}.{n.name}:{n.lineno}": n.end_lineno - n.lineno + 1 for n in nodes if isinstance(n, kinds)}


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def arrows(package: str) -> set[str]:
    """Packages of ours that a package imports."""
    found = {module for path in (ROOT / "unified" / package).glob("*.py") for module in imports(path)}
    return {module.split(".")[1] for module in found if module.startswith("unified.")} - {package}


def test_the_root_holds_packages_only_and_they_make_no_circle() -> None:
    assert [path.name for path in (ROOT / "unified").glob("*.py")] == ["__init__.py"]
    assert {*PACKAGES} == {*ARROWS, "cli"}, "a new package: give it a line in ARROWS"
    order = TopologicalSorter({package: allowed.split() for package, allowed in ARROWS.items()})
    tuple(order.static_order())


@pytest.mark.parametrize("package", ARROWS)
def test_packages_import_what_they_may_and_may_what_they_import(package: str) -> None:
    assert arrows(package) == set(ARROWS[package].split()), "forbidden arrows, or permissions that nothing uses"


@pytest.mark.parametrize("path", MODULES, ids=name)
def test_modules_import_whole_names_and_nothing_outside(path: Path) -> None:
    modules = imports(path)
    assert not [module for module in modules if module.startswith(".") or module.split(".")[0] in OUTER]
    assert "unified" not in modules  # the package itself imports its rooms: a circle


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_says_what_it_is_for_and_names_all_its_modules(package: str) -> None:
    module = importlib.import_module(f"unified.{package}")
    inside = {path.stem for path in MODULES if path.parent.name == package} - {"__main__"}
    assert set(module.__all__) == inside
    listed = re.findall(r"^(\w+)  +\S", module.__doc__, re.MULTILINE)
    assert sorted(listed) == sorted(inside), "one line a module"


@pytest.mark.parametrize("path", SCRIPTS, ids=name)
def test_scripts_import_the_package_and_no_neighbour(path: Path) -> None:
    modules = imports(path)
    neighbours = {script.stem for script in SCRIPTS} | set(OUTER)
    assert not [module for module in modules if module.startswith(".") or module.split(".")[0] in neighbours]
    assert not [module for module in modules if module.startswith("unified.cli")]


@pytest.mark.parametrize("folder", OUTER[:3])
def test_script_folders_are_no_packages(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT)
    with pytest.raises(ModuleNotFoundError, match="run these as scripts"):
        importlib.import_module(folder)
    packaged = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]["find"][
        "include"
    ]
    assert packaged == ["unified*"]


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="git knows what is tracked, and this is no clone")
def test_nothing_else_is_tracked_at_the_root() -> None:
    """Such as what a test wrote into the current folder."""
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    places = [path.split("/", 1) for path in listed.splitlines()]
    assert {place[0] for place in places if len(place) == 2} == FOLDERS
    assert {place[0] for place in places if len(place) == 1} == FILES


def test_test_files_have_names_of_their_own() -> None:
    """`pytest -k NAME` and messages name one file, and helpers of tests are imported by these names."""
    names = Counter(path.name for path in (ROOT / "tests").rglob("*.py"))
    assert [file for file, count in names.items() if count > 1] == []


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_sizes(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 350
    assert {function: lines for function, lines in functions(path).items() if lines > 60} == {}


def test_functions_are_short_in_the_middle() -> None:
    lines = [count for path in MODULES for count in functions(path).values()]
    assert statistics.median(lines) <= 12


@pytest.mark.parametrize("path", MODULES, ids=name)
def test_modules_do_not_print_and_leave_offsets_alone(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        assert not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print")
        sides: list[ast.expr] = []
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add | ast.Sub):
            sides = [node.left, node.right]
        elif isinstance(node, ast.AugAssign) and isinstance(node.op, ast.Add | ast.Sub):
            sides = [node.target, node.value]
        names = {side.attr if isinstance(side, ast.Attribute) else ast.unparse(side) for side in sides}
        assert path.stem == "vocabulary" or "image_token_offset" not in names, f"line {node.lineno}: use Vocabulary"


@pytest.mark.parametrize("path", [*MODULES, *SCRIPTS], ids=name)
def test_one_module_gives_files_their_names(path: Path) -> None:
    calls = [
        ast.unparse(n.func) for n in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(n, ast.Call)
    ]
    renames = re.compile(r"os\.(replace|renames?)|shutil\.move|.*\.rename|(tempfile\.)?(mk[sd]temp|\w*Temporary\w+)")
    found = [call for call in calls if renames.fullmatch(call)]
    assert not found or name(path) == "unified/files/atomic.py", f"{found}: let unified.files.atomic do it"


@pytest.mark.parametrize("path", RUNS, ids=name)
def test_runs_parse_with_the_recipe_their_header_launches(path: Path) -> None:
    header = "".join(re.findall(r"^#(.*\n)", path.read_text(encoding="utf-8"), re.MULTILINE))
    launches = re.findall(r"(recipes/\w+\.py)[\s\\]+--config\s+(\S+)", header)
    recipes = [recipe for recipe, config in launches if config == name(path)]
    assert recipes, "the header must hold the file's own launch line"
    call = re.search(r"parse\(\s*\(([\w, ]+)\)", (ROOT / recipes[0]).read_text(encoding="utf-8"))
    assert call, "a recipe reads its dataclasses with parse((A, B, ...))"
    types = tuple(vars(load_script(recipes[0]))[word] for word in re.findall(r"\w+", call[1]))
    on_a_cpu = ["--bf16", "False"] if any(issubclass(kind, TrainingArguments) for kind in types) else []
    parse(types, ["--config", str(path), *on_a_cpu])


@pytest.mark.parametrize("path", LAUNCHES, ids=name)
def test_launch_configurations_load(path: Path) -> None:
    config = load_config_from_file(str(path))
    text = path.read_text(encoding="utf-8")
    assert f"--config_file {name(path)}" in text
    if config.deepspeed_config:
        assert f"zero{config.deepspeed_config['zero_stage']}" in path.stem
        # a number here and another in the run's YAML is an error of DeepSpeed's
        assert config.deepspeed_config["gradient_accumulation_steps"] == "auto"
    assert config.num_processes % config.num_machines == 0
    assert config.gpu_ids in (None, "all")  # a number would win over CUDA_VISIBLE_DEVICES


@pytest.mark.parametrize("path", MODULES, ids=name)
def test_the_library_opens_no_file_beside_it_and_its_messages_name_those_that_exist(path: Path) -> None:
    beside = rf"(?:{'|'.join(OUTER)})/[\w/.-]*\w"
    tree = ast.parse(path.read_text(encoding="utf-8"))
    lone = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}  # docstrings
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in lone:
            assert not re.fullmatch(beside, node.value), f"line {node.lineno}: take the path as an argument"
            for named in re.findall(beside, node.value):
                assert (ROOT / named).exists(), f"line {node.lineno}: there is no {named}"


@pytest.mark.parametrize("path", [*MODULES, *SCRIPTS], ids=lambda path: str(path.relative_to(ROOT)))
def test_what_only_linux_and_macos_have_is_imported_where_it_is_used(path: Path) -> None:
    imports = [node for node in ast.parse(path.read_text(encoding="utf-8")).body if isinstance(node, ast.Import)]
    assert not {name.name for node in imports for name in node.names} & POSIX, f"{path}: does not load on Windows"


@pytest.mark.parametrize("path", [*MODULES, *SCRIPTS], ids=name)
def test_text_is_utf_8_on_every_system(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Call):
            continue
        words = {word.arg: ast.unparse(word.value) for word in node.keywords}
        called = node.func.attr if isinstance(node.func, ast.Attribute) else ast.unparse(node.func)
        opens_text = (
            isinstance(node.func, ast.Name)
            and called == "open"
            and "b" not in "".join(map(ast.unparse, node.args[1:2]))
        )
        reads = isinstance(node.func, ast.Attribute) and called in ("read_text", "write_text")
        if reads or opens_text or words.get("text") == "True":
            assert "encoding" in words, f"line {node.lineno}: Windows would take its own encoding"
