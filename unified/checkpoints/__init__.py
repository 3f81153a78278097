"""Models on disk: made from an LLM and an image tokenizer, loaded, merged, published.

extension   vocabulary extension: LLM + image tokenizer -> one checkpoint
loading     a folder -> model and processor
adapters    LoRA adapters on disk, and whether a base is theirs
publishing  saved whole, merged, or small enough to ship
"""

__all__ = ["adapters", "extension", "loading", "publishing"]
