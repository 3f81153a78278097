"""The shape of the code: who may import whom, how long things may be, and that every configuration can be read."""

import ast
import importlib
import re
import statistics
import tomllib
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
from accelerate.commands.config.config_args import load_config_from_file
from conftest import load_script
from transformers import TrainingArguments

from unified.arguments import parse

ROOT = Path(__file__).parent.parent
OUTER = ("recipes", "data_prep", "eval", "tests")
SCRIPTS = [path for folder in OUTER[:3] for path in sorted((ROOT / folder).glob("*.py")) if path.stem != "__init__"]
ROOMS = {path.stem: path for path in sorted((ROOT / "unified").glob("*.py")) if path.stem != "__init__"}
SOURCES = [*ROOMS.values(), *SCRIPTS, *sorted((ROOT / "tests").glob("*.py"))]
RUNS = sorted((ROOT / "recipes" / "configs").rglob("*.yaml"))
LAUNCHES = sorted((ROOT / "recipes" / "accelerate_configs").glob("*.yaml"))

# What a room may import of ours; `cli` may import anything and nothing imports it.
ALLOWED = {
    # pure functions and dataclasses: nothing of ours
    **{room: "" for room in ("scales", "vocabulary", "sampling", "metrics", "arguments", "messages")},
    **{room: "" for room in ("auto_classes", "files", "inception", "leaving", "mixtures", "page")},
    **{room: "" for room in ("power_law", "training_log", "diversity", "precision", "token_rows")},
    "glyphs": "",
    "jsonl": "",
    "steps": "files training_log",
    "pictures": "files",
    "vq_data": "pictures",
    # data on disk and what Scenes say
    "rows": "jsonl scales",
    "scenes": "glyphs metrics",
    "scene_texts": "scenes",
    "arrangement": "scenes",
    "new_objects": "arrangement glyphs scenes",
    # the image tokenizer
    "configuration": "auto_classes scales vocabulary",
    "quantizer": "scales",
    "vq_layers": "configuration",
    "vq_model": "configuration quantizer scales vq_layers",
    "vq_losses": "scales",
    "averaged_run": "arguments",
    # the model
    "attention": "precision",
    "image_lora": "precision",
    "losses": "precision token_rows vocabulary",
    "layout": "configuration scales",
    "image_embedding": "configuration scales",
    "generation": "configuration layout losses sampling scales vocabulary",
    "modeling": "attention configuration generation image_embedding image_lora layout losses quantizer scales "
    "token_rows vocabulary vq_model",
    # chats and training rows: never the model
    "processing": "configuration messages pictures scales vocabulary",
    "packing": "processing",
    "data": "configuration messages packing processing rows vocabulary",
    # what uses a whole model
    "extension": "configuration image_embedding loading modeling processing vocabulary vq_model",
    "adapters": "configuration image_lora",
    "loading": "adapters configuration modeling processing vq_model",
    "drawing": "generation modeling pictures processing sampling",
    "chat": "generation layout messages modeling pictures processing",
    "showing": "chat drawing files glyphs new_objects page pictures scenes",
    "speed": "modeling results",
    "fast_layers": "modeling",
    "modality": "modeling processing vocabulary",
    "tuning": "adapters arguments image_lora loading modeling",
    "self_correction": "configuration loading modeling quantizer scales vq_model",
    "trainer": "adapters arguments drawing generation loading modeling pictures processing self_correction",
    "answering": "files layout messages modeling processing",
    "variants": "drawing generation layout modeling processing",
    "preferences": "configuration data jsonl messages processing rows scales",
    # what scores
    "claims": "scene_texts scenes",
    "understanding": "arrangement claims metrics scene_texts scenes",
    "lmms_adapter": "answering loading pictures",
    "scorers": "detections jsonl messages metrics preferences",
    "detector": "pictures vq_layers",
    "detector_data": "arrangement detector scales scenes vq_model",
    "detector_ceilings": "arrangement detector metrics pictures scenes vq_model",
    "nearest_object": "new_objects scenes",
    "coco_detector": "loading metrics",
    "detections": "coco_detector detector files loading",
    "report": "files jsonl page",
    "teach_page": "page",
    "results": "files",
    "geneval_files": "jsonl metrics",
    "geneval_prompts": "scenes",
}


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


def test_every_room_has_its_arrows_and_they_make_no_circle() -> None:
    assert set(ROOMS) == {*ALLOWED, "cli"}, "a new room: give it a line in ALLOWED"
    tuple(TopologicalSorter({room: arrows.split() for room, arrows in ALLOWED.items()}).static_order())


@pytest.mark.parametrize("room", ROOMS)
def test_rooms_import_what_they_may(room: str) -> None:
    modules = imports(ROOMS[room])
    ours = {module.split(".")[1] for module in modules if module.startswith("unified.")}
    assert ours <= (set(ROOMS) if room == "cli" else set(ALLOWED[room].split()))
    assert "cli" not in ours and "unified" not in modules  # the package itself imports the rooms: a circle
    assert not [module for module in modules if module.startswith(".") or module.split(".")[0] in OUTER]


@pytest.mark.parametrize("path", SCRIPTS, ids=name)
def test_scripts_import_the_package_and_no_neighbour(path: Path) -> None:
    modules = imports(path)
    neighbours = {script.stem for script in SCRIPTS} | set(OUTER)
    assert not [module for module in modules if module.startswith(".") or module.split(".")[0] in neighbours]
    assert "unified.cli" not in modules


@pytest.mark.parametrize("folder", OUTER[:3])
def test_script_folders_are_no_packages(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT)
    with pytest.raises(ModuleNotFoundError, match="run these as scripts"):
        importlib.import_module(folder)
    packaged = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]["find"][
        "include"
    ]
    assert packaged == ["unified*"]


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_sizes(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 350
    assert {function: lines for function, lines in functions(path).items() if lines > 60} == {}


def test_functions_are_short_in_the_middle() -> None:
    lines = [count for path in ROOMS.values() for count in functions(path).values()]
    assert statistics.median(lines) <= 12


@pytest.mark.parametrize("room", ROOMS)
def test_rooms_do_not_print_and_leave_offsets_alone(room: str) -> None:
    for node in ast.walk(ast.parse(ROOMS[room].read_text(encoding="utf-8"))):
        assert not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print")
        sides: list[ast.expr] = []
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add | ast.Sub):
            sides = [node.left, node.right]
        elif isinstance(node, ast.AugAssign) and isinstance(node.op, ast.Add | ast.Sub):
            sides = [node.target, node.value]
        names = {side.attr if isinstance(side, ast.Attribute) else ast.unparse(side) for side in sides}
        assert room == "vocabulary" or "image_token_offset" not in names, f"line {node.lineno}: use Vocabulary"


@pytest.mark.parametrize("path", RUNS, ids=name)
def test_runs_parse_with_the_recipe_their_header_launches(path: Path) -> None:
    header = "".join(re.findall(r"^#(.*\n)", path.read_text(encoding="utf-8"), re.MULTILINE))
    launches = re.findall(r"(recipes/\w+\.py)[\s\\]+--config\s+(\S+)", header)
    recipes = [recipe for recipe, config in launches if config == name(path)]
    assert recipes, "the header must hold the file's own launch line"
    call = re.search(r"parse\(\(([\w, ]+)\)", (ROOT / recipes[0]).read_text(encoding="utf-8"))
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
