"""A random CLIP model on disk."""

from pathlib import Path

from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPTokenizer


def save_clip(folder: Path) -> Path:
    """Write a random CLIP (hidden 32, 16-pixel images) with a tokenizer of single letters."""
    letters = [chr(number) for number in range(97, 123)]
    words = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    CLIPTokenizer(vocab={word: index for index, word in enumerate(words)}, merges=[]).save_pretrained(folder)
    sizes = {"hidden_size": 32, "intermediate_size": 37, "num_hidden_layers": 2, "num_attention_heads": 4}
    ids = {"vocab_size": len(words), "bos_token_id": 52, "eos_token_id": 53, "max_position_embeddings": 16}
    vision = {**sizes, "image_size": 16, "patch_size": 8}
    CLIPModel(CLIPConfig(text_config={**sizes, **ids}, vision_config=vision, projection_dim=16)).save_pretrained(
        folder
    )
    CLIPImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}).save_pretrained(folder)
    return folder
