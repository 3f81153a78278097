"""One causal language model that reads text and images, writes text, and generates images scale by scale.

Names load their packages when they are first used, so that `import unified` costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from unified.checkpoints.extension import extend
    from unified.checkpoints.loading import load
    from unified.cli.version import __version__ as __version__
    from unified.image_tokenizer.configuration import VQConfig
    from unified.image_tokenizer.model import VQModel
    from unified.inference.chat import Chat
    from unified.inference.text_to_image import draw
    from unified.models.configuration import UnifiedConfig
    from unified.models.image_sampling import ImageSampling
    from unified.models.modeling import UnifiedForCausalLM, UnifiedModel
    from unified.models.processing import UnifiedProcessor

_MODULES = {
    "Chat": "inference.chat",
    "ImageSampling": "models.image_sampling",
    "UnifiedConfig": "models.configuration",
    "UnifiedForCausalLM": "models.modeling",
    "UnifiedModel": "models.modeling",
    "UnifiedProcessor": "models.processing",
    "VQConfig": "image_tokenizer.configuration",
    "VQModel": "image_tokenizer.model",
    "__version__": "cli.version",
    "draw": "inference.text_to_image",
    "extend": "checkpoints.extension",
    "load": "checkpoints.loading",
}

__all__ = [
    "Chat",
    "ImageSampling",
    "UnifiedConfig",
    "UnifiedForCausalLM",
    "UnifiedModel",
    "UnifiedProcessor",
    "VQConfig",
    "VQModel",
    "draw",
    "extend",
    "load",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, "__version__"})
