"""Training data: encoded rows from disk, the chat dataset, collators for SFT and DPO.

Legend: B rows, T positions, T' kept positions, N input images, L codes of one image.
"""

import os
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow.parquet as pq
import torch
from torch import Tensor
from tqdm import tqdm

from unified.data.packing import Document, LastScaleDropping, PackedRow, pack_tightly, pad_right, stack_rows
from unified.data.rows import ENCODED_FEATURES, has_codes, read_rows, shared_opener
from unified.files.jsonl import read_lines
from unified.models.configuration import UnifiedConfig
from unified.models.messages import Message, content_parts, draws_once, is_output, shorten
from unified.models.processing import IGNORE_INDEX, EncodedChat, UnifiedProcessor

CAPTION_STREAM = 0  # random stream of (seed, epoch, index); position dropping uses another


def load_encoded_rows(paths: Sequence[str], config: UnifiedConfig) -> datasets.Dataset:
    """Rows `messages, codes, metadata, source` of encoded parquet files, folders of them, and text-only .jsonl.

    Raises ValueError for codes of another tokenizer than `config.vq_fingerprint` or of two openers of images, for
    unencoded images, and where there is not one row.
    """
    files = [file for path in paths for file in list_data_files(path)]
    shared_opener(file for file in files if file.suffix == ".parquet")
    found = [_load_file(file, config.vq_fingerprint) for file in files]
    parts = [part for part in found if part is not None]
    if not parts:
        raise ValueError(f"{', '.join(map(str, paths))}: not one row; give files with a row or more")
    return datasets.concatenate_datasets(parts)


def list_data_files(path: str, what: str = "encoded rows") -> list[Path]:
    """A file, or a folder's parquet shards; raises ValueError without any, naming them `what`."""
    place = Path(path)
    found = sorted(place.glob("*.parquet")) if place.is_dir() else [place] * place.is_file()
    if not found or any(file.suffix not in (".parquet", ".jsonl") for file in found):
        raise ValueError(f"{path}: no {what}; give a .parquet or .jsonl file or a folder of parquet shards")
    return found


def name_rows(paths: Sequence[str], rows: Sequence[int], what: str = "encoded rows") -> list[str]:
    """`file:number`, counted from 1 (JSONL: the line), of `rows` of what is loaded from `paths`, counted from 0."""
    numbers: list[tuple[Path, Sequence[int]]] = []
    for file in (file for path in paths for file in list_data_files(path, what)):
        if file.suffix == ".jsonl":
            numbers.append((file, [number for number, _ in read_lines(file)]))
        else:
            numbers.append((file, range(1, pq.read_metadata(file).num_rows + 1)))
    names = []
    for row in rows:
        for file, known in numbers:
            if row < len(known):
                names.append(f"{file}:{known[row]}")
                break
            row -= len(known)
    return names


def _load_file(file: Path, vq_fingerprint: str) -> datasets.Dataset | None:
    """A file's rows; None for one without any, of which `datasets` makes errors."""
    if file.suffix == ".parquet" and not pq.read_metadata(file).num_rows:
        return None
    if file.suffix == ".jsonl" or "codes" not in pq.read_schema(file).names:
        return _text_rows(file)
    found = (pq.read_schema(file).metadata or {}).get(b"vq_fingerprint", b"").decode()
    if found != vq_fingerprint and has_codes(file):
        raise ValueError(
            f"{file}: its codes are of tokenizer {found or '(not recorded)'} but the model uses {vq_fingerprint}; "
            "encode the images again with data_prep/encode_images.py and this model's tokenizer"
        )
    return datasets.Dataset.from_parquet(str(file), columns=list(ENCODED_FEATURES), features=ENCODED_FEATURES)


