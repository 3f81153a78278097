"""Calibrate when an adapter writes text and when it starts an image, after training: three minutes, no learning rate.

    python recipes/calibrate_image_start.py --model out/mine --out out/calibrated \\
        --texts data_prep/replay/smollm2_135m_instruct.jsonl --images out/encoded/00000.parquet out/joined

Training moves the new rows by small steps on few texts, so a chat may be answered by an image. But which kind of token
comes next depends on four vectors alone, for which this solves exactly (unified.training.image_start): on the model's
own states after --texts (chats, JSONL) and --images (encoded rows). Choices among codes, and among text tokens, stay.
Every fifth row is held out; for these and for the others each group's loss before, after, and its tokens are printed:
where text runs on the base's own weights, that of text is KL(base || model).
"""

from unified.hardware.waiting import set_wait_policy

set_wait_policy()  # before torch loads

import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path

import torch
from datasets import Dataset
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm

from unified import UnifiedConfig, UnifiedForCausalLM, UnifiedProcessor
from unified.arguments.fields import arg_of
from unified.arguments.parser import check_minimum, parse, run_main
from unified.checkpoints.adapters import ADAPTER_WEIGHTS, read_adapter_config
from unified.checkpoints.averaging import describe_copy
from unified.checkpoints.load_options import LoadOptions
from unified.checkpoints.loading import load, resolve_base_checkpoint
from unified.checkpoints.publishing import check_adapter
from unified.data.chat_dataset import ChatDataset, SFTCollator, concatenate, list_data_files, load_encoded_rows
from unified.data.rows import ALL_FEATURES
from unified.data.shard_metadata import check_one_encoding
from unified.files.atomic import check_not_exists, new_folder
from unified.files.records import RECORDS
from unified.hardware.arguments import HardwareArguments
from unified.hardware.setup import set_up
from unified.models.messages import is_text_to_image
from unified.models.vocabulary import Vocabulary
from unified.training.image_start import DECISION_GROUPS, ModalityDecisions, calibrate, collect_decisions, shift_rows

HELD_BACK = 5  # one row in so many
ROWS = "trainable_tokens_delta"  # PEFT's name for rows of tokens
NOT_COPIED = (ADAPTER_WEIGHTS, "training_args.bin", "losses.png", *RECORDS)  # of the training alone


@dataclass
class CalibrateArguments:
    """Arguments of calibrate_image_start.py."""

    model: str = field(metadata={"help": "adapter"})
    out: str = field(metadata={"help": "new folder for the calibrated adapter"})
    texts: str = field(metadata={"help": "JSONL of chats in words"})
    images: list[str] = field(metadata={"help": "encoded rows with images, above all rows with output images"})
    limit: int = field(default=400, metadata={"help": "rows of each file or folder, the first"})
    strength: float = field(default=1e-2, metadata={"help": "of the regularisation towards the rows as they are"})
    batch_size: int = field(default=8, metadata={"help": "rows run at once"})
    base: str | None = arg_of(LoadOptions, "base")

    def __post_init__(self) -> None:
        check_minimum(self, limit=HELD_BACK, strength=0, batch_size=1)


def open_rows(args: CalibrateArguments) -> dict[str, Dataset]:
    """The first rows of both files by flag; ValueError where one is missing or does not hold rows of its kind."""
    config, opened = UnifiedConfig.from_pretrained(resolve_base_checkpoint(args.model, args.base)), {}
    for flag, paths in (("--texts", [args.texts]), ("--images", args.images)):
        parts = []
        for path in paths:
            if not Path(path).exists():
                raise ValueError(f"{flag} {path} does not exist; give a file, or a folder of parquet shards")
            rows = load_encoded_rows([path], config)
            if len(rows) < HELD_BACK:
                raise ValueError(f"{flag} {path} has {len(rows)} rows; give {HELD_BACK} or more, better hundreds")
            parts.append(rows.select(range(min(args.limit, len(rows)))))
        opened[flag] = concatenate(parts, ALL_FEATURES)
    check_one_encoding(file for path in args.images for file in list_data_files(path))
    if any(opened["--texts"]["codes"]):
        raise ValueError(f"--texts {args.texts} has rows with images; give chats in words")
    drawings = sum(map(is_text_to_image, opened["--images"]["messages"]))
    if drawings < HELD_BACK:
        raise ValueError(
            f"--images {' '.join(args.images)} has {drawings} drawings in its first {args.limit} rows; give encoded "
            f"drawings, {HELD_BACK} or more"
        )
    return opened


