"""eval/language.py: a model compared with itself has not moved; one whose rows were disturbed has."""

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
from conftest import load_script
from toy_models import make_lively
from transformers import AutoModelForCausalLM, AutoTokenizer

from unified import UnifiedConfig
from unified.checkpoints.extension import join
from unified.data.rows import read_encoded_rows, write_encoded_shard
from unified.files.results import share_stderr
from unified.image_tokenizer.model import VQModel
from unified.models.processing import UnifiedProcessor

CHAT = [{"role": "user", "content": "Hello."}, {"role": "assistant", "content": "Hello to you."}]


@pytest.fixture(scope="module")
def language() -> ModuleType:
    return load_script("eval/language.py")


def test_kl_is_zero_until_the_language_moves(language: ModuleType, tiny_llm_dir: Path, tiny_vq: VQModel) -> None:
    base = AutoModelForCausalLM.from_pretrained(tiny_llm_dir).eval()
    tokenizer = AutoTokenizer.from_pretrained(tiny_llm_dir)
    tuned = join(AutoModelForCausalLM.from_pretrained(tiny_llm_dir), tiny_vq, tokenizer)
    processor = UnifiedProcessor.from_config(tokenizer, tuned.config)
    before, _ = language.compare(base, tuned, processor, CHAT)
    # what is left is the probability that the union gives to the new rows
    assert (before >= -1e-5).all()
    with torch.no_grad():
        tuned.get_input_embeddings().weight.add_(torch.randn(tuned.get_input_embeddings().weight.shape) * 0.5)
    after, _ = language.compare(base, tuned, processor, CHAT)
    assert after.mean() > before.mean() + 1e-3


def test_another_context_than_the_bases_shows(language: ModuleType, tiny_llm_dir: Path, tiny_vq: VQModel) -> None:
    """The base is prompted by its own tokenizer, so that a prompt it never saw is drift; in every turn."""
    base, backbone = (AutoModelForCausalLM.from_pretrained(tiny_llm_dir).eval() for _ in range(2))
    make_lively(base)
    backbone.load_state_dict(base.state_dict())
    own, tokenizer = (AutoTokenizer.from_pretrained(tiny_llm_dir) for _ in range(2))
    tuned = join(backbone, tiny_vq, tokenizer)
    processor = UnifiedProcessor.from_config(tokenizer, tuned.config)
    chat = [*CHAT, *CHAT]
    same, _ = language.compare(base, tuned, processor, chat, tokenizer=own)
    processor.chat_template = processor.chat_template.replace("<|im_start|>", "At last: <|im_start|>")
    moved, _ = language.compare(base, tuned, processor, chat, tokenizer=own)
    assert len(moved) == len(same) and moved.mean() > 1.01 * same.mean() and not torch.allclose(moved, same)


def write_chats(path: Path, *chats: list[dict]) -> Path:
    path.write_text("".join(json.dumps({"messages": chat}) + "\n" for chat in chats))
    return path


def test_the_result_says_what_was_compared(
    run_script: Callable[..., int], toy_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chats = write_chats(tmp_path / "chats.jsonl", CHAT, [*CHAT, *CHAT], CHAT)
    told = ["--llm", toy_checkpoint.parent / "llm", "--model", toy_checkpoint, "--chats", chats, "--limit", 2]
    assert run_script("eval/language.py", *told, "--out", tmp_path / "out" / "language.json") == 0
    result = json.loads(capsys.readouterr().out)
    assert result == json.loads((tmp_path / "out" / "language.json").read_text())
    assert (result["metric"], result["n"], result["model"]) == ("kl_per_token", 2, str(toy_checkpoint))
    # untrained: what moved is the mass of the new rows, of which there are fewer than old ones
    assert 0 < result["value"] < 1 and result["stderr"] < 0.1 and result["tokens"] > 2
    assert 0 <= result["first_token_agreement"] <= 1 and 0 <= result["greedy_agreement"] <= 1
    assert result["first_token_agreement_stderr"] == pytest.approx(share_stderr(result["first_token_agreement"], 2))
    assert result["config"]["limit"] == 2 and len(result["prompts_sha256"]) == 64 and result["seed"] is None
    assert result["tokenizer"] == UnifiedConfig.from_pretrained(toy_checkpoint).vq_fingerprint


def test_behind_an_image_the_same_tokens_are_compared(
    language: ModuleType,
    run_script: Callable[..., int],
    toy_checkpoint: Path,
    toy_rows: Callable[[str], Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """An image that is drawn, and one that is read; the base hears neither."""
    chats = write_chats(tmp_path / "chats.jsonl", CHAT, [{"role": "system", "content": "Sing."}, *CHAT])
    told = ["--llm", toy_checkpoint.parent / "llm", "--model", toy_checkpoint, "--chats", chats]
    found = []
    for flags in ([], ["--behind", toy_rows("da")]):
        assert run_script("eval/language.py", *told, *flags) == 0
        found.append(json.loads(capsys.readouterr().out))
    alone, behind = found
    assert (behind["n"], behind["tokens"]) == (alone["n"], alone["tokens"])
    assert behind["value"] > alone["value"] > 0  # of weights at random, which the pictures change
    other = tmp_path / "other.parquet"
    write_encoded_shard(other, read_encoded_rows(toy_rows("da")), "another", (1, 2))
    for flags, said in (
        (["--behind", toy_rows("d")], "has 1 rows for 2 chats; give more rows or a lower --limit"),
        (["--behind", other], "its codes are of tokenizer another but the model uses"),
    ):
        assert run_script("eval/language.py", *told, *flags) == 2 and said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("chats", "flags", "said"),
    [
        ([], [], "is empty; give at least one chat"),
        ([CHAT[:1]], [], "chats.jsonl:1 has pictures or tools, or does not end"),
        ([CHAT], ["--limit", 0], "--limit 0; give at least 1"),
        ([CHAT], ["--llm", "nowhere"], "--llm nowhere holds no causal LM of transformers (no config.json)"),
        ([CHAT], ["--llm", "weights/scenes-vq"], "(a model of type 'unified_vq'); give the folder of a text model"),
    ],
)
def test_bad_input_is_one_line(
    run_script: Callable[..., int],
    toy_checkpoint: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    chats: list[list[dict]],
    flags: list,
    said: str,
) -> None:
    path = write_chats(tmp_path / "chats.jsonl", *chats)
    told = ["--llm", toy_checkpoint.parent / "llm", "--model", toy_checkpoint, "--chats", path, *flags]
    assert run_script("eval/language.py", *told) == 2
    assert said in capsys.readouterr().err
