"""Preference pairs: format, files, validation, and datasets and collator for TRL's `DPOTrainer`.

A *pair* is `{messages, chosen, rejected, codes, chosen_codes, rejected_codes, score_chosen, score_rejected, seeds,
metadata, source}`, with `tools` where it has any: a conversation up to the assistant's turn, two lists of the
assistant's messages, and L codes for every image part of each of the three. Scores and seeds may be null.
L: codes of one image, K: scales.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import torch
from datasets import Features, List, Value
from torch import Tensor
from tqdm import tqdm

from unified.data.chat_dataset import concatenate, list_data_files
from unified.data.pair_forms import CODES_OF, TURNS, Pair, as_pair, check_turns
from unified.data.parquet import write_parquet
from unified.data.preference_collator import PreferenceCollator
from unified.data.rows import (
    ALL_MESSAGES,
    CODES,
    MESSAGES,
    BadRow,
    as_record,
    has_extras,
    iter_records,
    leave_out,
    name_errors,
)
from unified.data.shard_metadata import shared_opener
from unified.files.images import Fit
from unified.files.parquet import arrow_errors, read_schema
from unified.image_tokenizer.scales import PatchNums, normalize_patch_nums, scale_ids
from unified.models.configuration import UnifiedConfig
from unified.models.messages import content_parts, count_images
from unified.models.processing import UnifiedProcessor

PAIR_FEATURES = Features(
    {
        "messages": MESSAGES,
        "chosen": MESSAGES,
        "rejected": MESSAGES,
        "codes": CODES,
        "chosen_codes": CODES,
        "rejected_codes": CODES,
        "score_chosen": Value("float64"),
        "score_rejected": Value("float64"),
        "seeds": List(Value("int64")),
        "metadata": Value("string"),
        "source": Value("string"),
    }
)
ALL_PAIR_FEATURES = Features({**PAIR_FEATURES, **dict.fromkeys(TURNS, ALL_MESSAGES), "tools": Value("string")})
MODALITIES = ("image", "mixed", "understanding", "text")


def modality(pair: Mapping[str, Any]) -> str:
    """`image` (answers are images), `mixed` (text and image), `understanding` (text about an image), or `text`."""
    parts = [part["type"] for kind in ("chosen", "rejected") for turn in pair[kind] for part in content_parts(turn)]
    if "image" in parts:
        return "mixed" if "text" in parts else "image"
    return "understanding" if count_images(pair["messages"]) else "text"


# --- on disk


def write_pairs(
    path: str | Path,
    pairs: Iterable[Pair],
    fingerprint: str,
    patch_nums: PatchNums,
    counts: Mapping[str, float] | None = None,
    fit: Fit | None = None,
    opener: int | None = None,
) -> None:
    """Write pairs to one parquet file, atomically, with the tokenizer's fingerprint and scales.

    `counts` are stored in its metadata, for `read_counts`; `fit` as of `write_encoded_shard`, and so is `opener`, but
    None where all images were drawn.
    """
    metadata = {"vq_fingerprint": fingerprint, "patch_nums": json.dumps(normalize_patch_nums(patch_nums))}
    metadata |= {"counts": json.dumps(dict(counts or {}))} | ({} if fit is None else {"fit": fit})
    metadata |= {} if opener is None else {"opener": str(opener)}
    pairs = list(pairs)
    write_parquet(path, pa.Table.from_pylist(pairs, schema=_features(pairs).arrow_schema.with_metadata(metadata)))


def _features(pairs: Iterable[Pair]) -> Features:
    has_more = any(
        has_extras({"tools": pair.get("tools"), "messages": pair[name]}) for pair in pairs for name in TURNS
    )
    return ALL_PAIR_FEATURES if has_more else PAIR_FEATURES


def read_counts(path: str | Path) -> dict[str, float]:
    """The `counts` that a file of pairs was written with."""
    return json.loads((read_schema(path).metadata or {}).get(b"counts", b"{}"))


def load_pairs(paths: Sequence[str], config: UnifiedConfig, faults: dict[int, str] | None = None) -> datasets.Dataset:
    """Checked pairs (`PAIR_FEATURES`, or `ALL_PAIR_FEATURES`) of files and folders, of all modalities.

    Besides our parquet files, JSONL and parquet in TRL's preference formats are read: `prompt` (or `messages`),
    `chosen` and `rejected` as conversations, with implicit prompts (both answers contain the full conversation), or as
    strings. Raises ValueError naming file and row of invalid pairs, see `check_pair` and `as_pair`, and for codes of
    two openers of images. With `faults`, which gets what ails invalid pairs by place, they are left out, and a column
    `index` has the places of the others.
    """
    files = [file for path in paths for file in list_data_files(path, "pairs")]
    shared_opener(files)
    parts, places, bad = [], list[int](), dict[int, str]()
    before = 0  # pairs of the files so far, the invalid ones too
    for file in files:
        part, invalid = _load_file(file, config)
        if invalid and faults is None:
            raise ValueError(name_errors([f"{row.where}: {row.reason}" for row in invalid.values()], "pairs"))
        parts.append(part)
        bad |= {before + place: row.reason for place, row in invalid.items()}
        count = len(part) + len(invalid)
        places += [before + place for place in range(count) if place not in invalid]
        before += count
    pairs = concatenate(parts, ALL_PAIR_FEATURES)
    if not len(pairs):
        why = f"; the first: {next(iter(bad.values()))}" if bad else ""
        raise ValueError(f"{', '.join(paths)}: not one pair; generate more samples, or score them otherwise{why}")
    if faults is None:
        return pairs
    faults |= bad
    return pairs.add_column("index", places)


def _load_file(file: Path, config: UnifiedConfig) -> tuple[datasets.Dataset, dict[int, BadRow]]:
    """A file's valid pairs, and the others by place."""
    schema = read_schema(file) if file.suffix == ".parquet" else pa.schema([])
    encoded = "chosen_codes" in schema.names
    fingerprint = (schema.metadata or {}).get(b"vq_fingerprint", b"").decode() if encoded else ""
    pairs, invalid = [], dict[int, BadRow]()
    for place, (where, record) in enumerate(iter_records(file)):
        try:
            pair = as_pair(as_record(record), source=file.stem)
            check_pair(pair, config, fingerprint)
            pairs.append({} if encoded else pair)
        except ValueError as error:
            invalid[place] = BadRow(where, str(error))
    if encoded and pairs:  # memory-mapped
        features = ALL_PAIR_FEATURES if "tools" in schema.names else PAIR_FEATURES
        with arrow_errors(file):
            found = datasets.Dataset.from_parquet(str(file), columns=list(features), features=features)
        return found.select([n for n in range(len(found)) if n not in invalid]) if invalid else found, invalid
    features = _features(pairs)
    columns = {name: [pair.get(name) for pair in pairs] for name in features}  # also without pairs
    return datasets.Dataset.from_dict(columns, features=features), invalid


