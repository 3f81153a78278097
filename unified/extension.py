"""Vocabulary extension: a text LLM and an image tokenizer become one checkpoint, offline.

Done before any distributed launch, since resizing embeddings under ZeRO-3 is a known trap.
Legend: V codebook size, C code dim, D hidden.
"""

import os
import shutil
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import AddedToken, AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from unified.configuration import UnifiedConfig
from unified.image_embedding import ImageEmbedding
from unified.modeling import UnifiedForCausalLM
from unified.processing import UnifiedProcessor
from unified.vocabulary import BOI_TOKEN, EOI_TOKEN, IMAGE_PAD_TOKEN, SPECIAL_TOKENS, offset_for
from unified.vq_model import VQModel

# multipliers between hidden state and logits that our head does not apply, and the value that means none
HEAD_MULTIPLIERS = {"logit_scale": 1.0, "logits_scaling": 1.0, "lm_head_multiplier": 1.0, "output_multiplier": 1.0}


def extend(
    llm: str | os.PathLike,
    vq: str | os.PathLike,
    out: str | os.PathLike,
    image_order: str = "scales",
    image_positions: str = "tick",
    dtype: str = "auto",
    seed: int = 0,
) -> UnifiedForCausalLM:
    """Write to `out` a checkpoint and processor of `llm` with `vq`'s codes behind its vocabulary; returns the model.

    Raises ValueError where `out` is in the way, or the backbone scales its logits in a way the head does not know.
    """
    out = Path(out)
    if out.exists():
        raise ValueError(f"{out} exists already; give --out a new folder or remove it")
    for folder in (llm, vq):
        if not (Path(folder) / "config.json").is_file():
            raise ValueError(f"{folder} has no config.json; give a folder written by save_pretrained")
    check_head(AutoConfig.from_pretrained(llm).get_text_config())
    tokenizer = AutoTokenizer.from_pretrained(llm)
    backbone = AutoModelForCausalLM.from_pretrained(llm, dtype=dtype)
    model = join(backbone, VQModel.from_pretrained(vq), tokenizer, image_order, image_positions, seed)
    partial = out.with_name(out.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    model.save_pretrained(partial)
    UnifiedProcessor.from_config(tokenizer, model.config).save_pretrained(partial)
    os.replace(partial, out)
    return model


def check_head(text_config: object) -> None:
    """Raise ValueError for backbones whose logits are multiplied on the way."""
    settings = text_config.to_dict()
    for name, neutral in HEAD_MULTIPLIERS.items():
        if settings.get(name, neutral) not in (neutral, None):
            raise ValueError(f"the backbone's {name} is {settings[name]}, which is not supported; use one without it")


def join(
    backbone: nn.Module,
    vq_model: VQModel,
    tokenizer: PreTrainedTokenizerBase,
    image_order: str = "scales",
    image_positions: str = "tick",
    seed: int = 0,
) -> UnifiedForCausalLM:
    """The model of a loaded causal LM and image tokenizer; `tokenizer` gains the three special tokens.

    Raises ValueError where the output matrix has a bias or is narrower than the codebook.
    """
    if backbone.get_output_embeddings().bias is not None:
        raise ValueError("the backbone's output matrix has a bias, which is not supported; use one without it")
    tokenizer.add_tokens([AddedToken(t, special=True, normalized=False) for t in SPECIAL_TOKENS], special_tokens=True)
    text_rows = backbone.get_input_embeddings().weight.shape[0]
    offset = offset_for(max(text_rows, len(tokenizer)))
    boi, eoi, image_pad = tokenizer.convert_tokens_to_ids([BOI_TOKEN, EOI_TOKEN, IMAGE_PAD_TOKEN])
    generator = torch.Generator().manual_seed(seed)
    projection = orthonormal(vq_model.config.code_dim, backbone.config.get_text_config().hidden_size, generator)
    grow(backbone, offset, vq_model.quantizer.embedding.weight, projection)
    config = UnifiedConfig(
        text_config=backbone.config.get_text_config(),
        vq_config=vq_model.config,
        vq_fingerprint=vq_model.fingerprint(),
        image_order=image_order,
        image_positions=image_positions,
        boi_token_id=boi,
        eoi_token_id=eoi,
        image_pad_token_id=image_pad,
        image_token_offset=offset,
    )
    with torch.device("meta"):
        model = UnifiedForCausalLM(config)
    model.model.language_model = backbone.base_model
    model.lm_head = backbone.get_output_embeddings()
    model.model.vq_model = vq_model.requires_grad_(False)
    model.model.image_embedding = start_embedding(config, backbone, vq_model, projection, generator)
    model.generation_config = backbone.generation_config
    return model.eval()


def orthonormal(code_dim: int, hidden: int, generator: torch.Generator) -> Tensor:
    """Random directions (C, D) with unit rows, orthogonal where C <= D."""
    if code_dim > hidden:
        raise ValueError(
            f"code_dim {code_dim} exceeds the backbone's hidden size {hidden}; use a narrower codebook"
        )
    return torch.linalg.qr(torch.randn(hidden, code_dim, generator=generator)).Q.T


@torch.no_grad()
def grow(backbone: nn.Module, offset: int, codebook: Tensor, projection: Tensor) -> None:
    """Add rows up to `offset` and one per code of `codebook` (V, C) to the backbone's input and output matrix.

    New text rows are the mean of the old ones; a code's row is that mean plus its projection, scaled so that code rows
    spread as text rows do.
    """
    text_rows = backbone.get_input_embeddings().weight.shape[0]
    backbone.resize_token_embeddings(offset + len(codebook), mean_resizing=False)
    directions = nn.functional.normalize((codebook - codebook.mean(dim=0)).float(), dim=-1) @ projection
    for matrix in {id(m): m for m in (backbone.get_input_embeddings(), backbone.get_output_embeddings())}.values():
        rows = matrix.weight[:text_rows].float()
        mean = rows.mean(dim=0)
        radius = (rows - mean).norm(dim=-1).mean()
        matrix.weight[text_rows:offset] = mean.to(matrix.weight.dtype)
        matrix.weight[offset:] = (mean + directions * radius).to(matrix.weight.dtype)


@torch.no_grad()
def start_embedding(
    config: UnifiedConfig, backbone: nn.Module, vq_model: VQModel, projection: Tensor, generator: torch.Generator
) -> ImageEmbedding:
    """Image input states that start as large as the backbone's text states, features along the codes' directions."""
    table = backbone.get_input_embeddings()
    sample = torch.randint(config.image_token_offset, (4096,), generator=generator)
    size = table(sample).float().norm(dim=-1).mean()  # through the module: Gemma scales its rows there
    embedding = ImageEmbedding(config)
    for parameter in embedding.parameters():
        parameter.normal_(0, 1, generator=generator)
    hidden = config.text_config.hidden_size
    code_norm = vq_model.quantizer.embedding.weight.norm(dim=-1).mean()
    for linear in (embedding.scale_in, embedding.image_in):
        linear.weight.copy_(projection.T * size / code_norm)
        linear.bias.zero_()
    embedding.start.weight.mul_(size / hidden**0.5)
    embedding.scale_embedding.weight.mul_(0.5 * size / hidden**0.5)
    # 16 coordinates' sines and cosines have a squared norm of 16
    embedding.grid_embedding.weight.mul_(0.5 * size / (16 * hidden) ** 0.5)
    return embedding.to(table.weight.dtype)
