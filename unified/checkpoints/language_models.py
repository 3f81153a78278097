"""The causal LM in a folder: a text model, or the language model inside a multimodal one."""

import os
from typing import Any

import torch
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForMultimodalLM, PreTrainedModel

from unified.files.hub import model_folder
from unified.files.weights import load_strict


def load_llm(folder: str | os.PathLike, dtype: str = "auto") -> PreTrainedModel:
    """The causal LM in `folder`, whole where it is multimodal; `language_model_of` is the part that is extended.

    Raises ValueError if a weight is missing, or a package.
    """
    config = AutoConfig.from_pretrained(folder)
    kind = AutoModelForCausalLM if config.get_text_config() is config else AutoModelForMultimodalLM
    try:
        model: PreTrainedModel = load_strict(kind, folder, dtype=dtype)
    except ImportError as error:  # of a package that what is left behind asks for
        line = " ".join(str(error).split())
        raise ValueError(f"{folder}, a {config.model_type}, cannot be loaded here: {line}") from None
    if kind is AutoModelForMultimodalLM:  # that of the whole counts
        text_config: Any = model.config.get_text_config()
        table = model.get_input_embeddings().get_parameter("weight")
        text_config.tie_word_embeddings = model.get_output_embeddings().weight is table
    return model


def language_model_of(llm: PreTrainedModel) -> PreTrainedModel:
    """The base model of text in `llm`; ValueError where transformers cannot build it from its own configuration."""
    text_config = llm.config.get_text_config()
    if text_config is llm.config:
        return llm.base_model  # type: ignore[return-value]  # HF calls it some module
    found = llm.get_decoder()
    expected = AutoModel._model_mapping.get(type(text_config), None)  # type: ignore[attr-defined]
    if type(found) is not expected:
        raise ValueError(
            f"the language model inside {llm.config.model_type}, a {type(found).__name__}, is none that transformers "
            f"builds from {type(text_config).__name__}; use a text model"
        )
    return found  # type: ignore[no-any-return]  # HF leaves it open


def left_behind(llm: str | os.PathLike) -> str:
    """What of a multimodal model in `llm` is not taken, in a line; empty for a text model."""
    config = AutoConfig.from_pretrained(model_folder(llm, "--llm"))
    if config.get_text_config() is config:
        return ""
    with torch.device("meta"):
        whole = AutoModelForMultimodalLM.from_config(config)
    taken = {id(parameter) for parameter in language_model_of(whole).parameters()}
    taken |= {id(parameter) for parameter in whole.get_output_embeddings().parameters()}
    rest: dict[str, int] = {}
    for name, parameter in whole.named_parameters():
        if id(parameter) not in taken:
            part = name.removeprefix(f"{whole.base_model_prefix}.").split(".")[0]
            rest[part] = rest.get(part, 0) + parameter.numel()
    parts = ", ".join(f"{part} ({count / 1e6:.1f}M parameters)" for part, count in rest.items())
    return f"of {config.model_type} the language model is taken; left behind: {parts or 'nothing'}"
