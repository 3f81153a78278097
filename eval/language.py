"""Language drift of a tuned model from its base: mean KL per token and greedy agreement on held-out chats.

    python eval/language.py --llm out/smollm2 --model weights/scenes-smollm2 --out results/language.json
    python eval/language.py --llm MY_LLM --model out/mine --chats my_heldout.jsonl --limit 200
    python eval/language.py --behind out/scenes-heldout/00000.parquet --out results/language_behind.json

Chats are JSONL rows of messages that end with an assistant's answer (data_prep/replay_text.py --split heldout makes
them). Printed, and written to --out, is one JSON:

    value, stderr           KL(base || tuned) in nats, mean over the answers' tokens; a chat's tokens are correlated
    greedy_agreement        share of these tokens on which both models' greedy choices agree, with its stderr
    first_token_agreement   the same share for the first token of every answer
    n, tokens               chats and tokens; prompts_sha256 is that of the file of chats

With --behind, each chat goes on from a chat about an image, for the tuned model alone: its drift once there is an
image in the context. Not 0 even for a perfect model, whose context is longer than the base's.

The base is asked as transformers asks it, by its own tokenizer and chat template (without thinking, where that has the
switch), the tuned model as its processor does: where the two contexts differ, that is part of the drift.

The tuned model's probabilities are those of the whole union vocabulary, so that mass given to image codes counts.
"""

from unified.hardware.waiting import set_wait_policy

set_wait_policy()  # before torch loads

import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from unified import UnifiedConfig, UnifiedForCausalLM, UnifiedProcessor
from unified.arguments.fields import arg_of
from unified.arguments.parser import parse, run_main
from unified.checkpoints.extension import check_llm
from unified.checkpoints.load_options import LoadOptions
from unified.checkpoints.loading import load
from unified.data.chat_dataset import load_encoded_rows
from unified.data.rows import read_rows
from unified.evaluation.metrics import clustered_mean
from unified.files.results import share_stderr, write_result
from unified.files.weights import load_strict
from unified.hardware.arguments import HardwareArguments
from unified.hardware.setup import set_up
from unified.models.chat_templates import default_template, text_runs
from unified.models.messages import Message, continue_conversation, is_output, with_system_prompt
from unified.models.processing import IGNORE_INDEX, EncodedChat
from unified.models.template_probe import probe
from unified.reports.endings import end_evaluation


@dataclass
class LanguageArguments:
    """What is compared."""

    llm: str = field(default="out/smollm2", metadata={"help": "text model before it was extended"})
    model: str = field(default="weights/scenes-smollm2", metadata={"help": "tuned checkpoint or adapter"})
    chats: str = field(default="data_prep/replay/smollm2_heldout.jsonl", metadata={"help": "JSONL of held-out chats"})
    limit: int = field(default=50, metadata={"help": "chats that are compared, the file's first"})
    base: str | None = arg_of(LoadOptions, "base")
    behind: str | None = field(
        default=None, metadata={"help": "encoded rows; chat i of the tuned model goes on from row i"}
    )
    out: str | None = field(default=None, metadata={"help": "JSON to write, beside printing it"})

    def __post_init__(self) -> None:
        if self.limit < 1:
            raise ValueError(f"--limit {self.limit}; give at least 1")
        check_llm(self.llm, "--llm")


