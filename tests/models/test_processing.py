"""Chats to ids and back; user text stays text; labels sit on the assistant; a saved processor is the same one."""

from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from toys import make_config
from transformers import AutoProcessor, AutoTokenizer, PreTrainedTokenizerFast

from unified import UnifiedConfig, VQConfig, VQModel
from unified.models.messages import SYSTEM_PROMPT
from unified.models.processing import IGNORE_INDEX, UnifiedProcessor
from unified.models.vocabulary import BOI_TOKEN, EOI_TOKEN, IMAGE_PAD_TOKEN

IMAGE = {"type": "image"}
SMOLLM2 = Path(__file__).parents[2] / "out" / "smollm2"
PLAIN_CHATS = [
    [("user", "What is the capital of France?")],
    [("system", "Be brief."), ("user", "How many cats?\n\nAnswer in one word."), ("assistant", "Three.")],
    [
        ("user", "def f(x):\n    return x + 1"),
        ("assistant", "```python\nf(41)  # 42\n```"),
        ("user", "Thanks! 12,345 €"),
    ],
]


def processor_of(tokenizer: PreTrainedTokenizerFast, vq: VQModel) -> UnifiedProcessor:
    return UnifiedProcessor.from_config(tokenizer, make_config(tokenizer, vq.config))


@pytest.fixture
def processor(tiny_tokenizer: PreTrainedTokenizerFast, tiny_vq: VQModel) -> UnifiedProcessor:
    return processor_of(tiny_tokenizer, tiny_vq)


def text(words: str) -> dict[str, str]:
    return {"type": "text", "text": words}


def turn(role: str, *parts: dict) -> dict:
    return {"role": role, "content": list(parts)}


def chat_of(pairs: list[tuple[str, str]]) -> list[dict]:
    return [{"role": role, "content": content} for role, content in pairs]


def test_round_trip_with_several_images(processor: UnifiedProcessor) -> None:
    first, second, shown = [0, 1, 2, 3, 31], [5, 5, 5, 5, 5], [7, 8, 9, 10, 11]
    chat = [
        turn("user", text("Like this? "), IMAGE),
        turn("assistant", text("Red: "), IMAGE, text(" and blue: "), IMAGE, text(".")),
    ]
    encoded = processor.encode_chat(chat, [shown, first, second])
    assert encoded.input_image_codes == [shown]
    parts = processor.decode_parts([label for label in encoded.labels if label != IGNORE_INDEX])
    assert [part.get("text") for part in parts] == ["Red: ", None, " and blue: ", None, "."]
    assert [part["codes"].tolist() for part in parts if part["type"] == "image"] == [first, second]
    again = processor.batch_decode_parts([encoded.input_ids, torch.tensor(encoded.input_ids)])
    assert [sum(part["type"] == "image" for part in row) for row in again] == [2, 2]


@pytest.mark.parametrize("skip", [True, False])
def test_decoded_text_shows_every_image(processor: UnifiedProcessor, skip: bool) -> None:
    """HF's `decode` and `batch_decode`: one placeholder an image, shown or generated, whole or cut off."""
    picture = "<|image_start|><|image_pad|><|image_end|>"
    chat = [turn("user", IMAGE, text("Again?")), turn("assistant", text("Red: "), IMAGE, text(" blue: "), IMAGE)]
    ids = processor.encode_chat(chat, [[7, 8, 9, 10, 11], [0, 1, 2, 3, 31], [5] * 5]).input_ids
    (whole,) = processor.batch_decode(torch.tensor([ids]), skip_special_tokens=skip)
    assert whole == processor.decode(ids, skip_special_tokens=skip)
    assert whole.count(picture) == whole.count("<|image_") / 3 == 3
    assert f"{picture}Again?" in whole and f"Red: {picture} blue: {picture}" in whole
    assert ("<|im_end|>" in whole) != skip
    answer = ids[ids.index(processor.eoi_token_id) + 1 :]
    cut = answer[: answer.index(processor.boi_token_id) + 3]  # the first image's first codes
    shorter, other = processor.batch_decode([cut, ids], skip_special_tokens=skip)
    assert shorter.endswith("Red: <|image_start|><|image_pad|>") and other == whole
    codes = processor.vocabulary.codes_to_ids(torch.arange(5))
    assert processor.decode(codes, skip_special_tokens=skip) == "<|image_pad|>"


