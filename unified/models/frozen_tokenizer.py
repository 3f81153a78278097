"""The image tokenizer inside a model: frozen, whatever trains, casts or wraps the model around it.

Its tensors are buffers, so no optimizer, weight decay, gradient, ZeRO partition, FSDP shard or DDP reduction ever has
them, and `requires_grad_` does not reach them. They stay float32 where the model around is cast: rounded features
would be other codes. Names in a state dict, and so files and fingerprint, are those of `VQModel`.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers.integrations import is_deepspeed_zero3_enabled

from unified.image_tokenizer.configuration import VQConfig
from unified.image_tokenizer.model import VQModel

PEFT_PREFIX = "base_model.model."  # of a model's names inside a PEFT model


@contextmanager
def outside_zero_init() -> Iterator[None]:
    """Builds modules whole in a `deepspeed.zero.Init` context, which partitions parameters as they are made."""
    if not is_deepspeed_zero3_enabled():
        yield
        return
    from deepspeed.runtime.zero.partition_parameters import restore_init_context, shutdown_init_context

    shutdown_init_context()
    try:
        yield
    finally:
        restore_init_context()


def parameters_to_buffers(module: nn.Module) -> None:
    """Turn the parameters of `module` and its submodules into float32 buffers of the same names."""
    for part in module.modules():
        for name, parameter in list(part.named_parameters(recurse=False)):
            del part._parameters[name]
            part.register_buffer(name, parameter.detach().float())


def hide_layers(module: nn.Module) -> None:
    """Have ZeRO-3 not follow the layers of `module`, which ranks may run or not: it wants the same order on all."""
    if is_deepspeed_zero3_enabled():
        from deepspeed.utils import set_z3_leaf_module

        set_z3_leaf_module(module, True)


class FrozenImageTokenizer(VQModel):
    """`VQModel` that never trains and keeps float32; `of` makes one of a tokenizer's weights."""

    def __init__(self, config: VQConfig) -> None:
        with outside_zero_init():
            super().__init__(config)
            parameters_to_buffers(self)
        hide_layers(self)
        self.eval()

    @classmethod
    def of(cls, tokenizer: VQModel) -> "FrozenImageTokenizer":
        """A frozen one with the weights of `tokenizer`, which share memory where they are float32."""
        with torch.device("meta"):
            frozen = cls(tokenizer.config)
        weights = {name: value.detach().float() for name, value in tokenizer.state_dict().items()}
        frozen.load_state_dict(weights, assign=True)
        return frozen

    def check_fingerprint(self, expected: str) -> None:
        """As `VQModel`'s; ValueError too for weights that accelerate has put elsewhere, as nothing fetches them."""
        if any(tensor.is_meta for tensor in self.buffers()):
            raise ValueError(
                "offload_buffers True takes the image tokenizer's weights away, whose codes are needed in every call; "
                "leave it out: the tokenizer is kept, and the rest offloaded as before"
            )
        super().check_fingerprint(expected)

    def train(self, mode: bool = True) -> "FrozenImageTokenizer":
        """Stay in eval mode."""
        super().train(False)
        return self

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        """As torch's, of which every cast and move of a module is made, without changes of dtype."""

        def moved(tensor: Tensor) -> Tensor:
            result = fn(tensor)
            return result if result.dtype == tensor.dtype else tensor.to(result.device)

        return super()._apply(moved, recurse)


def frozen_names(model: nn.Module) -> set[str]:
    """Names of the frozen tokenizers' tensors in `model`, as they are and inside a PEFT model; DDP is to skip them."""
    parts = [(name, part) for name, part in model.named_modules() if isinstance(part, FrozenImageTokenizer)]
    names = {f"{name}.{key}" for name, part in parts for key, _ in part.named_buffers()}
    return names | {PEFT_PREFIX + name for name in names}


def check_frozen(tokenizer: nn.Module) -> None:
    """Raise ValueError for an image tokenizer whose tensors are parameters, which a training would change."""
    names = [name for name, _ in tokenizer.named_parameters()]
    if names:
        raise ValueError(
            f"{len(names)} tensors of the image tokenizer are parameters, {names[0]} first, and would be trained, "
            "decayed or rounded; put FrozenImageTokenizer.of(tokenizer) in its place"
        )
