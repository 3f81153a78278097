"""recipes/calibrate_image_start.py: text or image next is predicted as well as those states allow."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import load_script
from safetensors.torch import load_file
from tolerances import assert_sums_agree

from unified import UnifiedForCausalLM, UnifiedProcessor
from unified.checkpoints.adapters import ADAPTER_WEIGHTS
from unified.checkpoints.loading import load
from unified.data.chat_dataset import ChatDataset, SFTCollator, load_encoded_rows
from unified.data.rows import read_encoded_rows, write_encoded_shard
from unified.data.shard_metadata import read_encoded_metadata
from unified.models.vocabulary import Vocabulary
from unified.training.image_start import (
    CODE,
    DECISION_GROUPS,
    TEXT,
    ModalityDecisions,
    calibrate,
    collect_decisions,
    shift_rows,
)

SCRIPT = "recipes/calibrate_image_start.py"
output_rows = vars(load_script(SCRIPT))["output_rows"]
TEXTS = [[{"role": "user", "content": "Hello."}, {"role": "assistant", "content": "Hello to you."}]] * 6


def planted(n: int = 300) -> ModalityDecisions:
    """Words where the first coordinate is positive, codes elsewhere; the logits do not know it."""
    states = torch.randn(n, 8, generator=torch.Generator().manual_seed(0)).double()
    kinds = torch.where(states[:, 0] > 0, TEXT, CODE)
    return ModalityDecisions(states, torch.zeros(n, 5).double(), kinds, torch.where(kinds == TEXT, 1, 2))


def test_what_can_be_told_apart_is_told_apart() -> None:
    decisions = planted()
    before, after = decisions.losses(), decisions.losses(calibrate(decisions, 1e-4))
    assert before[1:3].tolist() == pytest.approx([torch.tensor(5.0).log().item()] * 2)
    assert before[[0, 3]].isnan().all()
    assert (after[1:3] < 0.2).all()
    weak = calibrate(decisions, 10.0)
    assert weak.norm() < calibrate(decisions, 1e-4).norm() / 10


def test_it_is_the_least() -> None:
    decisions, strength = planted(), 0.1
    shifts = calibrate(decisions, strength)

    def value(shifts: torch.Tensor) -> float:
        return float(decisions.losses(shifts).nan_to_num(0).sum() + strength * shifts.square().sum())

    noise = torch.Generator().manual_seed(1)
    for _ in range(20):
        assert value(shifts + 0.05 * torch.randn(4, 8, generator=noise)) > value(shifts)


def test_rows_move_by_their_kind() -> None:
    vocabulary = Vocabulary(64, 3, 10, 11, 12)
    shifts = torch.arange(1.0, 5).double()[:, None].expand(4, 2)
    moved = shift_rows(torch.zeros(5, 2), [10, 11, 12, 64, 66], shifts, vocabulary)
    assert moved[:, 0].tolist() == [2, 3, 4, 1, 1]
    moved = shift_rows(torch.zeros(2, 2), [65, 9], shifts, vocabulary)
    assert moved[:, 0].tolist() == [1, 0]


def read(adapter: Path, rows: Path) -> tuple[UnifiedForCausalLM, UnifiedProcessor, dict[str, torch.Tensor]]:
    """Model, processor, and all rows of a file as one batch."""
    model, processor = load(adapter, device="cpu", dtype="float32")
    data = ChatDataset(load_encoded_rows([str(rows)], model.config), processor)
    return model, processor, SFTCollator(processor, 512, pack=False)([data[place] for place in range(len(data))])


def decisions_of(adapter: Path, rows: Path) -> ModalityDecisions:
    model, processor, batch = read(adapter, rows)
    return collect_decisions(model, processor.vocabulary, batch)


def test_capped_logits_are_refused(image_adapter: Path, toy_rows: Callable[[str], Path]) -> None:
    model, processor, batch = read(image_adapter, toy_rows("dt"))
    model.config.text_config.final_logit_softcapping = 30.0
    with pytest.raises(ValueError, match=r"caps its logits at 30.*keep the adapter"):
        collect_decisions(model, processor.vocabulary, batch)


def test_decisions_are_the_models_own(image_adapter: Path, toy_rows: Callable[[str], Path]) -> None:
    model, processor, batch = read(image_adapter, toy_rows("ddat"))
    found = collect_decisions(model, processor.vocabulary, batch)
    given = {name: batch[name] for name in ("input_ids", "attention_mask", "image_codes")}
    logits = model(**given).logits[:, :-1][batch["labels"][:, 1:] != -100]
    whole = found.logits.logsumexp(dim=1)
    torch.testing.assert_close(whole.float(), logits.logsumexp(dim=1), atol=1e-4, rtol=1e-4)
    drawn = int((found.kinds == CODE).sum())
    assert drawn == 2 * processor.image_length
    # two answers in words; two pictures, whose ends have no label in scale order; their starts
    assert [int((found.groups == group).sum()) for group in (0, 2, 3)] == [2, drawn, 2]


@pytest.mark.parametrize(
    ("rows", "found"),
    [
        ({"lm_head": [7, 8], "embed_tokens": [5]}, ("lm_head", [7, 8])),
        ({"embed_tokens": [5]}, ("embed_tokens", [5])),
        ({"wte": [5]}, ("wte", [5])),
        (None, None),
        ({}, None),
    ],
)
def test_the_matrix_is_the_one_that_an_adapter_trains(rows: Any, found: Any, tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "trainable_token_indices": rows}))
    if found is not None:
        assert output_rows(tmp_path) == found
        return
    with pytest.raises(ValueError, match="trains no rows of tokens.* give an adapter of sft.py"):
        output_rows(tmp_path)


def weigh(row: dict[str, Any]) -> dict[str, Any]:
    answered = [turn | {"weight": 1} if turn["role"] == "assistant" else turn for turn in row["messages"]]
    return row | {"messages": answered}


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    path = tmp_path / "texts.jsonl"
    path.write_text("".join(json.dumps({"messages": chat}) + "\n" for chat in TEXTS))
    return path


def test_words_come_sooner_and_pictures_stay(
    run_script: Callable[..., int],
    image_adapter: Path,
    toy_rows: Callable[[str], Path],
    texts: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out, images = tmp_path / "calibrated", toy_rows("dddddaad")
    weighed = [weigh(row) for row in read_encoded_rows(images)]  # the same with more columns
    stamp = read_encoded_metadata(images)
    write_encoded_shard(tmp_path / "weighed.parquet", weighed, *stamp)
    both = [images, tmp_path / "weighed.parquet"]
    told = ["--model", image_adapter, "--out", out, "--texts", texts, "--images", *both, "--device", "cpu"]
    assert run_script(SCRIPT, *told, "--batch_size", 3, "--strength", 1e-6) == 0
    record = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert set(record) == {"fitted", "held_back"} and set(record["fitted"]) <= set(DECISION_GROUPS)
    assert all(after < before for before, after, _ in record["fitted"].values())
    before, after = load_file(image_adapter / ADAPTER_WEIGHTS), load_file(out / ADAPTER_WEIGHTS)
    (changed,) = [name for name in before if not torch.equal(before[name], after[name])]
    moved = (after[changed] - before[changed])[3:]  # the codes' rows, all by the same
    assert_sums_agree(moved, moved[:1].expand_as(moved), 1500)
    assert moved.abs().max() > 1e-3
    assert float(decisions_of(out, texts).losses()[0]) < float(decisions_of(image_adapter, texts).losses()[0])
    assert run_script(SCRIPT, *told) == 2
    assert "exists already" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("texts_are", "images_are", "error"),
    [
        ("drawn", "drawn", "--texts .* has rows with images; give chats in words"),
        ("texts", "texts", "--images .* has 0 drawings in its first 400 rows"),
        ("nothing", "drawn", "--texts .*nothing does not exist"),
        ("texts", "nothing", "--images .*nothing does not exist"),
    ],
)
def test_files_that_do_not_show_what_they_are_to_show_are_refused_before_the_model_runs(
    run_script: Callable[..., int],
    image_adapter: Path,
    toy_rows: Callable[[str], Path],
    texts: Path,
    texts_are: str,
    images_are: str,
    error: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    files = {"texts": texts, "drawn": toy_rows("dddddaad"), "nothing": texts.with_name("nothing")}
    told = ["--model", image_adapter, "--out", texts.with_name("new")]
    assert run_script(SCRIPT, *told, "--texts", files[texts_are], "--images", files[images_are]) == 2
    assert re.search(error, capsys.readouterr().err)


def test_a_checkpoint_is_refused(
    run_script: Callable[..., int], toy_checkpoint: Path, texts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = ["--model", toy_checkpoint, "--out", texts.with_name("new"), "--texts", texts, "--images", texts]
    assert run_script(SCRIPT, *told) == 2
    assert "give the output folder of a LoRA run" in capsys.readouterr().err
