"""One causal language model that reads text and images, writes text, and paints images scale by scale."""

from unified.configuration import UnifiedConfig, VQConfig
from unified.modeling import UnifiedForCausalLM, UnifiedModel
from unified.processing import UnifiedProcessor
from unified.vq_model import VQModel

__all__ = ["UnifiedConfig", "UnifiedForCausalLM", "UnifiedModel", "UnifiedProcessor", "VQConfig", "VQModel"]