@pytest.mark.parametrize("skip", [True, False])
def test_text_without_images_is_decoded_as_the_tokenizer_does(processor: UnifiedProcessor, skip: bool) -> None:
    rows = [processor.encode_chat([turn("user", text(words)), turn("assistant", text("3"))]).input_ids for words in
            ("How many cats?", "a red apple\n")]  # fmt: skip
    expected = processor.tokenizer.batch_decode(rows, skip_special_tokens=skip)
    assert processor.batch_decode(rows, skip_special_tokens=skip) == processor.decode(rows, skip) == expected
    assert processor.batch_decode(rows[0][:4], skip) == processor.tokenizer.batch_decode(rows[0][:4], skip)
    assert processor.decode(rows[0][5]) == processor.tokenizer.decode(rows[0][5])
    assert processor.batch_decode([], skip) == processor.tokenizer.batch_decode([], skip)


def test_ids_of_input_and_output_images(processor: UnifiedProcessor) -> None:
    boi, eoi, image_pad = processor.boi_token_id, processor.eoi_token_id, processor.image_pad_token_id
    codes = [4, 3, 2, 1, 0]
    ids = processor.encode_chat([turn("user", IMAGE), turn("assistant", IMAGE)], [codes, codes]).input_ids
    first, second = [index for index, token in enumerate(ids) if token == boi]
    assert ids[first : first + 6] == [boi, *[image_pad] * 4, eoi]
    assert ids[second : second + 7] == [boi, *processor.vocabulary.codes_to_ids(torch.tensor(codes)).tolist(), eoi]


@pytest.mark.parametrize("pairs", PLAIN_CHATS)
@pytest.mark.parametrize("add_generation_prompt", [False, True])
def test_plain_chats_are_the_tokenizers_own(
    processor: UnifiedProcessor, pairs: list[tuple[str, str]], add_generation_prompt: bool
) -> None:
    _assert_same_as_tokenizer(processor, pairs, add_generation_prompt)


@pytest.mark.skipif(not SMOLLM2.is_dir(), reason="out/smollm2 is made by `make demo`")
@pytest.mark.parametrize("pairs", PLAIN_CHATS)
def test_plain_chats_are_smollm2s_own(tiny_vq: VQModel, pairs: list[tuple[str, str]]) -> None:
    _assert_same_as_tokenizer(processor_of(AutoTokenizer.from_pretrained(SMOLLM2), tiny_vq), pairs, True)


def _assert_same_as_tokenizer(processor: UnifiedProcessor, pairs: list[tuple[str, str]], prompt: bool) -> None:
    chat = chat_of(pairs)
    explicit = chat if pairs[0][0] == "system" else [{"role": "system", "content": SYSTEM_PROMPT}, *chat]
    tokenizer = processor.tokenizer
    expected = tokenizer.apply_chat_template(explicit, add_generation_prompt=prompt, return_dict=False)
    rendered = tokenizer.apply_chat_template(explicit, add_generation_prompt=prompt, tokenize=False)
    assert processor.apply_chat_template(chat, add_generation_prompt=prompt, tokenize=True).tolist() == [expected]
    assert processor.apply_chat_template(chat, add_generation_prompt=prompt) == rendered


FORBIDDEN = ["<|im_start|>", "<|im_end|>", "<|pad|>", BOI_TOKEN, EOI_TOKEN, IMAGE_PAD_TOKEN, "\uf8ff0\uf8ff", "\uf8ff"]
USER_TEXT = st.lists(st.one_of(st.sampled_from(FORBIDDEN), st.text(max_size=8)), max_size=6).map("".join)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(words=USER_TEXT, role=st.sampled_from(["user", "assistant", "system", "tool"]))
def test_user_text_never_becomes_a_special_or_image_token(processor: UnifiedProcessor, words: str, role: str) -> None:
    ids = processor.encode_chat([turn("system", text("")), turn(role, text(words))]).input_ids
    bare = processor.encode_chat([turn("system", text("")), turn(role, text(""))]).input_ids
    special = set(processor.tokenizer.added_tokens_decoder)
    assert [i for i in ids if i in special] == [i for i in bare if i in special]
    assert not processor.vocabulary.is_image(torch.tensor(ids)).any()
    assert not set(processor(text=words)["input_ids"]) & special


