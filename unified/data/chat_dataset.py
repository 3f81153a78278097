"""Training data: encoded rows from disk, the chat dataset, the collator for SFT.

Legend: B rows, T positions, T' kept positions, N input images, L codes of one image.
"""

import os
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from unified.data.packing import Document, LastScaleDropping, PackedRow, pack_tightly, stack_rows
from unified.data.parquet import count_parquet_rows
from unified.data.rows import (
    ALL_FEATURES,
    ENCODED_FEATURES,
    ROW_FILES,
    BadRow,
    Row,
    features_of,
    has_extras,
    iter_rows,
    leave_out,
    name_errors,
)
from unified.data.shard_metadata import has_codes, shared_opener
from unified.files.jsonl import numbered_lines
from unified.files.parquet import arrow_errors, read_schema
from unified.models.configuration import UnifiedConfig
from unified.models.messages import Message, content_parts, draws_once, is_output, is_trained, shorten
from unified.models.processing import IGNORE_INDEX, EncodedChat, UnifiedProcessor

CAPTION_STREAM = 0  # random stream of (seed, epoch, index); position dropping uses another


def load_encoded_rows(
    paths: Sequence[str], config: UnifiedConfig, faults: dict[int, str] | None = None
) -> datasets.Dataset:
    """Rows `messages, codes, metadata, source` of encoded parquet files, folders of them, and text-only JSON.

    With `tools`, and more keys in messages, where a row of them has any. Raises ValueError for codes of another
    tokenizer than `config.vq_fingerprint` or of two openers of images, naming rows with unencoded images and malformed
    ones, and without any row. With `faults` such rows are there without messages, and it gets what ails them by place.
    """
    files = [file for path in paths for file in list_data_files(path)]
    shared_opener(files)
    parts: list[datasets.Dataset] = []
    bad: dict[int, BadRow] = {}
    before = 0  # rows of the files so far
    for file in files:
        part, found = _load_file(file, config.vq_fingerprint)
        bad |= {before + place: row for place, row in found.items()}
        if part is not None:
            parts.append(part)
            before += len(part)
    if bad and faults is None:
        raise ValueError(name_errors([f"{row.where}: {row.reason}" for row in bad.values()], "rows"))
    if faults is not None:
        faults |= {place: row.reason for place, row in bad.items()}
    if not parts:
        raise ValueError(f"{', '.join(map(str, paths))}: not one row; give files with a row or more")
    return concatenate(parts, ALL_FEATURES)


def concatenate(parts: Sequence[datasets.Dataset], whole: datasets.Features) -> datasets.Dataset:
    """One data set; with the columns of `whole` in all of it if a part has them."""
    if any(part.features == whole for part in parts):
        missing = [name for name in whole if name not in parts[0].column_names]
        parts = [_widened(part, whole) for part in parts] if missing or len(parts) > 1 else parts
    return datasets.concatenate_datasets([*parts])


def _widened(part: datasets.Dataset, whole: datasets.Features) -> datasets.Dataset:
    for name in whole:
        if name not in part.column_names:
            part = part.add_column(name, [None] * len(part))
    return part.select_columns([*whole]).cast(whole)


def list_data_files(path: str, what: str = "encoded rows") -> list[Path]:
    """A file, or a folder's parquet shards; raises ValueError without any, naming them `what`."""
    place = Path(path)
    found = sorted(place.glob("*.parquet")) if place.is_dir() else [place] * place.is_file()
    if not found or any(file.suffix not in ROW_FILES for file in found):
        raise ValueError(f"{path}: no {what}; give a .parquet, .jsonl or .json file or a folder of parquet shards")
    return found


def name_rows(paths: Sequence[str], rows: Sequence[int], what: str = "encoded rows") -> list[str]:
    """`file:number`, counted from 1 (JSONL: the line), of `rows` of what is loaded from `paths`, counted from 0."""
    numbers: list[tuple[Path, Sequence[int]]] = []
    for file in (file for path in paths for file in list_data_files(path, what)):
        if file.suffix == ".parquet":
            numbers.append((file, range(1, count_parquet_rows(file) + 1)))
        else:
            numbers.append((file, [number for number, _ in numbered_lines(file)]))
    names = []
    for row in rows:
        for file, known in numbers:
            if row < len(known):
                names.append(f"{file}:{known[row]}")
                break
            row -= len(known)
    return names


def _load_file(file: Path, vq_fingerprint: str) -> tuple[datasets.Dataset | None, dict[int, BadRow]]:
    """A file's rows, None for one without any, of which `datasets` makes errors; those that are bad, by place."""
    if file.suffix != ".parquet":
        return _text_rows(file)
    schema = read_schema(file)
    if "chosen" in schema.names:
        raise ValueError(f"{file} holds preference pairs; they train with recipes/dpo.py")
    if not count_parquet_rows(file):
        return None, {}
    if "codes" not in schema.names:
        return _text_rows(file)
    found = (schema.metadata or {}).get(b"vq_fingerprint", b"").decode()
    if found != vq_fingerprint and has_codes(file):
        raise ValueError(
            f"{file}: its codes are of tokenizer {found or '(not recorded)'} but the model uses {vq_fingerprint}; "
            "encode the images again with data_prep/encode_images.py and this model's tokenizer"
        )
    features = features_of(file)
    with arrow_errors(file):
        return datasets.Dataset.from_parquet(str(file), columns=list(features), features=features), {}


