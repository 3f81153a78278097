"""How far has a tuned model's language moved from its base? Mean KL per token and greedy agreement on held-out chats.

python eval/language.py --base out/smollm2 --model out/demo/demo_sft --chats data_prep/replay/smollm2_heldout.jsonl

Chats are JSONL rows of messages that end with an assistant's answer (data_prep/replay_text.py --split heldout makes
them). Printed as one JSON: KL(base || tuned) in nats per answer token, the share of answer tokens on which both
models' greedy choices agree, and the same share for the first token alone. The tuned model's probabilities are those
of the whole union vocabulary, so that mass given to image codes counts as loss.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm
from transformers import AutoModelForCausalLM

from unified import UnifiedForCausalLM, UnifiedProcessor
from unified.arguments import parse, run_main
from unified.loading import load
from unified.rows import read_rows


@dataclass
class LanguageArguments:
    """What is compared."""

    base: str = field(default="out/smollm2", metadata={"help": "text model before it was extended"})
    model: str = field(default="out/demo/demo_sft", metadata={"help": "tuned checkpoint or adapter"})
    chats: str = field(default="data_prep/replay/smollm2_heldout.jsonl", metadata={"help": "JSONL of held-out chats"})
    limit: int = field(default=50, metadata={"help": "chats that are compared"})


@torch.no_grad()
def compare(
    base: torch.nn.Module, tuned: UnifiedForCausalLM, processor: UnifiedProcessor, messages: list[dict]
) -> tuple[Tensor, Tensor]:
    """KL(base || tuned) in nats (n,) and agreement of greedy choices (n,) on the n tokens of the last answer."""
    chat = processor.encode_chat(messages)
    ids, labels = torch.tensor([chat.input_ids]), torch.tensor([chat.labels])
    answered = labels[0, 1:] != -100
    before = base(ids).logits[0, :-1][answered].float().log_softmax(-1)
    after = tuned(ids).logits[0, :-1][answered].float().log_softmax(-1)
    divergence = (before.exp() * (before - after[:, : before.shape[1]])).sum(-1)
    return divergence, before.argmax(-1) == after.argmax(-1)


def main() -> None:
    (args,) = parse((LanguageArguments,))
    tuned, processor = load(args.model, device="cpu", dtype="float32")
    base = AutoModelForCausalLM.from_pretrained(args.base, dtype="float32").eval()
    rows = list(read_rows(args.chats))[: args.limit]
    results = [compare(base, tuned, processor, row.messages) for row in tqdm(rows, unit="chat")]
    divergence, agrees = torch.cat([kl for kl, _ in results]), torch.cat([same for _, same in results])
    first = torch.stack([same[0] for _, same in results]).float()
    report = {
        "metric": "kl_per_token",
        "value": round(float(divergence.mean()), 5),
        "greedy_agreement": round(float(agrees.float().mean()), 4),
        "first_token_agreement": round(float(first.mean()), 4),
        "n": len(rows),
        "tokens": len(divergence),
        "model": str(Path(args.model)),
        "base": args.base,
    }
    print(json.dumps(report))


if __name__ == "__main__":
    run_main(main)
