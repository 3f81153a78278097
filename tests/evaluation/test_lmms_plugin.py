"""lmms-eval's plug-in: its parts with a stand-in for the package, and the real package where it is installed."""

import importlib
import json
import sys
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
from conftest import ROOT
from PIL import Image

from unified.inference.batched_answers import answer

REAL = find_spec("lmms_eval") is not None
POPE = "Is there a cat in the image?\nAnswer the question using a single word or phrase."
PICTURE = Image.new("RGB", (64, 64), "red")


@pytest.fixture
def adapter(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The adapter's module, on what it uses of lmms-eval: the real one, or as little as this."""
    if not REAL:
        for name in ("lmms_eval", "lmms_eval.api", "lmms_eval.api.model", "lmms_eval.models"):
            monkeypatch.setitem(sys.modules, name, ModuleType(name))
        registry = ModuleType("lmms_eval.models.registry_v2")
        registry.ModelManifest = lambda model_id, **paths: SimpleNamespace(model_id=model_id, **paths)
        monkeypatch.setitem(sys.modules, registry.__name__, registry)
        sys.modules["lmms_eval.api.model"].lmms = StandIn
    module = importlib.import_module("unified.evaluation.lmms_plugin")
    if not REAL:
        del sys.modules[module.__name__]  # so that nobody else gets the one with the stand-in
    return module


class StandIn:
    """What `lmms_eval.api.model.lmms` gives its subclasses."""

    def __init__(self) -> None:
        self._rank, self._world_size, self.task_dict, self.cached = 0, 1, {}, []
        self.cache_hook = SimpleNamespace(add_partial=lambda *what: self.cached.append(what))
        self.rank = 0


def request(question: str, number: int = 0, **settings: object) -> SimpleNamespace:
    """As lmms-eval asks a chat model about row `number` of the split "test"."""

    def to_messages(row: dict) -> list[dict]:
        parts = [{"type": "image", "url": row["image"]}, {"type": "text", "text": question}]
        return [{"role": "user", "content": parts}]

    return SimpleNamespace(args=(question, to_messages, settings, number, "task", "test"))


def test_the_manifest_names_the_class(adapter: ModuleType) -> None:
    manifest = adapter.manifest()
    module, name = manifest.chat_class_path.rsplit(".", 1)
    assert (manifest.model_id, module) == ("unified", adapter.__name__)
    assert getattr(adapter, name).is_simple is False


def test_messages_keep_their_order_and_their_pictures(adapter: ModuleType, tmp_path: Path) -> None:
    PICTURE.save(tmp_path / "red.png")
    parts = [{"type": "text", "text": "This"}, {"type": "image", "url": str(tmp_path / "red.png")}]
    turns = [
        {"role": "system", "content": [{"type": "text", "text": "Be brief."}]},
        {"role": "user", "content": [*parts, {"type": "image", "url": PICTURE.convert("RGBA")}]},
    ]
    query = adapter.as_query(turns)
    assert [part["type"] for part in query.messages[1]["content"]] == ["text", "image", "image"]
    assert query.messages[0] == turns[0]
    assert [image.getpixel((0, 0)) for image in query.images] == [(255, 0, 0)] * 2


@pytest.mark.parametrize("part", [{"type": "video", "url": "a.mp4"}, {"type": "image", "url": b"bytes"}])
def test_what_cannot_be_read_is_refused(adapter: ModuleType, part: dict) -> None:
    with pytest.raises(ValueError, match="this model reads"):
        adapter.as_query([{"role": "user", "content": [part]}])


PENALTY = {"repetition_penalty": 1.2}


@pytest.mark.parametrize(
    "settings", [{"do_sample": True}, {"temperature": 0.2}, {"num_beams": 3}, PENALTY, {"seed": 5}]
)
def test_sampling_is_refused(adapter: ModuleType, settings: dict) -> None:
    with pytest.raises(ValueError, match="answers are plain and greedy|which nothing honours; leave it out"):
        adapter.check_greedy(settings)
    adapter.check_greedy({"do_sample": False, "temperature": 0.0, "num_beams": 1, "top_p": 1.0})
    adapter.check_greedy({"until": ["a"], "max_new_tokens": 3, "repetition_penalty": 1.0, "num_beams": None})


@pytest.mark.parametrize(
    ("text", "until", "left"),
    [
        ("Yes.", ["\n\n"], "Yes"),
        ("The dog is red.", None, "The dog is red."),
        ("one\n\ntwo.", ["\n\n"], "one"),
        ("a b STOP c STOP2", ["STOP2", "STOP"], "a b"),
        ("a b", "", "a b"),
    ],
)
def test_answers_end_at_the_first_stop_and_words_without_one(
    adapter: ModuleType, text: str, until: str | list[str] | None, left: str
) -> None:
    assert adapter.shorten(text, until) == left


def test_answers_are_the_models_in_the_order_of_the_requests(adapter: ModuleType, toy_checkpoint: Path) -> None:
    asked = adapter.UnifiedChat(str(toy_checkpoint), batch_size="2", device="cpu")
    asked.task_dict["task"] = {"test": [{"image": PICTURE}, {"image": Image.new("RGB", (16, 16), "blue")}]}
    questions = [(POPE, 0, 4), ("What is this?", 1, 7), ("Hello", 0, 4), (POPE, 1, 4)]
    requests = [request(text, number, max_new_tokens=most) for text, number, most in questions]
    found = asked.generate_until(requests)
    for one, text, (_, _, most) in zip(requests, found, questions, strict=True):
        query = adapter.as_query(one.args[1](asked.task_dict["task"]["test"][one.args[3]]))
        assert text == adapter.shorten(answer(asked.model, asked.processor, [query], most)[0], None)
    with pytest.raises(ValueError, match="greedy"):
        asked.generate_until([*requests, request("Hello", do_sample=True)])
    with pytest.raises(ValueError, match="likelihood"):
        asked.loglikelihood(requests)


@pytest.mark.parametrize("settings", [{"batch_size": "auto"}, {"max_batch_size": 64}])
def test_batch_sizes_are_numbers(adapter: ModuleType, toy_checkpoint: Path, settings: dict) -> None:
    with pytest.raises(ValueError, match="give a batch_size alone"):
        adapter.UnifiedChat(str(toy_checkpoint), **settings)


# --- the real package


POPE_TASK = """
include: {pope}
task: local_pope
dataset_path: parquet
dataset_kwargs: {{data_files: {{test: {rows}}}}}
"""


@pytest.fixture
def lmms_eval(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    """The installed package, with its caches in a folder of the test's, at the repository's root."""
    module = pytest.importorskip("lmms_eval.evaluator", reason="lmms-eval has an environment of its own")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.chdir(ROOT)
    return module


def test_lmms_eval_finds_the_plug_in(lmms_eval: ModuleType) -> None:
    models = importlib.import_module("lmms_eval.models")
    assert models.get_model("unified").__name__ == "UnifiedChat"


def run(lmms_eval: ModuleType, checkpoint: Path, task: str, include: Path) -> dict:
    """Results of `lmms-eval --model unified --tasks TASK --include_path INCLUDE`."""
    tasks = importlib.import_module("lmms_eval.tasks").TaskManager(include_path=str(include), model_name="unified")
    arguments = {"model": "unified", "model_args": f"pretrained={checkpoint}", "batch_size": 8, "device": "cpu"}
    return lmms_eval.simple_evaluate(**arguments, tasks=[task], task_manager=tasks, log_samples=True)


def test_the_local_task_on_scenes_runs(lmms_eval: ModuleType, toy_checkpoint: Path) -> None:
    results = run(lmms_eval, toy_checkpoint, "scenes_vqa", ROOT / "eval" / "lmms")
    assert 0 <= results["results"]["scenes_vqa"]["exact_match,none"] <= 1
    samples = results["samples"]["scenes_vqa"]
    assert len(samples) == 42 and {sample["target"] for sample in samples} >= {"yes", "no", "three"}


def test_pope_itself_runs_on_rows_of_its_form(
    lmms_eval: ModuleType, toy_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from datasets import Dataset, Features, Value
    from datasets import Image as ImageColumn

    columns = {name: Value("string") for name in ("question_id", "question", "answer", "category")}
    rows = [
        {"question_id": str(number), "question": "Is there a cat?", "answer": truth, "category": "random"}
        for number, truth in enumerate(["yes", "no", "yes", "no"])
    ]
    features = Features({**columns, "image": ImageColumn()})
    shown = [row | {"image": PICTURE} for row in rows]
    Dataset.from_list(shown, features=features).to_parquet(tmp_path / "pope.parquet")
    (tmp_path / "tasks").mkdir()
    pope = Path(lmms_eval.__file__).parent / "tasks" / "pope" / "pope.yaml"
    (tmp_path / "tasks" / "pope.yaml").write_text(POPE_TASK.format(pope=pope, rows=tmp_path / "pope.parquet"))
    adapter = importlib.import_module("unified.evaluation.lmms_plugin")
    monkeypatch.setattr(adapter, "answer", lambda model, processor, queries, most: ["Yes."] * len(queries))
    scores = run(lmms_eval, toy_checkpoint, "local_pope", tmp_path / "tasks")["results"]["local_pope"]
    assert scores["pope_accuracy,none"] == 0.5 and scores["pope_recall,none"] == 1.0
    assert json.dumps(scores["pope_yes_ratio,none"])
