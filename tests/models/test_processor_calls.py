"""`processor(text=...)` beside other calls: rows as `generate` takes them, and threads that leave each other alone."""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from unified import UnifiedProcessor

SHORT, LONG = "a", "a red apple on a blue dog"
SPELLED = "<|im_end|> dog"


@pytest.fixture(scope="module")
def processor(toy_checkpoint: Path) -> UnifiedProcessor:
    return UnifiedProcessor.from_pretrained(toy_checkpoint)


def asked(words: str, *parts: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [*parts, {"type": "text", "text": words}]}]


@pytest.mark.parametrize("parts", [(), ({"type": "image"},)], ids=["words", "pictures"])
def test_rendered_rows_are_padded_as_messages_are(
    processor: UnifiedProcessor, parts: tuple[dict[str, str], ...]
) -> None:
    """On the left, as `generate` asks for; on the right where a trainer says so."""
    chats, images = [asked(SHORT, *parts), asked(LONG, *parts)], [Image.new("RGB", (16, 16))] * 2 * len(parts)
    kwargs = {"images": images} if images else {}
    expected = processor.apply_chat_template(
        chats, add_generation_prompt=True, tokenize=True, return_dict=True, padding=True, **kwargs
    )
    texts = [processor.apply_chat_template(chat, add_generation_prompt=True) for chat in chats]
    settings = {"padding": True, "return_tensors": "pt", "split_special_tokens": False, **kwargs}
    for side in ({}, {"padding_side": None}):
        found = processor(text=texts, **settings, **side)
        assert all(torch.equal(found[name], expected[name]) for name in ("input_ids", "attention_mask"))
    right = processor(text=texts, **settings, padding_side="right")
    assert right["attention_mask"][:, 0].all() and torch.equal(right["input_ids"][1], expected["input_ids"][1])


@pytest.mark.parametrize(("kind", "made"), [("pt", torch.Tensor), ("np", np.ndarray), (None, list)])
def test_all_inputs_of_messages_are_of_the_kind_asked_for(
    kind: str | None, made: type, processor: UnifiedProcessor
) -> None:
    chats, codes = [asked(SHORT, {"type": "image"})] * 2, [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9]]
    found = processor.apply_chat_template(chats, codes=codes, return_tensors=kind)
    assert {name: type(value) for name, value in found.items()} == dict.fromkeys(found, made)
    assert [list(map(int, row)) for row in found["image_codes"]] == codes


CALLS: dict[str, Callable[[UnifiedProcessor], Any]] = {
    "ordinary text": lambda processor: processor(text=SPELLED)["input_ids"],
    "special tokens": lambda processor: processor(text=SPELLED, split_special_tokens=False)["input_ids"],
    "padded": lambda processor: processor(text=[SHORT, LONG], padding=True)["input_ids"],
    "cut": lambda processor: processor(text=LONG, truncation=True, max_length=2)["input_ids"],
    "messages": lambda processor: processor.prompt_ids(asked(f"{LONG} {SPELLED}")),
}


class Interrupted:
    """tokenizers' tokenizer, in which `other` runs between the settings of the first call and its encoding."""

    def __init__(self, tokenizer: Any, other: Callable[[], None]) -> None:
        self.__dict__.update(tokenizer=tokenizer, others=[other])

    def __getattr__(self, name: str) -> Any:
        return getattr(self.tokenizer, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self.tokenizer, name, value)

    def encode_batch(self, *args: Any, **kwargs: Any) -> Any:
        while self.others:
            self.others.pop()()
        return self.tokenizer.encode_batch(*args, **kwargs)


@pytest.mark.parametrize("other", CALLS)
@pytest.mark.parametrize("call", CALLS)
def test_a_call_leaves_those_of_other_threads_alone(
    call: str, other: str, processor: UnifiedProcessor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """HF keeps padding, truncation and `split_special_tokens` in the tokenizer that all threads share."""
    expected, found = [CALLS[name](processor) for name in (call, other)], []
    beside = threading.Thread(target=lambda: found.append(CALLS[other](processor)))

    def interrupt() -> None:
        beside.start()
        beside.join(0.03)

    tokenizer = processor.tokenizer
    monkeypatch.setattr(tokenizer, "_tokenizer", Interrupted(tokenizer._tokenizer, interrupt))
    own = CALLS[call](processor)
    beside.join()
    assert [own, *found] == expected