def read(
    rows: ChatDataset, name: str, batch_size: int, model: UnifiedForCausalLM, processor: UnifiedProcessor
) -> list[ModalityDecisions]:
    """The decisions in all rows: those of rows that are fitted, and those of rows that are held out."""
    collate = SFTCollator(processor, model.config.text_config.max_position_embeddings, pack=False)
    places = range(len(rows))
    halves = [place for place in places if place % HELD_BACK], [place for place in places if not place % HELD_BACK]
    found = []
    for half in halves:
        parts = []
        for start in tqdm(range(0, len(half), batch_size), desc=name, unit="batch"):
            batch = collate([rows[place] for place in half[start : start + batch_size]])
            parts.append(collect_decisions(model, processor.vocabulary, batch))
        found.append(ModalityDecisions.join(parts))
    return found


def as_record(before: ModalityDecisions, shifts: Tensor) -> dict[str, list[float]]:
    """Every group's loss before and after, and of how many tokens."""
    counts = torch.bincount(before.groups, minlength=len(DECISION_GROUPS)).tolist()
    found = zip(DECISION_GROUPS, before.losses().tolist(), before.losses(shifts).tolist(), counts, strict=True)
    return {group: [round(old, 5), round(new, 5), count] for group, old, new, count in found if old == old}


def main() -> None:
    hardware, args = parse((HardwareArguments, CalibrateArguments))
    set_up(hardware)
    check_adapter(args.model)
    check_not_exists(args.out)
    output_rows(Path(args.model))
    opened = open_rows(args)
    model, processor = load(args.model, dtype="float32", base=args.base)
    both = [
        read(ChatDataset(rows, processor), flag, args.batch_size, model, processor) for flag, rows in opened.items()
    ]
    fitted, held_back = (ModalityDecisions.join(parts) for parts in zip(*both, strict=True))
    shifts = calibrate(fitted, args.strength)
    write(Path(args.model), args.out, shifts, processor.vocabulary)
    print(json.dumps({"fitted": as_record(fitted, shifts), "held_back": as_record(held_back, shifts)}))


def output_rows(adapter: Path) -> tuple[str, list[int]]:
    """The output matrix by PEFT's name, and which of its rows the adapter trains; ValueError for one of no rows."""
    ids = read_adapter_config(adapter).get("trainable_token_indices")
    if not ids:
        raise ValueError(
            f"--model {adapter} trains no rows of tokens, which are what is calibrated (those that dpo.py "
            "makes of a checkpoint are of layers alone); give an adapter of sft.py"
        )
    matrix = "lm_head" if "lm_head" in ids else next(iter(ids))  # tied embeddings are one, of the backbone's own name
    return matrix, ids[matrix]


def write(adapter: Path, out: str, shifts: Tensor, vocabulary: Vocabulary) -> None:
    """A copy of `adapter` in the new folder `out` whose rows of the output matrix are shifted."""
    matrix, ids = output_rows(adapter)
    weights = load_file(adapter / ADAPTER_WEIGHTS)
    (name,) = [name for name in weights if name.endswith(ROWS) and f".{matrix}." in name]
    weights[name] = shift_rows(weights[name], ids, shifts, vocabulary).to(weights[name].dtype)
    with new_folder(out) as folder:
        for path in adapter.iterdir():
            if path.is_file() and path.name not in NOT_COPIED:
                shutil.copy2(path, folder)
        save_file(weights, folder / ADAPTER_WEIGHTS, {"format": "pt"})
        describe_copy(adapter, folder, out)


if __name__ == "__main__":
    run_main(main)