def _text_rows(file: Path) -> tuple[datasets.Dataset | None, dict[int, BadRow]]:
    """Text-only rows in the format of encoded ones, None without any; what is none of them, by its place."""
    encoded: list[dict[str, Any]] = []
    bad: dict[int, BadRow] = {}
    for place, row in enumerate(iter_rows(file)):
        if isinstance(row, Row) and row.images:
            row = BadRow(row.where, "holds images without codes; run data_prep/encode_images.py on the file")
        if isinstance(row, BadRow):
            bad[place] = row
            encoded.append({"messages": [], "codes": [], "metadata": "", "source": file.stem})
        else:
            encoded.append(row.encoded([]))
    features = ALL_FEATURES if any(map(has_extras, encoded)) else ENCODED_FEATURES
    rows = [{"tools": None, **row} if features is ALL_FEATURES else row for row in encoded]
    return datasets.Dataset.from_list(rows, features=features) if rows else None, bad


def check_trained(row: Mapping[str, Any], chat: EncodedChat, weigh: Callable[[Tensor], Tensor] | None = None) -> None:
    """Raise ValueError for a row without any trained label, or whose labels `weigh` nothing in the loss."""
    # labels are shifted, so the first one is never used
    if all(label == IGNORE_INDEX for label in chat.labels[1:]):
        answers = [message for message in row["messages"] if is_output(message)]
        why = "its assistant turns are empty" if answers else "it has no assistant turn"
        why = why if not answers or any(map(is_trained, answers)) else "its assistant turns have weight 0"
        raise ValueError(
            f"{why}, so nothing in it is trained (every label is {IGNORE_INDEX}); give it an answer with text or an "
            "image, or remove the row"
        )
    if weigh is not None and not weigh(torch.tensor([chat.labels])):
        raise ValueError(
            "the loss weights of all it answers are 0, so nothing in it is trained or measured; set text_loss_weight "
            "or scale_loss_weights above 0, or remove the row"
        )


def system_text(messages: Sequence[Message]) -> str:
    """What the system message of a chat says; empty without one."""
    return "".join(part["text"] for part in content_parts(messages[0])) if messages[0]["role"] == "system" else ""


