"""Masks and RoPE positions against a double loop over positions that were laid out by hand."""

from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from toy_models import BOI, EOI, IMAGE_PAD, OFFSET

from unified import UnifiedConfig, VQConfig
from unified.models.sequence_layout import block_attention_mask, read_layout, rope_positions, run_index

SCALES = (1, 2, 4)
GRID = SCALES[-1] ** 2
SEGMENTS = st.lists(st.sampled_from(["word", "output", "input"]), min_size=1, max_size=4)
DOCUMENTS = st.lists(SEGMENTS, min_size=1, max_size=3)
PADDING = -1


@dataclass
class Position:
    """One position, described by hand; `group` names its block with bidirectional attention."""

    token: int
    document: int
    group: tuple | None = None


def config_of(**changes: object) -> UnifiedConfig:
    patch_nums = (4,) if changes.get("image_order") == "raster" else SCALES
    vq_config = VQConfig(image_size=32, patch_nums=patch_nums, codebook_size=32)
    ids = {"boi_token_id": BOI, "eoi_token_id": EOI, "image_pad_token_id": IMAGE_PAD, "image_token_offset": OFFSET}
    return UnifiedConfig(vq_config=vq_config, **ids, **changes)


def lay_out(documents: list[list[str]], raster: bool = False) -> list[Position]:
    row, images = [], 0
    for document, segments in enumerate(documents):
        for segment in segments:
            images += 1
            if segment == "word":
                row.append(Position(5, document))
                continue
            row.append(Position(BOI, document))
            if segment == "input":
                row += [Position(IMAGE_PAD, document, (images, "input"))] * GRID
            elif raster:
                row += [Position(OFFSET + 3, document)] * GRID
            else:
                for scale, side in enumerate(SCALES):
                    row += [Position(OFFSET + scale, document, (images, scale))] * side**2
            row.append(Position(EOI, document))
    return row


def tensors(row: list[Position]) -> tuple[Tensor, Tensor, Tensor]:
    """`input_ids`, `valid` and `document_ids`, each (1, T)."""
    documents = torch.tensor([[p.document for p in row]])
    return torch.tensor([[p.token for p in row]]), (documents != PADDING).long(), documents


def pairs_by_hand(row: list[Position], window: int | None = None) -> Tensor:
    allowed = torch.zeros(len(row), len(row), dtype=torch.bool)
    for i, query in enumerate(row):
        for j, key in enumerate(row):
            before = j <= i
            if window is not None and before:
                before = sum(p.document != PADDING for p in row[j + 1 : i + 1]) < window
            together = query.group is not None and query.group == key.group
            visible = (before or together) and key.document == query.document and key.document != PADDING
            allowed[i, j] = visible or i == j
    return allowed


def rope_positions_by_hand(row: list[Position], shared: bool) -> list[int]:
    positions: list[int] = []
    for i, p in enumerate(row):
        if i == 0 or row[i - 1].document != p.document:
            positions.append(0)
        else:
            same = shared and p.group is not None and p.group == row[i - 1].group
            positions.append(positions[-1] + (not same))
    return positions


@settings(deadline=None, max_examples=25)
@given(DOCUMENTS, st.sampled_from([None, 3, 8, 1000]), st.integers(0, 4))
def test_mask_of_a_packed_row(documents: list[list[str]], window: int | None, padding: int) -> None:
    row = lay_out(documents) + [Position(0, PADDING)] * padding
    input_ids, valid, document_ids = tensors(row)
    blocks = read_layout(input_ids, config_of()).blocks
    assert torch.equal(block_attention_mask(blocks, valid, document_ids, window)[0, 0], pairs_by_hand(row, window))


@settings(deadline=None, max_examples=15)
@given(SEGMENTS, st.sampled_from([None, 8]), st.integers(1, 4))
def test_mask_after_left_padding(segments: list[str], window: int | None, padding: int) -> None:
    row = [Position(0, PADDING)] * padding + lay_out([segments])
    input_ids, valid, _ = tensors(row)
    blocks = read_layout(input_ids, config_of()).blocks
    found, by_hand = block_attention_mask(blocks, valid, None, window)[0, 0], pairs_by_hand(row, window)
    assert torch.equal(found[padding:], by_hand[padding:])
    assert found[:padding].any(dim=1).all()  # padding needs a finite softmax