def _text_rows(file: Path) -> datasets.Dataset | None:
    """Text-only rows in the format of encoded ones, None without any; raises ValueError for a row with images."""
    encoded = []
    for row in read_rows(file):
        if row.images:
            raise ValueError(f"{row.where}: holds images without codes; run data_prep/encode_images.py on the file")
        encoded.append({"messages": row.messages, "codes": [], "metadata": row.metadata, "source": row.source})
    return datasets.Dataset.from_list(encoded, features=ENCODED_FEATURES) if encoded else None


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
    """

    def __init__(
        self,
        rows: datasets.Dataset,
        processor: UnifiedProcessor,
        caption_dropout: float = 0.0,
        seed: int = 0,
        evaluation: bool = False,
        files: Sequence[str] = (),
    ) -> None:
        if not 0 <= caption_dropout < 1:
            raise ValueError(f"caption_dropout {caption_dropout} is not in [0, 1); 0.1 is usual for guidance")
        self.rows, self.processor, self.files = rows, processor, files
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
            row["messages"] = [{"role": "user", "content": ""}, {"role": "assistant", "content": image}]
            row["codes"] = row["codes"][-1:]
        return {**vars(self._encode(row, index)), "index": index, "epoch": self.epoch, "evaluation": self.evaluation}

    def check_lengths(
        self,
        max_length: int,
        last_scale_fraction: float = 1.0,
        weigh: Callable[[Tensor], Tensor] | None = None,
    ) -> list[int]:
        """Number of positions of every row after dropping, computed before training.

        Raises ValueError naming a row with more than `max_length` positions, without any trained label, or whose
        labels (1, T) `weigh` nothing in the loss.
        """
        dropping = LastScaleDropping.of(self.processor, last_scale_fraction, self.seed)
        lengths, systems = [], Counter[str]()
        for index, row in enumerate(tqdm(self.rows, desc="check lengths", unit="row", mininterval=1)):
            chat = self._encode(row, index)
            self._check_trained(row, index, chat)
            if weigh is not None and not weigh(torch.tensor([chat.labels])):
                raise ValueError(
                    f"{self._name(row, index)}: the loss weights of all it answers are 0, so nothing in it is trained "
                    "or measured; set text_loss_weight or scale_loss_weights above 0, or remove the row"
                )
            systems.update([system_text(row["messages"])])
            lengths.append(dropping.kept_length(len(chat.input_ids), len(row["codes"]) - len(chat.input_image_codes)))
            if lengths[-1] > max_length:
                raise ValueError(
                    f"{self._name(row, index)} takes {lengths[-1]} positions, more than max_length "
                    f"{max_length}; raise max_length or remove the row"
                )
        self._report_systems(systems)
        return lengths

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

    def _encode(self, row: Mapping[str, Any], index: int) -> EncodedChat:
        try:
            return self.processor.encode_chat(row["messages"], row["codes"])
        except ValueError as error:
            raise ValueError(f"{self._name(row, index)}: {error}") from error

    def _name(self, row: Mapping[str, Any], index: int) -> str:
        """A row for error messages: `file:number`, from 1, where files are known, and its number in all, from 0."""
        named = name_rows(self.files, [index])
        return f"{', '.join([*named, f'row {index}'])} (source {row['source']})"

    def _check_trained(self, row: Mapping[str, Any], index: int, chat: EncodedChat) -> None:
        # labels are shifted, so the first one is never used
        if any(label != IGNORE_INDEX for label in chat.labels[1:]):
            return
        answered = any(map(is_output, row["messages"]))
        why = "its assistant turns are empty" if answered else "it has no assistant turn"
        raise ValueError(
            f"{self._name(row, index)}: {why}, so nothing in it is trained (every label is "
            f"{IGNORE_INDEX}); give it an answer with text or an image, or remove the row"
        )

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


class PreferenceCollator:
    """Preference pairs for TRL's `DPOTrainer` (all chosen answers first, then all rejected, as TRL expects).

    Examples have `messages` (the prompt), `chosen`, `rejected` (the assistant's messages) and, one list per image
    part, `codes`, `chosen_codes`, `rejected_codes`. A column `images` (it may be empty lists) and
    `remove_unused_columns=False` keep the trainer from tokenizing by itself.

    Returns `input_ids`, `attention_mask`, `completion_mask` (2B, T), padded on the right, and with input images
    `image_codes` (2N, L). The completion is the answer and the special token that ends its turn.
    """

    def __init__(self, processor: UnifiedProcessor, max_length: int) -> None:
        self.processor, self.max_length = processor, max_length

    def __call__(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        answers = [self._answer(example, kind) for kind in ("chosen", "rejected") for example in examples]
        rows = [[input_ids] for input_ids, _, _ in answers]
        batch = {
            "input_ids": pad_right(rows, self.processor.pad_token_id),
            "attention_mask": pad_right([[torch.ones_like(input_ids)] for [input_ids] in rows], 0),
            "completion_mask": pad_right([[mask] for _, mask, _ in answers], 0),
        }
        input_image_codes = [codes for *_, of_prompt in answers for codes in of_prompt]
        if input_image_codes:
            batch["image_codes"] = torch.tensor(input_image_codes)
        return batch

    def _answer(self, example: Mapping[str, Any], kind: str) -> tuple[Tensor, Tensor, list[list[int]]]:
        """Ids and completion mask (T,) of the prompt with one of its answers, and the codes of its input images."""
        answer = [example[kind]] if isinstance(example[kind], Mapping) else list(example[kind])
        prompt = self.processor.prompt_ids(example["messages"], example["codes"])
        chat = self.processor.encode_chat(
            [*example["messages"], *answer], [*example["codes"], *example[f"{kind}_codes"]]
        )
        if chat.input_ids[: len(prompt)] != prompt:
            raise ValueError(
                "the chat template renders the prompt differently when it is answered, but DPO needs it as a prefix; "
                "use another chat template"
            )
        completion = torch.tensor(chat.labels) >= 0
        completion[: len(prompt)] = False
        stop = int(completion.nonzero().max()) + 1
        if stop > self.max_length:
            raise ValueError(f"a {kind} answer ends at position {stop}, beyond max_length {self.max_length}; raise it")
        return torch.tensor(chat.input_ids[:stop]), completion[:stop].long(), chat.input_image_codes
