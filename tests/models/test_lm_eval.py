"""EleutherAI's lm-eval scores a checkpoint as any Hugging Face model, with its unpatched code.

The first tests need no lm-eval: programs that never import this package find its classes through HF's Auto classes.
"""

import importlib
import json
import math
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from conftest import ROOT
from transformers import AutoModelForCausalLM, AutoTokenizer

from unified import UnifiedForCausalLM
from unified.models.remote_code import AUTO_MAP, MODULE, SOURCE

TASKS = ROOT / "eval" / "lm_eval_tasks"
AUTO_CLASSES_SCRIPT = """
import sys
from transformers import AutoConfig, AutoModelForCausalLM, AutoProcessor, AutoTokenizer
assert "unified" not in sys.modules
folder = sys.argv[1]
try:
    AutoConfig.from_pretrained(folder)
except ValueError as error:
    assert "trust_remote_code=True" in str(error)
try:
    AutoProcessor.from_pretrained(sys.argv[2])
    raise SystemExit("a processor without trust_remote_code")
except ValueError as error:
    assert "trust_remote_code=True" in str(error)
assert type(AutoProcessor.from_pretrained(sys.argv[2], trust_remote_code=True)).__name__ == "UnifiedProcessor"
model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
from unified import UnifiedForCausalLM, UnifiedProcessor
assert type(model) is UnifiedForCausalLM and len(AutoTokenizer.from_pretrained(folder))
assert type(AutoProcessor.from_pretrained(folder, trust_remote_code=True)) is UnifiedProcessor
"""


def test_auto_classes_find_the_model_of_a_checkpoint_and_the_shipped_processor(
    toy_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    command = [sys.executable, "-c", AUTO_CLASSES_SCRIPT, str(toy_checkpoint), str(ROOT / "weights/scenes-smollm2")]
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stderr


def test_every_save_writes_the_remote_code_module(toy_checkpoint: Path, tmp_path: Path) -> None:
    UnifiedForCausalLM.from_pretrained(toy_checkpoint).save_pretrained(tmp_path)
    for folder in (toy_checkpoint, tmp_path):
        assert json.loads((folder / "config.json").read_text())["auto_map"] == AUTO_MAP
        assert (folder / f"{MODULE}.py").read_text() == SOURCE


def test_auto_map_names_classes_that_exist() -> None:
    package = importlib.import_module("unified")
    for name in AUTO_MAP.values():
        module, class_name = name.split(".")
        assert module == MODULE and class_name in SOURCE and hasattr(package, class_name)


# --- the real package


@pytest.fixture(scope="module")
def lm_eval() -> ModuleType:
    return pytest.importorskip("lm_eval", reason="pip install lm-eval brings it")


@pytest.fixture
def scorer(lm_eval: ModuleType, toy_checkpoint: Path) -> object:
    """lm-eval's model of the checkpoint, made as its command line makes it."""
    registry = importlib.import_module("lm_eval.api.registry")
    arguments = f"pretrained={toy_checkpoint},trust_remote_code=True"
    return registry.get_model("hf").create_from_arg_string(arguments, {"batch_size": 3, "device": "cpu"})


def log_likelihood(model: torch.nn.Module, context: list[int], continuation: list[int]) -> float:
    """Sum of log p of the continuation's tokens, by one plain forward."""
    ids = torch.tensor([context + continuation])
    with torch.no_grad():
        scores = model(ids).logits[0].float().log_softmax(dim=-1)
    return sum(float(scores[len(context) + i - 1, token]) for i, token in enumerate(continuation))


def test_log_likelihoods_are_our_own(scorer: object, toy_checkpoint: Path) -> None:
    model = UnifiedForCausalLM.from_pretrained(toy_checkpoint).eval()
    pairs = [("What is the capital of France?", " Paris"), ("How many cats", " are there? three cats"), ("A", " dog")]
    instances = [instance("loglikelihood", pair) for pair in pairs]
    for (context, continuation), (score, _) in zip(pairs, scorer.loglikelihood(instances), strict=True):
        whole, start = scorer.tok_encode(context + continuation), scorer.tok_encode(context)
        assert whole[: len(start)] == start
        assert score == pytest.approx(log_likelihood(model, start, whole[len(start) :]), abs=1e-4)


def instance(kind: str, arguments: tuple[str, ...]) -> object:
    module = importlib.import_module("lm_eval.api.instance")
    return module.Instance(request_type=kind, doc={}, arguments=arguments, idx=0)


def test_an_extended_model_scores_as_its_base_but_for_the_mass_of_its_codes(
    scorer: object, toy_checkpoint: Path
) -> None:
    """New rows are like the mean row, so the union's share of them is what the score loses, and nothing else."""
    base = AutoModelForCausalLM.from_pretrained(toy_checkpoint.parent / "llm").eval()
    extended = UnifiedForCausalLM.from_pretrained(toy_checkpoint).eval()
    text = "The capital of France is Paris. There are three cats and one bird."
    (score,) = scorer.loglikelihood_rolling([instance("loglikelihood_rolling", (text,))])
    ids = AutoTokenizer.from_pretrained(toy_checkpoint.parent / "llm")(text)["input_ids"]
    expected = log_likelihood(base, [scorer.prefix_token_id], ids)
    with torch.no_grad():
        scores = extended(torch.tensor([[scorer.prefix_token_id, *ids]])).logits[0, :-1].float().softmax(dim=-1)
    kept = scores[:, : base.config.vocab_size].sum(dim=-1).log().sum()
    assert score == pytest.approx(expected + float(kept), abs=1e-3)
    assert 0 < -float(kept) / len(ids) < math.log(extended.config.vocabulary.size / base.config.vocab_size) + 0.05


def test_its_command_scores_our_tasks(
    lm_eval: ModuleType, toy_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)  # the tasks name their data from there
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    model_args = f"pretrained={toy_checkpoint},trust_remote_code=True"
    command = ["--model", "hf", "--model_args", model_args, "--device", "cpu", "--batch_size", "8"]
    command += ["--tasks", "unified_facts,unified_perplexity", "--include_path", str(TASKS)]
    monkeypatch.setattr(sys, "argv", ["lm_eval", *command, "--output_path", str(tmp_path / "out")])
    importlib.import_module("lm_eval.__main__").cli_evaluate()
    (path,) = (tmp_path / "out").rglob("results_*.json")
    results = json.loads(path.read_text())
    assert results["n-samples"]["unified_facts"]["effective"] == 24
    assert 0 <= results["results"]["unified_facts"]["acc,none"] <= 1
    assert results["results"]["unified_perplexity"]["byte_perplexity,none"] > 1
