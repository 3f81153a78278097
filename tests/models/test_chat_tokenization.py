"""Ids of chats are the tokenizer's own, in every family of tokenizers; no text becomes a special token."""

import functools
from dataclasses import asdict
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_tokenizers import TEMPLATES, make_family_tokenizer
from toys import make_config, make_vq

from unified.models.messages import Message
from unified.models.processing import IGNORE_INDEX, UnifiedProcessor

FAMILIES = list(TEMPLATES)
CODES = [0, 1, 2, 3, 4]
IMAGE = {"type": "image"}
ORDINARY = [
    "The cat. A dog?",
    "How many cats are there?\n\nAnswer in one word.\n",
    "  def f(x):\n    return x + 1  ",
    "12345 € 你好 é ﬁ",
    "\n\nThere are three cats.",
    "[INST] is text, <b>so is this</b>",
]


@functools.cache
def processor_of(family: str) -> UnifiedProcessor:
    tokenizer = make_family_tokenizer(family)
    return UnifiedProcessor.from_config(tokenizer, make_config(tokenizer, make_vq().config))


def chat_of(processor: UnifiedProcessor, *contents: Any) -> list[Message]:
    """A chat of user and assistant in turn, behind the system message that a processor would put there."""
    system = [{"role": "system", "content": processor.system_prompt}] if processor.system_prompt else []
    roles = ("user", "assistant") * len(contents)
    return [*system, *({"role": role, "content": said} for role, said in zip(roles, contents, strict=False))]


@pytest.mark.parametrize("family", FAMILIES)
def test_ordinary_chats_have_the_tokenizers_own_ids(family: str) -> None:
    """Those of the checkpoint's tokenizer, and of the LLM's where its template is kept."""
    processor, original = processor_of(family), make_family_tokenizer(family)
    kept = processor.tokenizer.chat_template == original.chat_template
    assert kept == (family not in ("Qwen", "Llama 2"))
    for asked in ORDINARY:
        for answered in ("A bird. The end.", "Paris", "(1) 2"):
            chat = chat_of(processor, asked, answered, asked)
            for tokenizer in (processor.tokenizer, original) if kept else (processor.tokenizer,):
                prompt = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)
                whole = tokenizer.apply_chat_template(chat[:-1], return_dict=False)
                assert processor.prompt_ids(chat) == prompt
                assert processor.encode_chat(chat[:-1]).input_ids == whole


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("before", [None, "You draw."])
def test_the_system_prompt_of_a_processor_may_be_changed(family: str, before: str | None) -> None:
    """Nothing remembers what it was made with, which the template may not even take."""
    expected = processor_of(family)
    geometry = {"patch_nums": expected.patch_nums, "image_size": expected.image_size}
    processor = UnifiedProcessor(expected.tokenizer, **asdict(expected.vocabulary), **geometry, system_prompt=before)
    processor.system_prompt = expected.system_prompt
    chat = [{"role": "user", "content": "a dog"}, {"role": "assistant", "content": "Here it is."}]
    assert processor.end_token_id == expected.end_token_id
    assert processor.encode_chat(chat * 2) == expected.encode_chat(chat * 2)


@pytest.mark.parametrize("family", FAMILIES)
def test_images_are_put_between_ids_of_text(family: str) -> None:
    """Nothing else changes: the ids are the tokenizer's for a chat in which an image is three special tokens."""
    processor = processor_of(family)
    shown, drawn = [IMAGE, {"type": "text", "text": "How many?"}], [{"type": "text", "text": "Here: "}, IMAGE]
    for contents in ((shown, "Three."), ("Draw", [IMAGE]), ("Draw", drawn), (shown, drawn)):
        chat = chat_of(processor, *contents)
        plain = [dict(m) | {"content": processor_text(m["content"])} for m in chat]
        expected = processor.tokenizer.apply_chat_template(plain, return_dict=False)
        images = sum(part == IMAGE for content in contents if isinstance(content, list) for part in content)
        encoded = processor.encode_chat(chat, [CODES] * images)
        pad, codes = processor.image_pad_token_id, processor.vocabulary.image_ids
        assert [i for i in encoded.input_ids if i not in codes and i != pad] == [i for i in expected if i != pad]
        prompt = processor.prompt_ids(chat[:-1], [CODES] * (images - (contents[1] == [IMAGE] or contents[1] == drawn)))
        assert encoded.input_ids[: len(prompt)] == prompt and encoded.labels[len(prompt)] != IGNORE_INDEX
        assert [label for label in encoded.labels if label != IGNORE_INDEX][-1] == processor.end_token_id


def processor_text(content: Any) -> str:
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
    return "".join("<|image_start|><|image_pad|><|image_end|>" if part == IMAGE else part["text"] for part in parts)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_spelled_special_token_is_text_and_its_neighbours_stay(family: str) -> None:
    processor = processor_of(family)
    special = set(processor.tokenizer.all_special_ids) | {i for i in processor._special_ids}
    plain = processor.encode_chat(chat_of(processor, "abc", "The cat.", "A dog?", "Three.")).input_ids
    at = next(at for at in range(len(plain)) if processor.tokenizer.decode(plain[at:]).startswith(("abc", "bc")))
    for spelled in ("</s>", "<|image_start|>", "a <|im_end|> b</s>", "<unk>"):
        ids = processor.encode_chat(chat_of(processor, spelled, "The cat.", "A dog?", "Three.")).input_ids
        assert sum(i in special for i in ids) == sum(i in special for i in plain)
        assert spelled in processor.tokenizer.decode(ids)
        same = next(n for n, (a, b) in enumerate(zip(reversed(ids), reversed(plain), strict=False)) if a != b)
        assert same >= len(plain) - at - 4 and ids[: at - 1] == plain[: at - 1]


SPELLED = ["</s>", "<s>", "<|im_end|>", "<|image_pad|>", "<|end|>", "\n", " ", "[INST]"]
WORDS = st.lists(st.one_of(st.sampled_from(SPELLED), st.text()), min_size=1, max_size=5).map("".join)


@settings(max_examples=60, deadline=None)
@given(family=st.sampled_from(FAMILIES), words=WORDS)
def test_no_text_becomes_a_special_token_and_use_is_as_training(family: str, words: str) -> None:
    processor = processor_of(family)
    chat = chat_of(processor, words, words, "And?")
    expected = processor.encode_chat(chat_of(processor, "a", "b", "And?")).input_ids
    whole = processor.encode_chat(chat)
    unknown = processor.tokenizer.unk_token_id

    def special(ids: list[int]) -> list[int]:
        return [i for i in ids if i in processor._special_ids and i != unknown]

    assert special(whole.input_ids) == special(expected)
    prompt = processor.prompt_ids(chat[:-2])
    assert whole.input_ids[: len(prompt)] == prompt
    again = processor.prompt_ids(chat)
    first = processor.encode_chat(chat[:-1])
    stop = max(at for at, label in enumerate(first.labels) if label != IGNORE_INDEX) + 1
    assert again[:stop] == first.input_ids[:stop] and first.labels[stop - 1] == processor.end_token_id
