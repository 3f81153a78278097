"""lm-eval of an adapter in one line, and the lengths of what is generated for it."""

import importlib
import json
import math
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from conftest import ROOT
from shell_blocks import read_page

from unified import UnifiedForCausalLM
from unified.checkpoints.loading import load


@pytest.fixture(scope="module")
def plugin() -> ModuleType:
    pytest.importorskip("lm_eval", reason="pip install lm-eval brings it")
    return importlib.import_module("unified.evaluation.lm_eval_plugin")


@pytest.fixture
def lengths(monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """Number of ids of every answer that a model generates, without what fills a row up."""
    found: list[list[int]] = []
    generate = UnifiedForCausalLM.generate

    def counted(self: UnifiedForCausalLM, *given: Any, **settings: Any) -> Any:
        ids = generate(self, *given, **settings)
        asked = settings["input_ids"].shape[1]
        found.extend(row[asked:].tolist() for row in ids)
        return ids

    monkeypatch.setattr(UnifiedForCausalLM, "generate", counted)
    return found


def instance(kind: str, *arguments: Any) -> Any:
    return importlib.import_module("lm_eval.api.instance").Instance(
        request_type=kind, doc={}, arguments=arguments, idx=0
    )


def run(
    command: list[str], plugin: ModuleType, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> dict[str, dict[str, Any]]:
    """Results by task of the module's command."""
    monkeypatch.chdir(ROOT)  # the tasks name their data from there
    monkeypatch.setenv("HF_HOME", str(folder / "hf"))
    command = [*command, "--output_path", str(folder / "out")]
    monkeypatch.setattr(sys, "argv", ["lm_eval_plugin", *command])
    plugin.cli_evaluate()
    (path,) = (folder / "out").rglob("results_*.json")
    results: dict[str, Any] = json.loads(path.read_text())["results"]
    return results


def test_an_adapter_in_one_line(
    plugin: ModuleType,
    image_adapter: Path,
    lengths: list[list[int]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The README's own line, on another adapter and two questions of each task."""
    (line,) = [line for line in read_page(ROOT / "README.md").lines if plugin.__name__ in line.words]
    words = line.words[line.words.index(plugin.__name__) + 1 :]
    command = [word.replace("weights/scenes-smollm2", str(image_adapter)) for word in words]
    assert command != words and command[command.index("--include_path") + 1] == "eval/lm_eval_tasks"
    command += ["--device", "cpu", "--batch_size", "8", "--limit", "2"]
    results = run(command, plugin, tmp_path, monkeypatch)
    assert {"unified_answers", "unified_facts"} <= results.keys()
    assert 0 <= results["unified_answers"]["exact_match,answer"] <= 1
    assert len(lengths) == 2 and {len(row) for row in lengths} == {12}


@pytest.mark.parametrize("most", [1, 12, 300])
def test_answers_are_as_long_as_a_task_says_and_words_alone(
    most: int, plugin: ModuleType, toy_checkpoint: Path, lengths: list[list[int]], tmp_path: Path
) -> None:
    """Also where the model would rather draw."""
    model, processor = load(toy_checkpoint, device="cpu")
    with torch.no_grad():
        state = model.model(torch.tensor([processor.tokenizer("Draw")["input_ids"]])).last_hidden_state[0, -1]
        model.lm_head.weight[processor.boi_token_id] = 10 * state
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    scorer = plugin.UnifiedLM(str(tmp_path), device="cpu", batch_size=2, dtype="auto")
    settings = {"max_gen_toks": most, "until": ["\n\n\n"], "do_sample": False}
    texts = scorer.generate_until([instance("generate_until", words, settings) for words in ("Draw", "How many")])
    assert len(texts) == 2 and max(map(len, lengths)) == most and min(map(len, lengths)) >= 1
    assert all(token < model.config.boi_token_id for row in lengths for token in row)


def test_scores_are_those_of_the_merged_adapter(plugin: ModuleType, image_adapter: Path) -> None:
    model, processor = load(image_adapter, device="cpu")
    scorer = plugin.UnifiedLM(str(image_adapter), device="cpu")
    ((score, _),) = scorer.loglikelihood([instance("loglikelihood", "How many cats", " are there")])
    start, whole = (processor.tokenizer(text)["input_ids"] for text in ("How many cats", "How many cats are there"))
    with torch.no_grad():
        scores = model(torch.tensor([whole])).logits[0].log_softmax(dim=-1)
    expected = math.fsum(float(scores[place - 1, whole[place]]) for place in range(len(start), len(whole)))
    assert score == pytest.approx(expected, abs=1e-4)


def test_a_chat_is_asked_behind_the_prompt_that_was_trained(plugin: ModuleType, toy_checkpoint: Path) -> None:
    """As `--apply_chat_template` has it; `--system_instruction` puts a system message there itself."""
    _, processor = load(toy_checkpoint, device="cpu")
    scorer = plugin.UnifiedLM(str(toy_checkpoint), device="cpu")
    ask, own = {"role": "user", "content": "Hi"}, {"role": "system", "content": "Be brief."}
    for chat in ([ask], [own, ask]):
        asked = scorer.apply_chat_template(chat)
        assert scorer.tok_encode(asked, add_special_tokens=False) == processor.prompt_ids(chat)
    begun = scorer.apply_chat_template([ask, {"role": "assistant", "content": "It"}], add_generation_prompt=False)
    assert begun.endswith("It") and processor.system_prompt in begun


def test_what_it_cannot_honour_is_refused(
    plugin: ModuleType, toy_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ValueError, match="model_args parallelize, peft: nothing honours it; valid are pretrained"):
        plugin.UnifiedLM(str(toy_checkpoint), peft="x", parallelize=True)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="2 processes would each score everything"):
        plugin.UnifiedLM(str(toy_checkpoint))
