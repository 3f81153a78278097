"""The backbone's layers made faster: frozen matrices stored as they are used, and layers compiled.

Neither changes what a training learns but for rounding of sums, and which positions a `lora_dropout` hits.
"""

import os
import shutil

import torch
import torch._dynamo
from peft.tuners.lora import LoraLayer
from torch import nn
from torch.utils._triton import has_triton
from transformers.modeling_layers import GradientCheckpointingLayer

from unified.models.modeling import UnifiedForCausalLM


def round_frozen(model: nn.Module, dtype: torch.dtype) -> None:
    """Store the matrices under low-rank updates in `dtype`, that of autocast, which would cast them at every use.

    Under autocast products stay bit for bit the same, and those matrices take half the memory; without it such a model
    no longer runs. One that learns stays as it is.
    """
    for layer in model.modules():
        weight = layer.get_base_layer().weight if isinstance(layer, LoraLayer) else None
        if isinstance(weight, nn.Parameter) and not weight.requires_grad and weight.dtype == torch.float32:
            weight.data = weight.data.to(dtype)


def compile_layers(model: UnifiedForCausalLM, backend: str = "inductor") -> None:
    """Let torch compile every layer of the backbone at its first step, half a minute, for batches of all sizes.

    A batch of a single row is compiled apart. In place, so names and hooks stay; `torch.compiler.set_stance` runs the
    layers as they are written, as the trainer's evaluations do. Raises ValueError where torch has no compiler for it.
    """
    compiler = os.environ.get("CXX", "g++")
    if model.device.type == "cpu" and not shutil.which(compiler):
        raise ValueError(
            f"compile_layers True needs {compiler}, which is not here; install it, set CXX, or leave it off"
        )
    if model.device.type == "cuda" and not has_triton():
        raise ValueError("compile_layers True needs triton on a GPU; pip install triton, or leave it off")
    torch._dynamo.config.force_nn_module_property_static_shapes = False  # the image gate's masks are no parameters
    torch._dynamo.config.optimize_ddp = False  # it would cut layers into pieces, which are graphs of their own already
    for layer in model.get_submodule("model.language_model").modules():
        if isinstance(layer, GradientCheckpointingLayer):
            layer.compile(dynamic=True, backend=backend)
