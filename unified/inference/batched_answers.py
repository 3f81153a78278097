"""Many questions about pictures at once: greedy answers in left-padded batches, kept in a file that grows."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import BatchFeature

from unified.files.atomic import write_text
from unified.models.messages import Message, continue_conversation
from unified.models.modeling import UnifiedForCausalLM
from unified.models.processing import UnifiedProcessor
from unified.models.sequence_layout import remaining_context


@dataclass(frozen=True)
class Query:
    """A conversation that ends with a question, and the pictures of its image parts in order."""

    messages: Sequence[Message]
    images: Sequence[Image.Image] = ()


def about(image: Image.Image, question: str, question_first: bool = False) -> Query:
    """One question about one picture: behind it, or with `question_first` before it."""
    picture, words = {"type": "image"}, {"type": "text", "text": question}
    return Query([{"role": "user", "content": [words, picture] if question_first else [picture, words]}], [image])


def follow(query: Query, said: str, question: str) -> Query:
    """The conversation of `query` with what was said to it and one more question."""
    then: list[Message] = [{"role": "assistant", "content": said}, {"role": "user", "content": question}]
    return Query(continue_conversation(query.messages, then), query.images)


def encode(queries: Sequence[Query], processor: UnifiedProcessor) -> BatchFeature:
    """Inputs of a batch, padded on the left."""
    chats, images = [query.messages for query in queries], [image for query in queries for image in query.images]
    inputs = processor.apply_chat_template(chats, images=images or None, add_generation_prompt=True)
    assert isinstance(inputs, BatchFeature)
    return inputs


@torch.no_grad()
def answer(
    model: UnifiedForCausalLM, processor: UnifiedProcessor, queries: Sequence[Query], max_new_tokens: int = 64
) -> list[str]:
    """Greedy answers in words to one batch; no images are painted.

    Raises ValueError where a question fills the model's context; an answer ends with the context at the latest.
    """
    inputs = encode(queries, processor).to(model.device)
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    budget = min(max_new_tokens, remaining_context(ids, mask, model.config))
    written = model.generate(**inputs, do_sample=False, max_images=0, max_new_tokens=budget)[:, ids.shape[1] :]
    return ["".join(part["text"] for part in processor.decode_parts(row)).strip() for row in written]


class AnswerLog:
    """Answers in a JSONL file that grows: a first line that says who is asked what, then a line an answer.

    A job that was stopped opens it again and goes on behind its last whole batch, so that batches are the same.
    """

    def __init__(self, path: Path, identity: Mapping[str, Any], batch_size: int) -> None:
        """Opens the log of `identity`, or begins it.

        Raises ValueError for a log of another one, and for one that is damaged before its last line.
        """
        self.path, self.identity = path, json.loads(json.dumps(dict(identity)))  # as a file gives it back
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
        self.records = self._read([line for line in lines if line.endswith("\n")])  # not what a kill cut off
        del self.records[len(self.records) // batch_size * batch_size :]
        self.write(self.records)

    def _read(self, lines: list[str]) -> list[dict[str, Any]]:
        if not lines:
            return []
        try:
            header, *records = map(json.loads, lines)
            differing = [key for key in {**header, **self.identity} if header.get(key) != self.identity.get(key)]
        except (json.JSONDecodeError, TypeError):
            raise ValueError(f"{self.path} is no file of answers, or damaged; delete it to ask again") from None
        for key in differing:
            raise ValueError(
                f"{self.path} was made with {key} {header.get(key)!r}, not {self.identity.get(key)!r}; "
                "give another --out or delete it"
            )
        return records

    def write(self, records: Iterable[Mapping[str, Any]]) -> None:
        """Make these the log's records, whole or not at all."""
        write_text(self.path, "".join(json.dumps(line) + "\n" for line in (self.identity, *records)))

    def add(self, records: Iterable[Mapping[str, Any]]) -> None:
        """Keep a batch's records."""
        with open(self.path, "a", encoding="utf-8") as file:
            file.write("".join(json.dumps(record) + "\n" for record in records))
