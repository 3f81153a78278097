"""A world in which GenEval's detector is small: hand-made logits, and random Mask2Former and CLIP on disk."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tokenizers.pre_tokenizers import ByteLevel
from torch import Tensor
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer, Mask2FormerConfig, SwinConfig

from unified.evaluation.coco_detector import CocoSettings, InstanceSegmenter, Sizes

TINY = CocoSettings(shortest_edge=64, longest_edge=96, batch_size=2, colour_batch_size=3)
MOUSE, REMOTE = 64, 65


def same(height: int, width: int) -> Sizes:
    """No scaling and no padding."""
    return Sizes((height, width), (height, width), (height, width))


def class_logits(*queries: dict[int, float]) -> Tensor:
    """Logits (Q, 81) whose softmax gives each query these probabilities; the rest goes to `no object`."""
    probabilities = torch.full((len(queries), 81), 1e-9)
    for row, wanted in zip(probabilities, queries, strict=True):
        for label, probability in wanted.items():
            row[label] = probability
        row[80] = 1 - sum(wanted.values())
    return probabilities.log()


def box_logits(height: int, width: int, *boxes: tuple[int, int, int, int], inside: float = 4.0) -> Tensor:
    """Mask logits (len(boxes), height, width): `inside` in x1 y1 x2 y2, -9 elsewhere."""
    logits = torch.full((len(boxes), height, width), -9.0)
    for mask, (x1, y1, x2, y2) in zip(logits, boxes, strict=True):
        mask[y1:y2, x1:x2] = inside
    return logits


def sigmoid(value: float) -> float:
    return float(torch.tensor(value).sigmoid())


def tiny_mask2former_config() -> Mask2FormerConfig:
    stages = [f"stage{number}" for number in range(1, 5)]
    swin = SwinConfig(
        image_size=64, embed_dim=8, depths=[1] * 4, num_heads=[1] * 4, window_size=4, mlp_ratio=1, out_features=stages
    )
    sizes = {"feature_size": 32, "mask_feature_size": 32, "hidden_dim": 32, "num_attention_heads": 2}
    layers = {"encoder_layers": 1, "decoder_layers": 3, "encoder_feedforward_dim": 16, "dim_feedforward": 16}
    names = {index: f"class {index}" for index in range(80)}
    return Mask2FormerConfig(backbone_config=swin, num_queries=8, id2label=names, **sizes, **layers)


def save_tiny_mask2former(folder: Path) -> Path:
    """Random Mask2Former for COCO that is sure of what it sees."""
    torch.manual_seed(0)
    model = InstanceSegmenter(tiny_mask2former_config())
    torch.nn.init.normal_(model.class_predictor.weight, std=2)
    model.save_pretrained(folder)
    return folder


def save_tiny_clip(folder: Path) -> Path:
    """Random CLIP with a tokenizer of single bytes."""
    torch.manual_seed(1)
    symbols = sorted(ByteLevel.alphabet())
    words = [*symbols, *(f"{symbol}</w>" for symbol in symbols), "<|startoftext|>", "<|endoftext|>"]
    CLIPTokenizer(vocab={word: index for index, word in enumerate(words)}, merges=[]).save_pretrained(folder)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    ids = {"vocab_size": len(words), "bos_token_id": len(words) - 2, "eos_token_id": len(words) - 1}
    vision = {**sizes, "image_size": 32, "patch_size": 8}
    config = CLIPConfig(text_config={**sizes, **ids}, vision_config=vision, projection_dim=16)
    CLIPModel(config).save_pretrained(folder)
    return folder


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    """Soft blobs of colour."""
    small = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)
