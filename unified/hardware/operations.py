"""Operations that torch runs: how many kernels, how often the host waits for the device, and the products' own time.

Seen as torch dispatches them, one by one, so that what is counted on a CPU is what an accelerator would be sent;
fused and compiled code is not seen.
"""

import time
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

_FORWARD = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_BACKWARD = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
CPU_ATTENTION = {  # FLOP of shapes; torch counts attention on CUDA only
    _FORWARD: lambda query, key, value, *_, **__: sdpa_flop_count(query, key, value),
    _BACKWARD: lambda gradient, query, key, value, *_, **__: sdpa_backward_flop_count(gradient, query, key, value),
}
PRODUCTS = {*flop_registry, *CPU_ATTENTION, torch.ops.aten.addmv, torch.ops.aten.mv, torch.ops.aten.dot}
# their results are values or shapes on the host, which has to wait for the device
WAITS = {"_local_scalar_dense", "nonzero", "is_nonzero", "masked_select", "equal", "repeat_interleave"}
INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_"}  # which wait where the index is a mask
# nothing runs on a device for these, beside views
NO_KERNEL = {"detach", "alias", "_unsafe_view", "_reshape_alias", "empty", "empty_like", "empty_strided", "new_empty"}


class Operations(TorchDispatchMode):
    """Counts the operations of the thread that enters it.

    kernels: operations that compute or copy. waits: names of those whose results the host waits for.
    product_seconds: time of matrix products, convolutions and attention (the operations whose FLOP torch counts),
    each waited for by itself.
    """

    def __init__(self) -> None:
        super().__init__()
        self.kernels, self.product_seconds = 0, 0.0
        self.waits: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        packet, inputs = func.overloadpacket, kwargs or {}
        name = str(packet).rpartition(".")[2]
        if name in WAITS or (name in INDEXING and any(_is_mask(index) for index in args[1])):
            self.waits.append(name)
        self.kernels += not (func.is_view or name in NO_KERNEL)
        if packet not in PRODUCTS:
            return func(*args, **inputs)
        _wait_for_device()
        started = time.perf_counter()
        result = func(*args, **inputs)
        _wait_for_device()
        self.product_seconds += time.perf_counter() - started
        return result


def _is_mask(index: Tensor | None) -> bool:
    return index is not None and index.dtype in (torch.bool, torch.uint8)


def _wait_for_device() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
