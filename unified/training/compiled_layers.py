"""Faster backbone layers: frozen matrices stored in the compute dtype, and torch.compile.

Neither changes the training except for rounding of sums and the positions that `lora_dropout` drops.
"""

import torch
import torch._dynamo
from peft.tuners.lora import LoraLayer
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from unified.hardware.compiler import check_compiler
from unified.models.modeling import UnifiedForCausalLM


def cast_frozen_weights(model: nn.Module, dtype: torch.dtype) -> None:
    """Store the frozen base matrices of LoRA layers in `dtype`, that of autocast, which would cast them at every use.

    Under autocast products stay bit for bit the same, and those matrices take half the memory; without it such a model
    no longer runs. Trainable matrices are not changed.
    """
    for layer in model.modules():
        weight = layer.get_base_layer().weight if isinstance(layer, LoraLayer) else None
        if isinstance(weight, nn.Parameter) and not weight.requires_grad and weight.dtype == torch.float32:
            weight.data = weight.data.to(dtype)


def compile_layers(model: UnifiedForCausalLM, backend: str = "inductor") -> None:
    """torch.compile every layer of the backbone, at the first step (half a minute), with dynamic shapes.

    A batch of a single row is compiled separately. In place, so names and hooks do not change, which
    `accelerate.utils.compile_regions` would (it wraps modules), and all layers are one graph, where that makes four;
    `torch.compiler.set_stance` runs the layers eagerly, as the trainer's evaluations do. Raises ValueError without a
    compiler.
    """
    check_compiler(model.device, "compile_layers True")
    torch._dynamo.config.optimize_ddp = False  # it would split layers, which are compiled one by one already
    for layer in model.get_submodule("model.language_model").modules():
        if isinstance(layer, GradientCheckpointingLayer):
            layer.compile(dynamic=True, backend=backend)
