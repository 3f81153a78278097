"""torch.compile of the scale steps: the backbone over the positions of one scale, as one graph.

Behind a `RowCache`, as a server's batches have it, shapes are few: a scale's positions, rows of the batch, and columns
of the cache in blocks. Each is compiled once, so this is for batches of one size; it is off by default, and shown on
CPUs only.
"""

from typing import Any

import torch

from unified.hardware.compiler import check_compiler
from unified.models.modeling import UnifiedForCausalLM

GRAPHS = 256  # at most, beyond which torch refuses


def compile_scale_steps(model: UnifiedForCausalLM, backend: str = "inductor", dynamic: bool | None = False) -> None:
    """Let `model` run scales behind the first compiled, each shape when it is first met; in place.

    Args:
        backend: torch.compile's.
        dynamic: False compiles every shape by itself, as CUDA graphs need it; None goes over to graphs of any size
            when sizes vary, as on a server whose batches do.

    Codes are those of the eager model but for rounding. Raises ValueError where there is no compiler, and at a step of
    a backbone that is no single graph.
    """
    if backend == "inductor":
        check_compiler(model.device, "compile_scale_steps")
    backbone = model.model.language_model

    def step(**inputs: Any) -> Any:
        return backbone(**inputs)

    settings: dict[str, Any] = {"backend": backend, "dynamic": dynamic, "recompile_limit": GRAPHS}
    model.model.compiled_scales = torch.compile(step, fullgraph=True, **settings)