# --- one pair


def check_pair(pair: Pair, config: UnifiedConfig, fingerprint: str = "") -> None:
    """Raise ValueError for a pair that a model of `config` cannot be trained on with DPO.

    Invalid are prompts that end with an assistant turn, answers that are empty, not by the assistant or equal, images
    without codes, codes of another tokenizer than `config`'s (`fingerprint` is that of the pair's) or of another
    length, and scores that prefer the rejected answer.
    """
    check_turns(pair)
    _check_codes(pair, config, fingerprint)
    if pair["chosen"] == pair["rejected"] and pair["chosen_codes"] == pair["rejected_codes"]:
        what = "image" if pair["chosen_codes"] else "answer"
        raise ValueError(f"chosen and rejected are the same {what}; remove the pair")
    scores = pair["score_chosen"], pair["score_rejected"]
    if None not in scores and not scores[0] >= scores[1]:  # a tie says nothing against the pair
        raise ValueError(f"the chosen answer scores {scores[0]}, the rejected one {scores[1]}; swap them")


def _check_codes(pair: Pair, config: UnifiedConfig, fingerprint: str) -> None:
    length, size = config.image_length, config.vocabulary.codebook_size
    for kind, name in CODES_OF.items():
        images = count_images(pair[kind])
        if images != len(pair[name]):
            raise ValueError(f"{images} image parts in {kind} but {name} of {len(pair[name])}; give L codes for each")
        if images and fingerprint != config.vq_fingerprint:
            raise ValueError(
                f"its codes are of tokenizer {fingerprint[:12] or '(not recorded)'} but the model uses "
                f"{config.vq_fingerprint[:12]}; build the pairs again with data_prep/build_preferences.py"
            )
        for codes in pair[name]:
            if len(codes) != length or not 0 <= min(codes) <= max(codes) < size:
                raise ValueError(
                    f"{name} are {len(codes)} from {min(codes, default=0)} to {max(codes, default=0)}; the model's "
                    f"images have {length} from 0 to {size - 1}"
                )


