"""Batched questions about images: greedy answers in left-padded batches, appended to a JSONL file."""

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
    """A conversation that ends with a question, and the images of its image parts in order."""

    messages: Sequence[Message]
    images: Sequence[Image.Image] = ()


def image_question(image: Image.Image, question: str, question_first: bool = False) -> Query:
    """One question about one image: after it, or with `question_first` before it."""
    image_part, text_part = {"type": "image"}, {"type": "text", "text": question}
    content = [text_part, image_part] if question_first else [image_part, text_part]
    return Query([{"role": "user", "content": content}], [image])


def follow_up(query: Query, answer: str, question: str) -> Query:
    """The conversation of `query` with its answer and one more question."""
    following: list[Message] = [{"role": "assistant", "content": answer}, {"role": "user", "content": question}]
    return Query(continue_conversation(query.messages, following), query.images)


def encode(queries: Sequence[Query], processor: UnifiedProcessor) -> BatchFeature:
    """Model inputs of a batch, padded on the left."""
    chats, images = [query.messages for query in queries], [image for query in queries for image in query.images]
    inputs = processor.apply_chat_template(
        chats, images=images or None, add_generation_prompt=True, tokenize=True, return_dict=True, padding=True
    )
    assert isinstance(inputs, BatchFeature)
    return inputs


@torch.no_grad()
def answer(
    model: UnifiedForCausalLM, processor: UnifiedProcessor, queries: Sequence[Query], max_new_tokens: int = 64
) -> list[str]:
    """Greedy text answers to one batch; no images are generated.

    Raises ValueError if a question fills the model's context; answers are truncated at the context.
    """
    inputs = encode(queries, processor).to(model.device)
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    max_new_tokens = min(max_new_tokens, remaining_context(ids, mask, model.config))
    outputs = model.generate(**inputs, do_sample=False, max_images=0, max_new_tokens=max_new_tokens)
    return ["".join(part["text"] for part in processor.decode_parts(row[ids.shape[1] :])).strip() for row in outputs]


class AnswerLog:
    """Answers in a JSONL file: a header with the run's settings, then one line per answer.

    An interrupted job opens it again and continues after its last complete batch, so that batches stay the same.
    """

    def __init__(self, path: Path, identity: Mapping[str, Any], batch_size: int) -> None:
        """Open the log with the settings `identity`, or create it.

        Raises ValueError for a log of other settings, and for one that is damaged before its last line.
        """
        self.path, self.identity = path, json.loads(json.dumps(dict(identity)))  # as read from a file
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
        self.records = self._read([line for line in lines if line.endswith("\n")])  # without an incomplete last line
        del self.records[len(self.records) // batch_size * batch_size :]
        self.write(self.records)

    def _read(self, lines: list[str]) -> list[dict[str, Any]]:
        if not lines:
            return []
        try:
            header, *records = map(json.loads, lines)
            differing = [key for key in {**header, **self.identity} if header.get(key) != self.identity.get(key)]
        except (json.JSONDecodeError, TypeError):
            raise ValueError(f"{self.path} is no file of answers, or damaged; delete it to start again") from None
        for key in differing:
            raise ValueError(
                f"{self.path} was made with {key} {header.get(key)!r}, not {self.identity.get(key)!r}; "
                "give another --out or delete it"
            )
        return records

    def write(self, records: Iterable[Mapping[str, Any]]) -> None:
        """Replace the log's records, atomically."""
        write_text(self.path, "".join(json.dumps(line) + "\n" for line in (self.identity, *records)))

    def add(self, records: Iterable[Mapping[str, Any]]) -> None:
        """Append a batch's records."""
        with open(self.path, "a", encoding="utf-8") as file:
            file.write("".join(json.dumps(record) + "\n" for record in records))