@torch.no_grad()
def compare(
    base: torch.nn.Module,
    tuned: UnifiedForCausalLM,
    processor: UnifiedProcessor,
    messages: list[dict],
    begun: dict[str, Any] | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> tuple[Tensor, Tensor]:
    """KL(base || tuned) in nats (n,) and agreement of greedy choices (n,) on the n tokens of all answers.

    The base is prompted by `tokenizer`, its own; the processor's by default. With `begun`, an encoded row, the tuned
    model's context begins with that chat, and `messages` lose their system turn.
    """
    prefixed = processor.encode_chat(messages)
    if begun is not None:
        prefixed = processor.encode_chat(continue_conversation(begun["messages"], messages), begun["codes"])
    before = answers_of_base(base, tokenizer or processor.tokenizer, processor, messages)
    after = answers_of(tuned, prefixed)[-len(before) :]
    divergence = (before.exp() * (before - after[:, : before.shape[1]])).sum(-1)
    return divergence, before.argmax(-1) == after.argmax(-1)


def answers_of_base(
    base: torch.nn.Module, tokenizer: PreTrainedTokenizerBase, processor: UnifiedProcessor, messages: list[dict]
) -> Tensor:
    """Log-probs (n, V) of a base model for the n tokens of all answers, each behind the prompt that HF makes of it."""
    found, chat = [], with_system_prompt(messages, processor.system_prompt)
    for place in (number for number, message in enumerate(chat) if is_output(message)):
        answered, start = processor.encode_chat(chat[: place + 1]), len(processor.prompt_ids(chat[:place]))
        answer = [label for label in answered.labels[start:] if label != IGNORE_INDEX]
        prompt = prompt_of_base(tokenizer, chat[:place])
        found.append(answers_of(base, EncodedChat([*prompt, *answer], [IGNORE_INDEX] * len(prompt) + answer)))
    return torch.cat(found)


def prompt_of_base(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> list[int]:
    """Ids of a prompt as transformers makes it; contents are lists of parts where the template wants these."""
    texts = ["".join(run or "" for run in text_runs(message)) for message in messages]
    plain = [{"role": m["role"], "content": text} for m, text in zip(messages, texts, strict=True)]
    parts = [message | {"content": [{"type": "text", "text": message["content"]}]} for message in plain]
    asked: dict[str, Any] = {"add_generation_prompt": True, "enable_thinking": False}
    wants_parts = any(finding.kind == "parts" for finding in probe(tokenizer, default_template(tokenizer)))
    return tokenizer.apply_chat_template(parts if wants_parts else plain, return_dict=False, **asked)  # type: ignore[return-value]


def answers_of(model: torch.nn.Module, chat: EncodedChat) -> Tensor:
    """Log-probs (n, V) where the n tokens of a chat's answers are scored."""
    device = next(model.parameters()).device
    images = {"image_codes": torch.tensor(chat.input_image_codes, device=device)} if chat.input_image_codes else {}
    answered = (torch.tensor(chat.labels)[1:] != IGNORE_INDEX).to(device)
    logits = model(torch.tensor([chat.input_ids], device=device), **images).logits[0, :-1]
    return logits[answered].float().log_softmax(-1).cpu()


def read_begun(path: str | None, count: int, config: UnifiedConfig) -> list[dict[str, Any]] | list[None]:
    """The first encoded rows of `path`; ValueError for too few, and as `load_encoded_rows`."""
    if path is None:
        return [None] * count
    rows = load_encoded_rows([path], config)
    if len(rows) < count:
        raise ValueError(f"--behind {path} has {len(rows)} rows for {count} chats; give more rows or a lower --limit")
    return rows.select(range(count)).to_list()


def read_chats(path: str, limit: int) -> list[list[dict]]:
    """The first chats of a file; ValueError where it has none, or one that ends without an answer in words."""
    rows = list(read_rows(path, 0, limit))
    for row in rows:
        if row.images or row.tools or row.messages[-1]["role"] != "assistant":
            raise ValueError(
                f"{row.where} has pictures or tools, or does not end with the assistant's answer; give text chats"
            )
    if not rows:
        raise ValueError(f"--chats {path} is empty; give at least one chat")
    return [row.messages for row in rows]


def main() -> None:
    hardware, args = parse((HardwareArguments, LanguageArguments))
    set_up(hardware)
    start = time.time()
    chats = read_chats(args.chats, args.limit)
    tuned, processor = load(args.model, dtype="float32", base=args.base)
    base = load_strict(AutoModelForCausalLM, args.llm, dtype="float32").to(tuned.device).eval()
    begun = read_begun(args.behind, len(chats), tuned.config)
    tokenizer = AutoTokenizer.from_pretrained(args.llm)
    pairs = tqdm(zip(chats, begun, strict=True), total=len(chats), unit="chat")
    results = [compare(base, tuned, processor, *pair, tokenizer) for pair in pairs]
    found = report(results, args)
    made = {"tokenizer": tuned.config.vq_fingerprint, "seed": None, "seconds": time.time() - start}
    path = None if args.out is None else Path(args.out)
    end_evaluation(write_result(path, "kl_per_token", model=args.model, **found, **made), path)


def report(results: list[tuple[Tensor, Tensor]], args: LanguageArguments) -> dict[str, Any]:
    """What `write_result` takes of the comparison."""
    divergence, stderr = clustered_mean([kl.tolist() for kl, _ in results])
    agreement, agreement_stderr = clustered_mean([same.float().tolist() for _, same in results])
    first = sum(float(same[0]) for _, same in results) / len(results)
    return {
        "value": divergence,
        "n": len(results),
        "stderr": stderr,
        "config": {"base": args.llm, "chats": args.chats, "limit": args.limit, "behind": args.behind},
        "prompts_sha256": hashlib.sha256(Path(args.chats).read_bytes()).hexdigest(),
        "greedy_agreement": agreement,
        "greedy_agreement_stderr": agreement_stderr,
        "first_token_agreement": first,
        "first_token_agreement_stderr": share_stderr(first, len(results)),
        "tokens": sum(len(kl) for kl, _ in results),
    }


if __name__ == "__main__":
    run_main(main)
