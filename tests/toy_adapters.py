"""Toy models with adapters far from their base."""

from collections.abc import Callable
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor
from toy_models import input_image, output_image, random_codes

from unified import UnifiedForCausalLM
from unified.training.arguments import UnifiedTrainingArguments
from unified.training.tuning import prepare

MODELS = [
    {"backbone": "llama"},
    {"backbone": "qwen3", "tied": False, "image_positions": "sequential"},
    {"backbone": "gemma2"},
]


def arguments(**settings: Any) -> UnifiedTrainingArguments:
    fixed = {"output_dir": "unused", "tuning": "lora", "use_cpu": True, "report_to": "none"}
    return UnifiedTrainingArguments(**fixed | {"lora_positions": "image_tokens", "lora_rank": 4} | settings)


def adapted(base: UnifiedForCausalLM, **settings: Any) -> PeftModel:
    """`base`, which changes, with an adapter far from it: random updates, rows and image embedding."""
    model = prepare(base, arguments(**settings)).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model


def rows_of(model: UnifiedForCausalLM) -> dict[str, Tensor]:
    """A batch, padded on the left: text, text with an output image, an input image followed by an output image."""
    codes = random_codes(model, 3)
    rows = [
        [5, 6, 7, 8],
        [9, 10, *output_image(codes[0]), 11],
        [12, *input_image(model), 13, *output_image(codes[1]), 14],
    ]
    width = max(map(len, rows))
    return {
        "input_ids": torch.tensor([[0] * (width - len(row)) + row for row in rows]),
        "attention_mask": torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows]),
        "image_codes": codes[2:],
    }


def gradients(model: PeftModel, losses: Callable[[PeftModel], Tensor]) -> dict[str, Tensor]:
    model.zero_grad()
    losses(model).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
