"""Random unified models of any backbone, built in memory, and ids of images for them."""

import torch
from transformers import Gemma2Config, Gemma3TextConfig, LlamaConfig, PreTrainedConfig, Qwen2Config, Qwen3Config

from unified import UnifiedConfig, UnifiedForCausalLM, VQConfig

BACKBONES = ("llama", "qwen2", "qwen3", "gemma2", "gemma3")
EOS, BOI, EOI, IMAGE_PAD, OFFSET, CODES = 2, 61, 62, 63, 64, 32  # text ids lie below 61, codes from 64 on


def toy_backbone(
    name: str, vocab_size: int = OFFSET + CODES, hidden_size: int = 32, **settings: object
) -> PreTrainedConfig:
    """Configuration of a backbone: 2 layers, 4 heads, 2 kv heads; Gemma's first layer has a window of 8."""
    classes = {"llama": LlamaConfig, "qwen2": Qwen2Config, "qwen3": Qwen3Config}
    sizes = {"vocab_size": vocab_size, "hidden_size": hidden_size, "intermediate_size": 2 * hidden_size}
    sizes["num_hidden_layers"] = 2
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512}
    ids = {"bos_token_id": 1, "eos_token_id": EOS, "pad_token_id": 0}
    if name in classes:
        return classes[name](**sizes, **heads, **ids, **settings)
    gemma = {"gemma2": Gemma2Config, "gemma3": Gemma3TextConfig}[name]
    layers = {"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"], "head_dim": 8}
    return gemma(**sizes, **heads, **ids, **layers, **settings)


@torch.no_grad()
def make_lively(model: torch.nn.Module, std: float = 0.2) -> None:
    """Reinitialize matrices so that every input matters: HF's initialization gives nearly equal logits."""
    for parameter in model.parameters():
        if parameter.ndim > 1 and parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=std)


def toy_model(
    backbone: str = "llama", tied: bool = True, seed: int = 0, hidden_size: int = 32, **settings: object
) -> UnifiedForCausalLM:
    """A random model in eval mode; `settings` are those of `UnifiedConfig`.

    Images are 32 pixels: scales (1, 2, 4) and 21 codes, or a grid of 4x4 and 16 codes in raster order.
    """
    torch.manual_seed(seed)
    patch_nums = (4,) if settings.get("image_order") == "raster" else (1, 2, 4)
    config = UnifiedConfig(
        text_config=toy_backbone(backbone, hidden_size=hidden_size, tie_word_embeddings=tied),
        vq_config=VQConfig(image_size=32, channels=(32, 32), patch_nums=patch_nums, codebook_size=CODES, code_dim=8),
        boi_token_id=BOI,
        eoi_token_id=EOI,
        image_pad_token_id=IMAGE_PAD,
        image_token_offset=OFFSET,
        **settings,
    )
    model = UnifiedForCausalLM(config).eval()
    make_lively(model)
    torch.nn.init.normal_(model.model.vq_model.quantizer.embedding.weight, std=0.5)
    config.vq_fingerprint = model.model.vq_model.fingerprint()
    model.generation_config.eos_token_id = EOS
    return model


def random_codes(model: UnifiedForCausalLM, count: int, seed: int = 0) -> torch.Tensor:
    """Codes (count, L) of images for `model`."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(CODES, (count, model.config.image_length), generator=generator)


def output_image(codes: torch.Tensor) -> list[int]:
    """Ids of an output image of `codes` (L,)."""
    return [BOI, *(codes + OFFSET).tolist(), EOI]


def input_image(model: UnifiedForCausalLM) -> list[int]:
    """Ids of an input image."""
    return [BOI, *[IMAGE_PAD] * model.config.input_image_length, EOI]
