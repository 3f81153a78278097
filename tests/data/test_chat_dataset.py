"""Rows from disk to batches: nothing lost in packing, the right positions dropped, the same draw for the same row."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from toys import make_config
from transformers import PreTrainedTokenizerFast

from unified import UnifiedConfig, VQConfig, VQModel
from unified.data.chat_dataset import ChatDataset, SFTCollator, load_encoded_rows
from unified.data.packing import PackedRow, pack_first_fit_decreasing, pack_tightly
from unified.data.preference_collator import PreferenceCollator
from unified.data.rows import write_encoded_shard
from unified.models.processing import IGNORE_INDEX, UnifiedProcessor

IMAGE = {"type": "image", "text": None}
LENGTH = 5


@pytest.fixture
def config(tiny_tokenizer: PreTrainedTokenizerFast, tiny_vq: VQModel) -> UnifiedConfig:
    return make_config(tiny_tokenizer, tiny_vq.config)


@pytest.fixture
def processor(tiny_tokenizer: PreTrainedTokenizerFast, config: UnifiedConfig) -> UnifiedProcessor:
    return UnifiedProcessor.from_config(tiny_tokenizer, config)


def text(words: str) -> dict[str, str]:
    return {"type": "text", "text": words}


def row_of(question: list[dict], answer: list[dict], codes: list[list[int]]) -> dict[str, Any]:
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return {"messages": messages, "codes": codes, "metadata": "{}", "source": "toy"}


def drawing(number: int) -> dict[str, Any]:
    return row_of([text(f"a photo of {'cats ' * (number % 7)}{number}")], [IMAGE], [[number % 32] * LENGTH])


def question(number: int) -> dict[str, Any]:
    return row_of([IMAGE, text("How many?")], [text(f"{number} cats")], [[number % 32] * LENGTH])


def mixed_rows(count: int) -> list[dict[str, Any]]:
    return [[drawing, question][number % 2](number) for number in range(count)]


@pytest.fixture
def shard(tmp_path: Path) -> Callable[..., str]:
    def write(rows: list[dict[str, Any]], fingerprint: str = "feed", name: str = "00000.parquet") -> str:
        write_encoded_shard(tmp_path / name, rows, fingerprint, (1, 2))
        return str(tmp_path / name)

    return write


def test_parquet_folders_and_jsonl_become_one_data_set(
    shard: Callable[..., str], config: UnifiedConfig, tmp_path: Path
) -> None:
    shard(mixed_rows(3))
    shard([row_of([text("hi")], [text("hello")], [])], fingerprint="", name="00001.parquet")
    replay = tmp_path / "replay.jsonl"
    replay.write_text(json.dumps({"messages": [{"role": "user", "content": "hi"}]}) + "\n\n")
    rows = load_encoded_rows([str(tmp_path), str(replay)], config)
    assert rows.column_names == ["messages", "codes", "metadata", "source"]
    assert rows["source"] == ["toy"] * 4 + ["replay"]
    assert rows[0]["codes"] == [[0] * LENGTH] and rows[4]["codes"] == []
    assert rows[4]["messages"] == [{"role": "user", "content": [text("hi")]}]


def test_codes_of_another_tokenizer_are_refused(shard: Callable[..., str], config: UnifiedConfig) -> None:
    path = shard(mixed_rows(1), fingerprint="beef")
    with pytest.raises(ValueError, match=r"00000\.parquet: its codes are of tokenizer beef .* uses feed"):
        load_encoded_rows([path], config)


def test_missing_and_unencoded_files_are_named(config: UnifiedConfig, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nowhere"):
        load_encoded_rows([str(tmp_path / "nowhere")], config)
    raw = tmp_path / "raw.jsonl"
    raw.write_text(json.dumps({"messages": [{"role": "user", "content": [{"type": "image"}]}], "images": ["a.png"]}))
    with pytest.raises(ValueError, match=r"raw\.jsonl:1: .*encode_images"):
        load_encoded_rows([str(raw)], config)


@given(lengths=st.lists(st.integers(1, 20), max_size=40))
def test_first_fit_decreasing_keeps_every_example_once(lengths: list[int]) -> None:
    rows = pack_first_fit_decreasing(lengths, 20)
    assert sorted(member for row in rows for member in row.members) == list(range(len(lengths)))
    assert all(row.length == sum(lengths[member] for member in row.members) <= 20 for row in rows)
    assert len(rows) <= 2 * -(-sum(lengths) // 20)  # two rows at most half full would have been one


def rectangle(rows: list[PackedRow]) -> int:
    return len(rows) * max(row.length for row in rows)


@given(lengths=st.lists(st.integers(1, 200), min_size=1, max_size=20))
def test_tight_rows_hold_every_example_in_no_more_than_first_fit_takes(lengths: list[int]) -> None:
    rows = pack_tightly(lengths, 256)
    assert sorted(member for row in rows for member in row.members) == list(range(len(lengths)))
    assert all(row.length <= 256 for row in rows)
    assert rectangle(rows) <= rectangle(pack_first_fit_decreasing(lengths, 256))


def test_rows_are_made_of_equal_length_rather_than_full() -> None:
    assert [row.length for row in pack_tightly([80] * 6, 256)] == [80] * 6  # 256 would leave 16 of every 256
    assert sorted(row.length for row in pack_tightly([150, 90, 60, 60, 40, 40], 200)) == [140, 150, 150]


def documents_of(batch: dict[str, torch.Tensor]) -> list[tuple[list[int], list[int]]]:
    """Ids and labels of every document of a batch."""
    ids, labels, numbers = batch["input_ids"], batch["labels"], batch["document_ids"]
    return [
        (ids[row][numbers[row] == number].tolist(), labels[row][numbers[row] == number].tolist())
        for row in range(len(ids))
        for number in range(int(numbers[row].max()) + 1)
    ]


@pytest.mark.parametrize("pack", [True, False])
def test_batches_hold_every_example_once(processor: UnifiedProcessor, pack: bool) -> None:
    data = ChatDataset(mixed_rows(9), processor)
    items = [data[index] for index in range(9)]
    batch = SFTCollator(processor, pack_length=160, pack=pack)(items)
    assert sorted(documents_of(batch)) == sorted((item["input_ids"], item["labels"]) for item in items)
    padding = batch["document_ids"] == -1
    assert (batch["labels"][padding] == IGNORE_INDEX).all() and (batch["input_ids"][padding] == 0).all()
    assert torch.equal(batch["attention_mask"], (~padding).long()) and "keep_positions" not in batch
    ids, alone = batch["input_ids"], SFTCollator(processor, pack_length=160, pack=False)(items)["input_ids"]
    assert len(alone) == 9 and (ids.numel() <= alone.numel() if pack else ids.equal(alone))
    placeholders = (batch["input_ids"] == processor.image_pad_token_id).sum()
    assert len(batch["image_codes"]) * 4 == placeholders


def test_image_codes_follow_their_placeholders(processor: UnifiedProcessor) -> None:
    rows = [row_of([IMAGE, text("x" * number)], [text("y")], [[number] * LENGTH]) for number in (3, 20, 9, 1)]
    data = ChatDataset(rows, processor)
    batch = SFTCollator(processor, pack_length=130)([data[index] for index in range(4)])
    in_order = [processor.tokenizer.decode(ids).count("x") for ids, _ in documents_of(batch)]
    assert batch["image_codes"][:, 0].tolist() == in_order


@pytest.mark.parametrize(("fraction", "kept"), [(0.25, 1), (0.3, 2), (0.75, 3), (1.0, 4)])
def test_only_the_last_scale_loses_positions(processor: UnifiedProcessor, fraction: float, kept: int) -> None:
    item = ChatDataset([row_of([text("two")], [IMAGE, text(" and "), IMAGE], [[1] * 5, [2] * 5])], processor)[0]
    collator = SFTCollator(processor, pack_length=200, last_scale_fraction=fraction)
    keep = collator.dropping.keep_positions(processor.vocabulary.is_image(torch.tensor(item["input_ids"])), 0, 0)
    assert keep.tolist() == sorted(set(keep.tolist()))
    dropped = set(range(len(item["input_ids"]))) - set(keep.tolist())
    starts = [place + 1 for place, token in enumerate(item["input_ids"]) if token == processor.boi_token_id]
    for start in starts:
        last_scale = set(range(start + 1, start + 5))
        assert start + 4 not in dropped and len(last_scale - dropped) == kept
        dropped -= last_scale
    assert not dropped
    assert len(keep) == collator.dropping.kept_length(len(item["input_ids"]), 2)


def test_dropping_depends_on_seed_epoch_and_index_alone(processor: UnifiedProcessor) -> None:
    is_image = torch.tensor([False] + [True] * LENGTH * 8)

    def draw(seed: int, epoch: int, index: int) -> list[int]:
        dropping = SFTCollator(processor, 100, last_scale_fraction=0.5, seed=seed).dropping
        return dropping.keep_positions(is_image, epoch, index).tolist()

    torch.manual_seed(1)
    first = draw(0, 0, 0)
    torch.manual_seed(2)
    assert draw(0, 0, 0) == first
    assert first not in (draw(1, 0, 0), draw(0, 1, 0), draw(0, 0, 1))


def test_packed_keep_positions_point_into_their_row(processor: UnifiedProcessor) -> None:
    data = ChatDataset(mixed_rows(8), processor)
    batch = SFTCollator(processor, pack_length=150, last_scale_fraction=0.5)([data[index] for index in range(8)])
    is_image = processor.vocabulary.is_image(batch["input_ids"])
    for keep, images, numbers in zip(batch["keep_positions"], is_image, batch["document_ids"], strict=True):
        kept = keep[keep >= 0]
        assert len(kept) <= 150 and (kept.diff() > 0).all() and (numbers[kept] >= 0).all()
        assert images[kept].sum() * LENGTH == images.sum() * 3  # 1 and 2 of 4 stay
        assert len(kept) == (numbers >= 0).sum() - images.sum() * 2 // LENGTH


@pytest.mark.parametrize("fraction", [0.0, 1.5])
def test_fractions_outside_the_range_are_refused(processor: UnifiedProcessor, fraction: float) -> None:
    with pytest.raises(ValueError, match="last_scale_fraction"):
        SFTCollator(processor, 100, last_scale_fraction=fraction)


def test_raster_order_drops_nothing(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    vq_config = VQConfig(image_size=16, channels=(32, 32), patch_nums=(2,), codebook_size=32, code_dim=8)
    raster = make_config(tiny_tokenizer, vq_config, image_order="raster")
    processor = UnifiedProcessor.from_config(tiny_tokenizer, raster)
    with pytest.raises(ValueError, match="raster"):
        SFTCollator(processor, 100, last_scale_fraction=0.5)
    assert SFTCollator(processor, 100).dropping.fraction == 1


def test_caption_dropout_takes_its_share_of_drawings_alone(processor: UnifiedProcessor) -> None:
    rows = mixed_rows(400) + [row_of([text("x")], [IMAGE, IMAGE], [[0] * LENGTH] * 2)] * 20
    data = ChatDataset(rows, processor, caption_dropout=0.3, seed=5)
    blank = processor.unconditional_ids()
    dropped = {index for index in range(len(rows)) if data[index]["input_ids"][: len(blank)] == blank}
    assert dropped <= set(range(0, 400, 2)) and 40 <= len(dropped) <= 80
    for index in sorted(dropped)[:5]:
        assert data[index]["labels"] != data[index]["input_ids"]
        whole = ChatDataset(rows, processor)[index]["labels"]
        trained = [[label for label in labels if label >= 0] for labels in (whole, data[index]["labels"])]
        assert trained[0] == trained[1]
    again = ChatDataset(rows, processor, caption_dropout=0.3, seed=5)
    assert all(again[index] == data[index] for index in range(0, 420, 7))
    again.set_epoch(1)
    assert any(again[index]["input_ids"] != data[index]["input_ids"] for index in range(0, 400, 2))


def test_a_row_that_is_too_long_is_named_before_training(processor: UnifiedProcessor) -> None:
    rows = [*mixed_rows(4), row_of([text("cat " * 200)], [text("yes")], [])]
    data = ChatDataset(rows, processor)
    with pytest.raises(ValueError, match=r"row 4 \(source toy\): it takes \d+ positions, more than max_length 150"):
        data.check_lengths(150)
    full, dropped = ChatDataset(rows[:4], processor), ChatDataset(rows[:4], processor)
    difference = [a - b for a, b in zip(full.check_lengths(150), dropped.check_lengths(150, 0.25), strict=True)]
    assert difference == [3, 0, 3, 0]
    with pytest.raises(ValueError, match="above pack_length 20"):
        SFTCollator(processor, pack_length=20)([data[0]])


def test_a_row_that_trains_nothing_is_named_before_training(processor: UnifiedProcessor) -> None:
    asked = {**row_of([text("hi")], [], []), "messages": [{"role": "user", "content": [text("hi")]}]}
    with pytest.raises(ValueError, match=r"row 2 \(source toy\): it has no assistant turn, .*-100\); give it an"):
        ChatDataset([*mixed_rows(2), asked], processor).check_lengths(150)
    silent = row_of([text("hi")], [text("")], [])
    assert len(ChatDataset([silent], processor).check_lengths(150)) == 1  # the end of its turn is trained
    processor.chat_template = "{% for message in messages %}{{ message['content'] }} {% endfor %}"
    with pytest.raises(ValueError, match=r"row 2 \(source toy\): its assistant turns are empty, .*or remove the row"):
        ChatDataset([*mixed_rows(2), silent], processor).check_lengths(150)


def test_a_row_whose_loss_weights_are_0_is_named_before_training(processor: UnifiedProcessor) -> None:
    def weigh(labels: Tensor) -> Tensor:
        return (labels[:, 1:] >= processor.image_token_offset).sum()  # text weighs nothing

    rows = mixed_rows(4)
    kinds = [
        any(label >= processor.image_token_offset for label in ChatDataset(rows, processor)[i]["labels"])
        for i in range(4)
    ]
    assert {*kinds} == {True, False}
    first = kinds.index(False)
    with pytest.raises(ValueError, match=rf"row {first} \(source toy\): the loss weights of all it answers are 0"):
        ChatDataset(rows, processor).check_lengths(150, weigh=weigh)
    drawn = [row for row, is_drawing in zip(rows, kinds, strict=True) if is_drawing]
    assert len(ChatDataset(drawn, processor).check_lengths(150, weigh=weigh)) == len(drawn)


def test_a_row_with_wrong_codes_is_named(processor: UnifiedProcessor) -> None:
    with pytest.raises(ValueError, match=r"row 0 \(source toy\): an image has 2 codes"):
        ChatDataset([row_of([text("x")], [IMAGE], [[0, 1]])], processor)[0]


def pair(number: int) -> dict[str, Any]:
    return {
        "messages": [{"role": "user", "content": [IMAGE, text("again " * number)]}],
        "chosen": {"role": "assistant", "content": [IMAGE]},
        "rejected": [{"role": "assistant", "content": "no"}],
        "codes": [[number] * LENGTH],
        "chosen_codes": [[number + 10] * LENGTH],
        "rejected_codes": [],
        "images": [],
    }


def test_preferences_have_trls_layout(processor: UnifiedProcessor) -> None:
    batch = PreferenceCollator(processor, max_length=200)([pair(1), pair(4)])
    assert batch["image_codes"][:, 0].tolist() == [1, 4, 1, 4]
    completions = [
        processor.tokenizer.decode(ids[mask.bool()]) if row >= 2 else processor.decode_parts(ids[mask.bool()])
        for row, (ids, mask) in enumerate(zip(batch["input_ids"], batch["completion_mask"], strict=True))
    ]
    assert completions[2:] == ["no<|im_end|>"] * 2
    assert [parts[0]["codes"].tolist() for parts in completions[:2]] == [[11] * LENGTH, [14] * LENGTH]
    prompt = processor.prompt_ids(pair(4)["messages"], pair(4)["codes"])
    for row in (1, 3):
        assert batch["input_ids"][row, : len(prompt)].tolist() == prompt
        assert batch["completion_mask"][row, : len(prompt)].sum() == 0
        length = int(batch["attention_mask"][row].sum())
        assert batch["attention_mask"][row, :length].all() and batch["completion_mask"][row, length - 1] == 1


def test_preferences_beyond_the_limit_are_refused(processor: UnifiedProcessor) -> None:
    with pytest.raises(ValueError, match="beyond max_length 10"):
        PreferenceCollator(processor, max_length=10)([pair(1)])


def test_preferences_score_no_image_end(processor: UnifiedProcessor) -> None:
    examples = [{**{name: drawing(1)[name] for name in ("codes", "messages")}, "chosen": [], "rejected": []}]
    answers = [{"role": "assistant", "content": [IMAGE]}]
    examples[0] |= {"messages": examples[0]["messages"][:1], "codes": [], "chosen": answers, "rejected": answers}
    examples[0] |= {"chosen_codes": [[1] * LENGTH], "rejected_codes": [[2] * LENGTH]}
    batch = PreferenceCollator(processor, 100)(examples)
    counted = batch["input_ids"][batch["completion_mask"].bool()]
    assert processor.eoi_token_id in batch["input_ids"] and processor.eoi_token_id not in counted
    assert processor.boi_token_id in counted and processor.tokenizer.eos_token_id in counted
    assert processor.vocabulary.is_image(counted).sum() == 2 * LENGTH


@pytest.mark.parametrize("pack", [True, False])
def test_evaluation_sees_whole_images(processor: UnifiedProcessor, pack: bool) -> None:
    collate = SFTCollator(processor, pack_length=48, last_scale_fraction=0.25, pack=pack)
    whole = SFTCollator(processor, pack_length=60, pack=pack)
    rows = [drawing(0) for number in range(4)]
    train, evaluation = (ChatDataset(rows, processor, evaluation=flag) for flag in (False, True))
    found, expected = collate([evaluation[at] for at in range(4)]), whole([train[at] for at in range(4)])
    assert found.keys() == expected.keys()
    assert (found["labels"] >= 0).sum() == (expected["labels"] >= 0).sum()
    assert (collate([train[0]])["keep_positions"] >= 0).sum() < len(train[0]["input_ids"])


def test_caption_dropout_covers_answers_of_words_and_an_image(processor: UnifiedProcessor) -> None:
    """Without its caption an image follows the empty prompt at once, as in guidance's unconditional pass."""
    rows = [row_of([text(f"Draw {n}.")], [text("Here: "), IMAGE, text(" Done.")], [[n] * LENGTH]) for n in range(32)]
    two = row_of([text("Draw two.")], [IMAGE, IMAGE], [[1] * LENGTH, [2] * LENGTH])
    shown = row_of([IMAGE, text("Alter it.")], [IMAGE], [[1] * LENGTH, [2] * LENGTH])
    data = ChatDataset([*rows, *[two, shown] * 16], processor, caption_dropout=0.5)
    prompt = processor.unconditional_ids()
    dropped = [data[at]["input_ids"][: len(prompt)] == prompt for at in range(64)]
    assert 8 < sum(dropped[:32]) < 24 and not any(dropped[32:])
    first = data[dropped.index(True)]["input_ids"]
    assert first[len(prompt)] == processor.boi_token_id
    codes = torch.tensor([dropped.index(True)] * LENGTH)
    assert processor.decode_parts(first[len(prompt) :])[0]["codes"].equal(codes)