# --- for training


def split_held_out(pairs: datasets.Dataset, share: float) -> tuple[datasets.Dataset, datasets.Dataset | None]:
    """Training pairs, and held-out pairs of about `share` of the prompts (None for 0).

    The split is by prompt, and a function of the prompt only.
    Raises ValueError for a share outside [0, 1), and if either split would be empty.
    """
    if not 0 <= share < 1:
        raise ValueError(f"held_out_share {share} is not in [0, 1); 0.05 is usual")
    if not share:
        return pairs, None
    names = [json.dumps([pair["messages"], pair["codes"]]) for pair in pairs.select_columns(["messages", "codes"])]
    hashes = [int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big") / 2**32 for name in names]
    out = [index for index, value in enumerate(hashes) if value < share]
    kept = [index for index, value in enumerate(hashes) if value >= share]
    if not out or not kept:
        raise ValueError(f"held_out_share {share} of {len(pairs)} pairs leaves {len(kept)} to train on; change it")
    return pairs.select(kept), pairs.select(out)


def by_modality(pairs: datasets.Dataset) -> dict[str, datasets.Dataset]:
    """The pairs by modality: as `eval_dataset`, for which TRL reports separate metrics."""
    kinds = [modality(pair) for pair in pairs]
    by_kind = {kind: [index for index, found in enumerate(kinds) if found == kind] for kind in MODALITIES}
    return {kind: pairs.select(indices) for kind, indices in by_kind.items() if indices}


def for_trl(pairs: datasets.Dataset, precompute: bool = False) -> datasets.Dataset:
    """The pairs with columns that make an unmodified `DPOTrainer` leave tokenization to `PairCollator`.

    So it is for rows of `load_encoded_rows` (`SFTTrainer`, `ChatCollator`) and of `unpaired` (`KTOTrainer`).

    A column `images` makes TRL skip its own tokenization, but then it refuses to precompute reference log-probs. So to
    `precompute`, TRL tokenizes a short dummy chat in every row; the answers' columns are renamed.
    """
    if not precompute:
        return pairs.add_column("images", [[]] * len(pairs))
    pairs = pairs.rename_columns({"chosen": "chosen_answer", "rejected": "rejected_answer"})
    for name, role in (("prompt", "user"), ("chosen", "assistant"), ("rejected", "assistant")):
        pairs = pairs.add_column(name, [[{"role": role, "content": "."}]] * len(pairs))
    return pairs


def unpaired(pairs: datasets.Dataset) -> datasets.Dataset:
    """Two rows of every pair: each answer as `completion`, `completion_codes`, with `label` whether it was chosen.

    For `KTOTrainer` with `UnpairedPreferenceCollator`; chosen and rejected answers alternate.
    """
    kept = [name for name in ("messages", "codes", "tools", "source") if name in pairs.column_names]
    rows = [
        {name: pair[name] for name in kept}
        | {"completion": pair[kind], "completion_codes": pair[f"{kind}_codes"], "label": kind == "chosen"}
        for pair in pairs
        for kind in ("chosen", "rejected")
    ]
    return datasets.Dataset.from_list(rows)


class PairCollator:
    """`PreferenceCollator` for the rows of `for_trl`, with precomputed reference log-probs where they hold them.

    Args:
        max_length: maximum positions of prompt and answer; a longer pair is a ValueError.
        num_scales: number of scales, coarse to fine, whose codes count in the answers' log-probs; None is all. As
            images are generated coarse to fine, that is the log-prob of the coarse image. TRL sums log-probs with
            weights 0 and 1 only.
    """

    def __init__(self, processor: UnifiedProcessor, max_length: int, num_scales: int | None = None) -> None:
        scales = len(processor.patch_nums)
        if num_scales is not None and not 1 <= num_scales <= scales:
            raise ValueError(f"num_scales {num_scales} of an image with {scales} scales; set it to 1 to {scales}")
        self.collate, self.vocabulary = PreferenceCollator(processor, max_length), processor.vocabulary
        self.counted = scale_ids(processor.patch_nums) < (scales if num_scales is None else num_scales)

    def __call__(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        names = ("chosen_answer", "rejected_answer") if "chosen_answer" in examples[0] else ("chosen", "rejected")
        pairs = [{**example, "chosen": example[names[0]], "rejected": example[names[1]]} for example in examples]
        batch = self.collate(pairs)
        is_image = self.vocabulary.is_image(batch["input_ids"])
        index = (torch.cumsum(is_image, dim=1) - 1).clamp(min=0) % len(self.counted)
        batch["completion_mask"] *= (self.counted[index] | ~is_image).long()
        for name in ("ref_chosen_logps", "ref_rejected_logps"):
            if name in examples[0]:
                batch[name] = torch.tensor([example[name] for example in examples])
        return batch


def check_lengths(
    pairs: datasets.Dataset,
    collator: PairCollator,
    names: Callable[[Sequence[int]], list[str]] | None = None,
    max_bad: int = 0,
    faults: Mapping[int, str] | None = None,
) -> datasets.Dataset:
    """Encode every pair before training, and return those that can be trained on.

    Args:
        names: turns indices of pairs into names for errors.
        faults: what ails pairs that `load_pairs` left out, by index; they count as well.
        max_bad: pairs that may be left out, of which the first are named on stderr.

    Raises ValueError naming some of more pairs that are too long, cannot be encoded, or have answers that are equal
    where they are scored, from which nothing can be learnt.
    """
    equal = (
        "chosen and rejected are equal where they are scored, so nothing can be learnt from them; remove the pairs, "
        "or count more scales (num_scales)"
    )
    bad: dict[int, str] = {}
    for number, pair in enumerate(tqdm(pairs, desc="check pairs", unit="pair", mininterval=1)):
        try:
            batch = collator([pair])
        except ValueError as error:
            bad[number] = str(error)
            continue
        scored = [ids[mask.bool()] for ids, mask in zip(batch["input_ids"], batch["completion_mask"], strict=True)]
        if torch.equal(*scored):
            bad[number] = equal

    def name(number: int) -> str:
        pair = pairs[number]
        file = [] if names is None else names([pair["index"]])
        return f"{', '.join([*file, f'pair {number}'])} (source {pair['source']})"

    def lost(index: int) -> str:
        return ", ".join(names([index]) if names else [f"row {index}"])

    unread = [(partial(lost, index), reason) for index, reason in (faults or {}).items()]
    leave_out([*unread, *((partial(name, number), reason) for number, reason in bad.items())], max_bad, "pairs")
    return pairs.select([number for number in range(len(pairs)) if number not in bad]) if bad else pairs
