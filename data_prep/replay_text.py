"""Answers of a language model to a list of prompts: the text half of a training mixture (self-distillation).

    python data_prep/replay_text.py --model out/smollm2 --out out/replay --jsonl replay.jsonl

Greedy, left-padded batches, the recipes' own system prompt; weights in bf16 where the machine has units for it, as for
what is shipped, else in float32. Of the prompts (one a line) every sixth is held out: `--split heldout` answers those.
Every batch becomes one encoded shard `OUT/00000.parquet` (no images, so it fits every image tokenizer); a run that
was stopped goes on after the last. An answer that --max-new-tokens cuts off is shortened to its last whole sentence
and dropped when there is none: the model must not learn to stop half-way.
data_prep/replay/ holds what it wrote for SmolLM2; the recipes read that instead of running this.
"""

from unified.hardware.waiting import set_wait_policy

set_wait_policy()  # before torch loads

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from tqdm import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerFast

from unified.arguments.parser import check_minimum, parse, run_main
from unified.data.rows import init_output_folder, read_encoded_rows, write_encoded_shard
from unified.files.atomic import write_text
from unified.files.jsonl import parse_text
from unified.files.weights import load_strict
from unified.hardware.arguments import HardwareArguments
from unified.hardware.device import best_device
from unified.hardware.probe import DTYPES
from unified.hardware.setup import set_up
from unified.models.messages import SYSTEM_PROMPT, with_system_prompt
from unified.models.template_mending import mend
from unified.models.template_probe import supports_system_prompt

HELD_OUT_EVERY = 6
_SENTENCE_END = re.compile(r"(?<!\d)[.!?][\"')*]*(?=\s|$)")  # not the "2." of a list


@dataclass
class ReplayArguments:
    """Arguments of replay_text.py."""

    model: str = field(metadata={"help": "folder of a chat model, for instance out/smollm2"})
    out: str = field(metadata={"help": "folder for the shards"})
    prompts: str = field(
        default=str(Path(__file__).parent / "replay_prompts.txt"), metadata={"help": "text file, one prompt a line"}
    )
    split: Literal["train", "heldout"] = field(
        default="train", metadata={"help": "heldout: every sixth prompt, kept for measuring drift"}
    )
    jsonl: str | None = field(default=None, metadata={"help": "also write all rows to this file, at the end"})
    max_new_tokens: int = field(default=96, metadata={"help": "an answer is cut here; time grows with it"})
    batch_size: int = field(default=16, metadata={"help": "prompts per batch and shard"})
    limit: int | None = field(default=None, metadata={"help": "only the first so many prompts of the split"})

    def __post_init__(self) -> None:
        check_minimum(self, batch_size=1, max_new_tokens=1)
        if self.limit is not None:
            check_minimum(self, limit=1)


def read_prompts(path: str, split: str, limit: int | None) -> list[str]:
    """Prompts of one split; ValueError when none is left."""
    lines = parse_text(Path(path).read_bytes(), path).splitlines()
    prompts = [line.strip() for line in lines if line.strip()]
    held_out = [index % HELD_OUT_EVERY == HELD_OUT_EVERY - 1 for index in range(len(prompts))]
    chosen = [prompt for prompt, out in zip(prompts, held_out, strict=True) if out == (split == "heldout")][:limit]
    if not chosen:
        raise ValueError(f"{path} has {len(prompts)} prompts and {split} none of them; give at least {HELD_OUT_EVERY}")
    return chosen


def load(folder: str, dtype: torch.dtype) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """Model in `dtype` and its tokenizer, padding on the left; ValueError when there is none or no chat template."""
    if not Path(folder).is_dir():
        raise ValueError(f"--model {folder} is not a folder; make one with data_prep/convert_smollm2.py")
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    if tokenizer.chat_template is None:
        raise ValueError(f"--model {folder} has no chat template; give an instruction-tuned model")
    tokenizer.chat_template, _ = mend(tokenizer)  # as `unified extend` does: no answer begins with thoughts
    return load_strict(AutoModelForCausalLM, folder, dtype=dtype).to(best_device()).eval(), tokenizer


