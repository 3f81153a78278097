"""Codes and ids are each other's inverse, and nothing else passes for an image."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from unified.models.vocabulary import ROW_MULTIPLE, Vocabulary, offset_for


def vocabulary_of(offset: int = 64, codebook_size: int = 32) -> Vocabulary:
    return Vocabulary(offset, codebook_size, boi_token_id=1, eoi_token_id=2, image_pad_token_id=3)


@settings(deadline=None)
@given(st.integers(4, 300), st.integers(1, 300), st.data())
def test_codes_and_ids_are_inverse(offset: int, codebook_size: int, data: st.DataObject) -> None:
    vocabulary = vocabulary_of(offset, codebook_size)
    codes = torch.tensor(data.draw(st.lists(st.integers(0, codebook_size - 1), max_size=9)), dtype=torch.long)
    ids = vocabulary.codes_to_ids(codes)
    assert torch.equal(vocabulary.ids_to_codes(ids), codes)
    assert vocabulary.is_image(ids).all() and set(ids.tolist()) <= set(vocabulary.image_ids)


def test_images_fold_into_one_placeholder_each() -> None:
    vocabulary = vocabulary_of()
    boi, eoi, pad = vocabulary.special_ids
    ids = torch.tensor([9, boi, 64, 70, 70, eoi, boi, pad, pad, pad, eoi, 8, boi, 65])
    assert vocabulary.fold_images(ids).tolist() == [9, boi, pad, eoi, boi, pad, eoi, 8, boi, pad]
    assert vocabulary.fold_images(ids[:0]).tolist() == []


@settings(deadline=None)
@given(st.integers(4, 300), st.integers(1, 300))
def test_image_ids_come_after_the_text(offset: int, codebook_size: int) -> None:
    vocabulary = vocabulary_of(offset, codebook_size)
    ids = torch.arange(-100, vocabulary.size + 5)
    expected = [offset <= i < offset + codebook_size for i in ids.tolist()]
    assert vocabulary.is_image(ids).tolist() == expected
    assert ids[vocabulary.is_image(ids)].tolist() == list(vocabulary.image_ids)


@settings(deadline=None)
@given(st.integers(4, 300), st.integers(1, 300))
def test_code_rows_are_the_image_ids_rows(offset: int, codebook_size: int) -> None:
    vocabulary = vocabulary_of(offset, codebook_size)
    matrix = torch.arange(vocabulary.size)[:, None]
    assert vocabulary.code_rows(matrix).squeeze(1).tolist() == list(vocabulary.image_ids)
    assert vocabulary.text_ids == range(4)  # up to the last special token, wherever the codes begin


@settings(deadline=None)
@given(st.integers(1, 10_000))
def test_the_offset_is_the_next_multiple(text_rows: int) -> None:
    offset = offset_for(text_rows)
    assert offset % ROW_MULTIPLE == 0 and text_rows <= offset < text_rows + ROW_MULTIPLE


@pytest.mark.parametrize("code", [-1, 32])
def test_a_code_outside_the_codebook_is_refused(code: int) -> None:
    with pytest.raises(ValueError, match=f"{code}.*32 entries"):
        vocabulary_of().codes_to_ids(torch.tensor([[0, code]]))


@pytest.mark.parametrize("text_id", [1, 63, 96])
def test_an_id_of_text_has_no_code(text_id: int) -> None:
    with pytest.raises(ValueError, match=rf"\[{text_id}\] are not image ids"):
        vocabulary_of().ids_to_codes(torch.tensor([64, text_id]))


@pytest.mark.parametrize("special", [(1, 1, 2), (1, 2, 64)])
def test_special_ids_are_three_ids_of_text(special: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="three different text ids below image_token_offset 64"):
        Vocabulary(64, 32, *special)
