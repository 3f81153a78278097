"""How far has a tuned model's language moved from its base? Mean KL per token and greedy agreement on held-out chats.

    python eval/language.py --base out/smollm2 --model out/demo/demo_sft --out results/language.json
    python eval/language.py --base MY_LLM --model out/mine --chats my_heldout.jsonl --limit 200

Chats are JSONL rows of messages that end with an assistant's answer (data_prep/replay_text.py --split heldout makes
them). Printed, and written to --out, is one JSON:

    value, stderr           KL(base || tuned) in nats, mean over the answers' tokens; a chat's tokens hang together
    greedy_agreement        share of these tokens on which both models' greedy choices agree, with its stderr
    first_token_agreement   the same share for the first token of every answer
    n, tokens               chats and tokens

The tuned model's probabilities are those of the whole union vocabulary, so that mass given to image codes counts.
"""

import hashlib
import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm
from transformers import AutoModelForCausalLM

from unified import UnifiedForCausalLM, UnifiedProcessor
from unified.arguments import parse, run_main
from unified.loading import load
from unified.metrics import clustered_mean
from unified.processing import IGNORE_INDEX
from unified.results import write_result
from unified.rows import read_rows


@dataclass
class LanguageArguments:
    """What is compared."""

    base: str = field(default="out/smollm2", metadata={"help": "text model before it was extended"})
    model: str = field(default="out/demo/demo_sft", metadata={"help": "tuned checkpoint or adapter"})
    chats: str = field(default="data_prep/replay/smollm2_heldout.jsonl", metadata={"help": "JSONL of held-out chats"})
    limit: int = field(default=50, metadata={"help": "chats that are compared, the file's first"})
    out: str | None = field(default=None, metadata={"help": "JSON to write, beside printing it"})

    def __post_init__(self) -> None:
        if self.limit < 1:
            raise ValueError(f"--limit {self.limit}; give at least 1")
        if not Path(self.base).is_dir():
            raise ValueError(f"--base {self.base} is not a folder; give the text model that was extended")


@torch.no_grad()
def compare(
    base: torch.nn.Module, tuned: UnifiedForCausalLM, processor: UnifiedProcessor, messages: list[dict]
) -> tuple[Tensor, Tensor]:
    """KL(base || tuned) in nats (n,) and agreement of greedy choices (n,) on the n tokens of the last answer."""
    chat = processor.encode_chat(messages)
    ids, labels = torch.tensor([chat.input_ids]), torch.tensor([chat.labels])
    answered = labels[0, 1:] != IGNORE_INDEX
    before = base(ids).logits[0, :-1][answered].float().log_softmax(-1)
    after = tuned(ids).logits[0, :-1][answered].float().log_softmax(-1)
    divergence = (before.exp() * (before - after[:, : before.shape[1]])).sum(-1)
    return divergence, before.argmax(-1) == after.argmax(-1)


def read_chats(path: str, limit: int) -> list[list[dict]]:
    """The first chats of a file; ValueError where it has none, or one that ends without an answer in words."""
    rows = list(read_rows(path, 0, limit))
    for row in rows:
        if row.images or row.messages[-1]["role"] != "assistant":
            raise ValueError(f"{row.where} has pictures or does not end with the assistant's answer; give text chats")
    if not rows:
        raise ValueError(f"--chats {path} is empty; give at least one chat")
    return [row.messages for row in rows]


def main() -> None:
    (args,) = parse((LanguageArguments,))
    start = time.time()
    chats = read_chats(args.chats, args.limit)
    tuned, processor = load(args.model, device="cpu", dtype="float32")
    base = AutoModelForCausalLM.from_pretrained(args.base, dtype="float32").eval()
    results = [compare(base, tuned, processor, chat) for chat in tqdm(chats, unit="chat")]
    print(json.dumps(write_result(**report(results, args), seconds=round(time.time() - start, 1))))


def report(results: list[tuple[Tensor, Tensor]], args: LanguageArguments) -> dict[str, Any]:
    """What `write_result` takes."""
    divergence, stderr = clustered_mean([kl.tolist() for kl, _ in results])
    agreement, agreement_stderr = clustered_mean([same.float().tolist() for _, same in results])
    digest = hashlib.sha256(Path(args.chats).read_bytes()).hexdigest()
    return {
        "path": None if args.out is None else Path(args.out),
        "metric": "kl_per_token",
        "value": divergence,
        "n": len(results),
        "model": args.model,
        "config": {"base": args.base, "chats": args.chats, "chats_sha256": digest, "limit": args.limit},
        "stderr": stderr,
        "greedy_agreement": agreement,
        "greedy_agreement_stderr": agreement_stderr,
        "first_token_agreement": sum(float(same[0]) for _, same in results) / len(results),
        "tokens": sum(len(kl) for kl, _ in results),
    }


if __name__ == "__main__":
    run_main(main)