@torch.no_grad()
def answer(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, prompts: list[str], max_new_tokens: int
) -> list[str]:
    """Greedy answers to a batch of prompts, cut to whole sentences; "" where nothing whole was said."""
    chats = [with_system_prompt([{"role": "user", "content": prompt}], system_prompt(tokenizer)) for prompt in prompts]
    inputs = tokenizer.apply_chat_template(
        chats, add_generation_prompt=True, padding=True, return_tensors="pt", return_dict=True
    ).to(model.device)
    output = model.generate(**inputs, do_sample=False, max_new_tokens=max_new_tokens)
    answers = []
    for ids in output[:, inputs["input_ids"].shape[1] :]:
        text = tokenizer.decode(ids, skip_special_tokens=True).strip()
        answers.append(text if (ids == tokenizer.eos_token_id).any() else whole_sentences(text))
    return answers


def system_prompt(tokenizer: PreTrainedTokenizerFast) -> str | None:
    """The recipes' own, where the chat template has a place for it."""
    return SYSTEM_PROMPT if supports_system_prompt(tokenizer, str(tokenizer.chat_template)) else None


def whole_sentences(text: str) -> str:
    """`text` up to its last sentence end; "" when there is none or it lies inside a block of code."""
    ends = [match.end() for match in _SENTENCE_END.finditer(text)]
    kept = text[: ends[-1]] if ends else ""
    return "" if kept.count("```") % 2 else kept


def to_row(prompt: str, text: str, system: str | None = SYSTEM_PROMPT) -> dict[str, Any]:
    """Encoded row of one question and its answer."""
    turns = (("system", system), ("user", prompt), ("assistant", text))
    messages = [{"role": role, "content": [{"type": "text", "text": said}]} for role, said in turns if said]
    return {"messages": messages, "codes": [], "metadata": "{}", "source": "replay"}


def generate(arguments: ReplayArguments, prompts: list[str], out: Path, dtype: torch.dtype) -> list[Path]:
    """Answer the prompts of every shard that is not there yet; all shards, in order."""
    size = arguments.batch_size
    shards = [out / f"{index:05d}.parquet" for index in range(-(-len(prompts) // size))]
    missing = [index for index, shard in enumerate(shards) if not shard.exists()]
    if not missing:
        return shards
    model, tokenizer = load(arguments.model, dtype)
    with tqdm(total=len(prompts), initial=(len(shards) - len(missing)) * size, unit="prompt") as bar:
        for index in missing:
            batch = prompts[index * size : (index + 1) * size]
            answers = answer(model, tokenizer, batch, arguments.max_new_tokens)
            system = system_prompt(tokenizer)
            rows = [to_row(prompt, text, system) for prompt, text in zip(batch, answers, strict=True) if text]
            write_encoded_shard(shards[index], rows, fingerprint="", patch_nums=())
            bar.update(len(batch))
    return shards


def write_jsonl(path: str, shards: list[Path]) -> None:
    """All rows of the shards as one JSONL file of messages."""
    rows = [row for shard in shards for row in read_encoded_rows(shard)]
    lines = []
    for row in rows:
        messages = [{"role": turn["role"], "content": turn["content"][0]["text"]} for turn in row["messages"]]
        lines.append(json.dumps({"messages": messages, "source": row["source"]}, ensure_ascii=False) + "\n")
    write_text(path, "".join(lines))


def main() -> None:
    hardware, arguments = parse((HardwareArguments, ReplayArguments))
    choice = set_up(hardware, training=True)
    prompts = read_prompts(arguments.prompts, arguments.split, arguments.limit)
    settings = {"model": str(Path(arguments.model).resolve()), "max_new_tokens": arguments.max_new_tokens}
    out = init_output_folder(arguments.out, {**settings, "batch_size": arguments.batch_size, "prompts": prompts})
    shards = generate(arguments, prompts, out, DTYPES[choice.precision])
    if arguments.jsonl is not None:
        write_jsonl(arguments.jsonl, shards)
    print(f"{out}: {sum(1 for shard in shards for _ in read_encoded_rows(shard))} of {len(prompts)} answers kept")


if __name__ == "__main__":
    run_main(main)