def test_rows_of_a_batch_do_not_mix() -> None:
    rows = [lay_out([["word", "output", "output"]]), lay_out([["output", "word", "output"]])]
    input_ids = torch.cat([tensors(row)[0] for row in rows])
    masks = block_attention_mask(read_layout(input_ids, config_of()).blocks, torch.ones_like(input_ids))
    assert all(torch.equal(mask[0], pairs_by_hand(row)) for mask, row in zip(masks, rows, strict=True))


@pytest.mark.parametrize("window", [None, 8])
def test_the_mask_of_new_positions_is_the_end_of_the_whole(window: int | None) -> None:
    input_ids, valid, _ = tensors(lay_out([["word", "input", "word", "output", "word"]]))
    blocks = read_layout(input_ids, config_of()).blocks
    whole = block_attention_mask(blocks, valid, None, window)
    for first in (1, 2 + GRID, 3 + GRID):
        assert torch.equal(block_attention_mask(blocks[:, first:], valid, None, window), whole[:, :, first:])


@settings(deadline=None, max_examples=20)
@given(DOCUMENTS, st.sampled_from(["shared", "sequential"]), st.sampled_from(["scales", "raster"]))
def test_rope_positions_of_a_packed_row(documents: list[list[str]], image_positions: str, image_order: str) -> None:
    row = lay_out(documents, raster=image_order == "raster")
    input_ids, valid, document_ids = tensors(row)
    position_steps = read_layout(
        input_ids, config_of(image_positions=image_positions, image_order=image_order)
    ).position_steps
    assert rope_positions(position_steps, valid, document_ids)[0].tolist() == rope_positions_by_hand(
        row, image_positions == "shared"
    )


def test_an_image_takes_as_many_rope_positions_as_scales() -> None:
    row = lay_out([["word", "output", "input", "word"]])
    positions = rope_positions(read_layout(tensors(row)[0], config_of()).position_steps, tensors(row)[1])[0]
    # word boi 3 scales eoi, boi 1 block eoi, word
    assert positions.unique().tolist() == list(range(10)) and positions[-1] == 9


def test_padding_takes_no_rope_position() -> None:
    row = lay_out([["word", "output", "word"]])
    gap = [Position(0, PADDING)] * 2
    padded = gap + row[:1] + gap + row[1:]
    input_ids, valid, _ = tensors(padded)
    positions = rope_positions(read_layout(input_ids, config_of()).position_steps, valid)
    assert positions[valid.bool()].tolist() == rope_positions_by_hand(row, shared=True)


def test_raster_images_are_causal() -> None:
    row = lay_out([["word", "output", "input"]], raster=True)
    input_ids, valid, _ = tensors(row)
    layout = read_layout(input_ids, config_of(image_order="raster"))
    assert torch.equal(block_attention_mask(layout.blocks, valid)[0, 0], pairs_by_hand(row))
    assert layout.is_output.sum() == layout.is_input.sum() == GRID


@settings(deadline=None)
@given(st.lists(st.booleans(), min_size=1, max_size=20))
def test_run_index_counts_within_runs(inside: list[bool]) -> None:
    by_hand: list[int] = []
    for i, flag in enumerate(inside):
        by_hand.append(by_hand[-1] + 1 if i and flag and inside[i - 1] else 0)
    assert run_index(torch.tensor([inside]))[0].tolist() == by_hand


def test_select_positions_of_a_layout() -> None:
    layout = read_layout(tensors(lay_out([["word", "output"]]))[0], config_of())
    selected = layout.select(torch.tensor([[0, 2, 5, -1]]))
    assert selected.is_output.tolist() == [[False, True, True, False]]
    assert torch.equal(selected.blocks[0, :3], layout.blocks[0, [0, 2, 5]])