class ChatDataset(torch.utils.data.Dataset[dict[str, Any]]):
    """Encoded rows as ids and labels.

    Items hold `input_ids`, `labels` (lists), `input_image_codes`, `index`, `epoch`, as `SFTCollator` takes them (use
    `remove_unused_columns=False`, so that the Trainer keeps all of them).

    Args:
        rows: from `load_encoded_rows`.
        caption_dropout: share of text-to-image rows whose prompt is replaced by the unconditional one: rows whose
            last user turn is text and whose answer is one image, with words or without. The choice is a function of
            `(seed, epoch, index)`, so it is the same in a resumed run.
        evaluation: mark the items, of which the collator then keeps every position.
        files: what `load_encoded_rows` read, by which errors name a row.
        faults: what ails rows that it could not read, by place; `check_lengths` counts them.
    """

    def __init__(
        self,
        rows: datasets.Dataset,
        processor: UnifiedProcessor,
        caption_dropout: float = 0.0,
        seed: int = 0,
        evaluation: bool = False,
        files: Sequence[str] = (),
        faults: Mapping[int, str] | None = None,
    ) -> None:
        if not 0 <= caption_dropout < 1:
            raise ValueError(f"caption_dropout {caption_dropout} is not in [0, 1); 0.1 is usual for guidance")
        self.rows, self.processor, self.files, self.faults = rows, processor, files, faults or {}
        self.kept: Sequence[int] = range(len(rows))  # places of the rows in what was loaded
        self.caption_dropout, self.seed, self.epoch, self.evaluation = caption_dropout, seed, 0, evaluation

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch on which caption dropout and position dropping depend."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        row = dict(self.rows[index])
        if self._drops_caption(index) and draws_once(row["messages"]):
            # as in guidance's unconditional pass: an empty prompt and at once the image, without the answer's words
            image = [part for part in content_parts(row["messages"][-1]) if part["type"] == "image"]
            row["messages"] = [{"role": "user", "content": ""}, {**row["messages"][-1], "content": image}]
            row |= {"codes": row["codes"][-1:], "tools": None}
        try:
            chat = self._encode(row)
        except ValueError as error:
            raise ValueError(f"{self._name(index)}: {error}") from error
        return {**vars(chat), "index": index, "epoch": self.epoch, "evaluation": self.evaluation}

    def check_lengths(
        self,
        max_length: int,
        last_scale_fraction: float = 1.0,
        weigh: Callable[[Tensor], Tensor] | None = None,
        max_bad: int = 0,
    ) -> list[int]:
        """Number of positions of every row after dropping, computed before training.

        Rows with more than `max_length` positions, without any trained label, whose labels (1, T) `weigh` nothing in
        the loss, or that cannot be encoded are all found; up to `max_bad` are left out of the data set, the first of
        them named on stderr. Raises ValueError naming some of more.
        """
        dropping = LastScaleDropping.of(self.processor, last_scale_fraction, self.seed)
        lengths, bad, systems = [], dict[int, str](), Counter[str]()
        for index, row in enumerate(tqdm(self.rows, desc="check lengths", unit="row", mininterval=1)):
            try:
                if index in self.faults:
                    raise ValueError(self.faults[index])
                chat = self._encode(row)
                length = dropping.kept_length(len(chat.input_ids), len(row["codes"]) - len(chat.input_image_codes))
                check_trained(row, chat, weigh)
                if length > max_length:
                    raise ValueError(
                        f"it takes {length} positions, more than max_length {max_length}; raise max_length or remove "
                        "the row"
                    )
            except ValueError as error:
                bad[index] = str(error)
                continue
            systems.update([system_text(row["messages"])])
            lengths.append(length)
        leave_out([(partial(self._name, index), reason) for index, reason in bad.items()], max_bad, "rows")
        if bad and not lengths:
            raise ValueError(f"not one of {len(bad)} rows can be trained on; the first: {self._name(0)}: {bad[0]}")
        if bad:
            self.kept = [index for index in range(len(self.rows)) if index not in bad]
            self.rows, self.faults = self.rows.select(self.kept), {}
        self._report_systems(systems)
        return lengths

    def name_rows(self, indices: Sequence[int]) -> list[str]:
        """`file:number` of items; see `name_rows`."""
        return name_rows(self.files, [self.kept[index] for index in indices])

    def _report_systems(self, systems: Counter[str]) -> None:
        """Say how many rows have a system message behind which the trained model is not asked by default."""
        usual = self.processor.system_prompt or ""
        others = [(text, count) for text, count in systems.most_common() if text not in ("", usual)]
        if others and os.environ.get("RANK", "0") == "0":
            sys.stderr.write(
                f"{sum(count for _, count in others)} of {len(self)} rows have a system message of their own, such as "
                f"{shorten(others[0][0])}; where none is given, draw, chat and evaluation ask behind "
                f"{shorten(usual)}, the processor's system_prompt: change that or the rows\n"
            )

    def _encode(self, row: Mapping[str, Any]) -> EncodedChat:
        return self.processor.encode_chat(row["messages"], row["codes"], row.get("tools"))

    def _name(self, index: int) -> str:
        """A row for error messages: `file:number`, from 1, where files are known, and its number in all, from 0."""
        return f"{', '.join([*self.name_rows([index]), f'row {index}'])} (source {self.rows[index]['source']})"

    def _drops_caption(self, index: int) -> bool:
        if not self.caption_dropout:
            return False
        return np.random.default_rng((self.seed, self.epoch, index, CAPTION_STREAM)).random() < self.caption_dropout


class SFTCollator:
    """Packs examples of `ChatDataset` into rows.

    Args:
        pack_length: maximum positions of a row, after dropping.
        last_scale_fraction: share of the last scale's positions trained per step, sampled in every epoch.
        seed: of this sampling. pack: False puts every example into a separate row.

    Returns `input_ids`, `attention_mask`, `document_ids`, `labels` (B, T), with a fraction below 1 `keep_positions`
    (B, T'), and with input images `image_codes` (N, L) in the order of their placeholders. Padding is on the right.
    """

    def __init__(
        self,
        processor: UnifiedProcessor,
        pack_length: int,
        last_scale_fraction: float = 1.0,
        seed: int = 0,
        pack: bool = True,
    ) -> None:
        self.vocabulary, self.pad_token_id = processor.vocabulary, processor.pad_token_id
        self.dropping = LastScaleDropping.of(processor, last_scale_fraction, seed)
        self.pack_length, self.pack = pack_length, pack

    def __call__(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        documents = [self._document(example) for example in examples]
        lengths = [len(document.keep_positions) for document in documents]
        unpacked = [PackedRow(length, [member]) for member, length in enumerate(lengths)]
        evaluation = all(example["evaluation"] for example in examples)
        room = max([self.pack_length, *lengths]) if evaluation else self.pack_length
        rows = pack_tightly(lengths, room) if self.pack else unpacked
        batch = stack_rows([[documents[member] for member in row.members] for row in rows], self.pad_token_id)
        if self.dropping.fraction == 1 or evaluation:
            del batch["keep_positions"]
        input_image_codes = [
            codes for row in rows for member in row.members for codes in examples[member]["input_image_codes"]
        ]
        if input_image_codes:
            batch["image_codes"] = torch.tensor(input_image_codes)
        return batch

    def _document(self, example: Mapping[str, Any]) -> Document:
        input_ids = torch.tensor(example["input_ids"])
        dropping = replace(self.dropping, fraction=1) if example["evaluation"] else self.dropping
        kept = dropping.keep_positions(self.vocabulary.is_image(input_ids), example["epoch"], example["index"])
        return Document(input_ids, torch.tensor(example["labels"]), kept)