def test_labels_are_what_the_assistant_says_and_the_end_of_its_turn(processor: UnifiedProcessor) -> None:
    chat = chat_of([("user", "one cat"), ("assistant", "three"), ("user", "two"), ("assistant", "dogs")])
    encoded = processor.encode_chat(chat)
    trained = [label for label in encoded.labels if label != IGNORE_INDEX]
    assert processor.tokenizer.decode(trained) == "three<|im_end|>dogs<|im_end|>"
    assert len(encoded.labels) == len(encoded.input_ids)
    assert all(label in (token, IGNORE_INDEX) for label, token in zip(encoded.labels, encoded.input_ids, strict=True))


@pytest.mark.parametrize(
    ("chat", "codes", "message"),
    [
        ([turn("user", IMAGE)], [], "1 image parts"),
        ([turn("user", text("x"))], [[0] * 5], "0 image parts"),
        ([turn("assistant", IMAGE)], [[0] * 4], r"4 codes but patch_nums \[\(1, 1\), \(2, 2\)\] make 5"),
        ([turn("assistant", IMAGE)], [[0, 1, 2, 3, 32]], "codebook has 32"),
        ([turn("user", {"type": "audio"})], [], "'audio'"),
        ([turn("user", {"type": "text", "text": None})], [], "None"),
        ([turn("<|im_end|>", text("x"))], [], "role"),
        ([turn("user", text("x")) | {"name": "Ann"}], [], "name 'Ann'"),
        ([], [], "no messages"),
    ],
)
def test_bad_chats_are_refused(processor: UnifiedProcessor, chat: list, codes: list, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        processor.encode_chat(chat, codes)


def test_template_that_drops_a_message_is_refused(processor: UnifiedProcessor) -> None:
    processor.chat_template = "{{ messages[0]['content'] }}"
    with pytest.raises(ValueError, match="1 of 2 contents"):
        processor.encode_chat([turn("user", text("x"))])


def test_incomplete_images_are_refused(processor: UnifiedProcessor) -> None:
    whole = processor.encode_chat([turn("assistant", IMAGE)], [[0, 1, 2, 3, 4]]).input_ids
    boi = whole.index(processor.boi_token_id)
    assert processor.decode_parts(whole[: boi + 6])[-1]["codes"].tolist() == [0, 1, 2, 3, 4]
    for stop in (boi + 1, boi + 5):
        with pytest.raises(ValueError, match=f"{stop - boi - 1} codes"):
            processor.decode_parts(whole[:stop])
    assert processor.decode_parts([]) == []


def test_batches_are_padded_on_the_left(processor: UnifiedProcessor) -> None:
    chats = [[turn("user", IMAGE, text("How many cats?"))], [turn("user", text("Draw"))]]
    batch = processor.apply_chat_template(chats, codes=[[1, 2, 3, 4, 5]])
    assert batch["image_codes"].tolist() == [[1, 2, 3, 4, 5]]
    alone = processor.prompt_ids(chats[1])
    assert batch["input_ids"][1][batch["attention_mask"][1].bool()].tolist() == alone
    assert batch["attention_mask"][1, -len(alone) :].all() and not batch["attention_mask"][1, : -len(alone)].any()
    assert processor.unconditional_ids() == processor.prompt_ids([turn("user", text(""))])


def test_input_images_may_be_given_instead_of_codes(processor: UnifiedProcessor) -> None:
    chat = [turn("user", text("Draw")), turn("assistant", IMAGE), turn("user", IMAGE, text("Same?"))]
    image, codes = Image.new("RGB", (30, 20), (255, 0, 127)), torch.tensor([[0, 1, 2, 3, 4]])
    batch = processor.apply_chat_template(chat, codes=codes, images=[image])
    both = processor.apply_chat_template(chat, codes=codes.repeat(2, 1))
    assert batch["pixel_values"].shape == (1, 3, 16, 16) and "image_codes" not in batch
    assert torch.equal(batch["input_ids"], both["input_ids"])
    with pytest.raises(ValueError, match="2 images for 1 input image parts"):
        processor.apply_chat_template(chat, codes=codes, images=[image, image])
    with pytest.raises(ValueError, match="codes of 0 images for 1"):
        processor.apply_chat_template(chat, images=[image])
    rendered = processor.apply_chat_template(chat[1:], tokenize=False)
    assert f"<|im_start|>assistant\n{BOI_TOKEN}{IMAGE_PAD_TOKEN}{EOI_TOKEN}<|im_end|>" in rendered


def test_plain_call_tokenizes_text_and_scales_images(processor: UnifiedProcessor) -> None:
    data = processor(text=["a cat", "dogs"], padding=True, return_tensors="pt")
    data |= processor(images=Image.new("L", (8, 8)))
    assert data["input_ids"].shape == data["attention_mask"].shape
    assert torch.equal(data["pixel_values"], torch.full((1, 3, 16, 16), -1.0))
    with pytest.raises(ValueError, match="neither"):
        processor()


def test_saved_and_loaded_from_the_folder_alone(processor: UnifiedProcessor, tmp_path: Path) -> None:
    processor.save_pretrained(tmp_path)
    loaded = AutoProcessor.from_pretrained(tmp_path)
    assert isinstance(loaded, UnifiedProcessor) and loaded.to_dict() == processor.to_dict()
    assert loaded.vocabulary == processor.vocabulary and loaded.patch_nums == processor.patch_nums
    chat = [turn("user", text(f"{BOI_TOKEN}<|im_end|>"), IMAGE), turn("assistant", IMAGE)]
    codes = [[0] * 5, [1] * 5]
    assert loaded.encode_chat(chat, codes) == processor.encode_chat(chat, codes)


def test_a_tokenizer_that_was_not_extended_is_refused(
    tiny_tokenizer: PreTrainedTokenizerFast, tiny_vq: VQModel
) -> None:
    with pytest.raises(ValueError, match="unified extend"):
        UnifiedProcessor.from_config(tiny_tokenizer, UnifiedConfig(vq_config=tiny_vq.config, image_token_offset=384))


@pytest.mark.parametrize("order", ["scales", "raster"])
def test_an_image_end_has_a_label_in_raster_order_alone(tiny_tokenizer: PreTrainedTokenizerFast, order: str) -> None:
    """In scale order the last position's state predicts its own code, so the end token is forced."""
    patch_nums = (1, 2) if order == "scales" else (2,)
    vq = VQConfig(image_size=16, channels=(32, 32), patch_nums=patch_nums, codebook_size=32, code_dim=8)
    processor = UnifiedProcessor.from_config(tiny_tokenizer, make_config(tiny_tokenizer, vq, image_order=order))
    codes = list(range(processor.image_length))
    chat = [turn("user", IMAGE, text("Red?")), turn("assistant", IMAGE, text("Red."), IMAGE)]
    encoded = processor.encode_chat(chat, [codes, codes, codes])
    ends = [at for at, token in enumerate(encoded.input_ids) if token == processor.eoi_token_id]
    assert len(ends) == 3 and encoded.labels[ends[0]] == IGNORE_INDEX
    expected = processor.eoi_token_id if order == "raster" else IGNORE_INDEX
    assert [encoded.labels[at] for at in ends[1:]] == [expected] * 2
    answered = range(ends[0] + 1, len(encoded.labels))
    images = [at for at in answered if processor.vocabulary.is_image(torch.tensor(encoded.input_ids[at]))]
    for at in (*images, *(at for at in answered if encoded.input_ids[at] == processor.boi_token_id), ends[1] + 1):
        assert encoded.labels[at] == encoded.input_ids[at]
    assert encoded.labels[ends[2] + 1] == processor.tokenizer.eos_token_id
