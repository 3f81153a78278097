"""HF's Auto classes, and the names by which its pipelines know what they support."""

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForMultimodalLM,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
    MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES,
)

LANGUAGE_MODELS = {
    AutoModelForCausalLM: MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    AutoModelForImageTextToText: MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
    AutoModelForMultimodalLM: MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES,
}


def register_model(
    config: type[PreTrainedConfig], base: type[PreTrainedModel], language_model: type[PreTrainedModel]
) -> None:
    """Register a model's classes; a pipeline would call a class unsupported whose name is not in its table."""
    AutoConfig.register(config.model_type, config)
    AutoModel.register(config, base)
    for auto_class, names in LANGUAGE_MODELS.items():
        auto_class.register(config, language_model)
        names[config.model_type] = language_model.__name__
