"""Vocabulary extension: a text LLM and an image tokenizer are combined into one checkpoint, offline.

Done before any distributed launch, since resizing embeddings under ZeRO-3 is error-prone.
Legend: V codebook size, C code dim, D hidden.
"""

import json
import os

import torch
from torch import Tensor, nn
from transformers import (
    AddedToken,
    AutoConfig,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES,
)

from unified.checkpoints.backbone_probe import check_backbone, check_contract, check_loaded, score_text
from unified.checkpoints.language_models import language_model_of, load_llm
from unified.checkpoints.publishing import save
from unified.files.atomic import check_not_exists
from unified.files.hub import model_folder
from unified.image_tokenizer.loading import load_vq
from unified.image_tokenizer.model import VQModel
from unified.models.chat_fingerprint import chat_fingerprint
from unified.models.chat_templates import default_template
from unified.models.configuration import ImageOrder, ImagePositions, UnifiedConfig
from unified.models.frozen_tokenizer import FrozenImageTokenizer
from unified.models.image_embedding import ImageEmbedding
from unified.models.modeling import UnifiedForCausalLM
from unified.models.processing import UnifiedProcessor
from unified.models.template_mending import mend
from unified.models.template_probe import Finding, probe
from unified.models.vocabulary import SPECIAL_TOKENS, Vocabulary, offset_for


def extend(
    llm: str | os.PathLike,
    vq: str | os.PathLike,
    out: str | os.PathLike,
    image_order: ImageOrder = "scales",
    image_positions: ImagePositions = "shared",
    dtype: str = "auto",
    seed: int = 0,
) -> UnifiedForCausalLM:
    """Extend the vocabulary of `llm` by the codes of `vq`, write checkpoint and processor to `out`; returns the model.

    `llm` and `vq` are folders, or names of the hub. Of a multimodal LLM the language model is taken.
    What is wrong with the LLM's chat template is mended in the checkpoint's own.
    Raises ValueError if `out` exists, and as `check_llm`, `check_backbone`, `load_vq` and `mend`.
    """
    check_not_exists(out)
    llm, vq = model_folder(llm, "--llm"), model_folder(vq, "--vq")
    check_llm(llm, "--llm")
    vq_model = load_vq(vq, "cpu")
    check_backbone(AutoConfig.from_pretrained(llm).get_text_config())
    tokenizer = AutoTokenizer.from_pretrained(llm)
    backbone = load_llm(llm, dtype)
    mend(tokenizer)  # refused before weights are computed
    model = join(backbone, vq_model, tokenizer, image_order, image_positions, seed)
    processor = UnifiedProcessor.from_config(tokenizer, model.config)
    stop_at(model, processor)
    model.config.chat_fingerprint = chat_fingerprint(processor, model.config)
    save(model, processor, out, [llm])
    return model


def stop_at(model: UnifiedForCausalLM, processor: UnifiedProcessor) -> None:
    """Add the token that ends answers in the chat template to those at which `model.generate` stops.

    Base models name another one, with which a chat would never stop.
    """
    end = processor.end_token_id
    assert end is not None, "a template that `mend` took has an end"
    found = model.generation_config.eos_token_id
    ends = [] if found is None else [found] if isinstance(found, int) else list(found)
    if end not in ends:
        model.generation_config.eos_token_id = [*ends, end] if ends else end


def template_findings(llm: str | os.PathLike) -> list[Finding]:
    """What `extend` mends in the chat template of `llm`, one finding of each kind."""
    tokenizer = AutoTokenizer.from_pretrained(model_folder(llm, "--llm"))
    found = probe(tokenizer, default_template(tokenizer))
    return list({finding.kind: finding for finding in reversed(found)}.values())[::-1]


def check_llm(folder: str | os.PathLike, flag: str) -> None:
    """Raise ValueError starting with `flag` unless `folder` contains a causal LM that `transformers` supports."""
    config = model_folder(folder, flag) / "config.json"
    found = "no config.json"
    if config.is_file():
        try:
            kind = json.loads(config.read_text(encoding="utf-8"))["model_type"]
            if kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES or kind in MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES:
                return
            found = f"a model of type {kind!r}"
        except (ValueError, TypeError, KeyError):
            found = "a config.json without model_type"
    raise ValueError(
        f"{flag} {folder} holds no causal LM of transformers ({found}); give the folder of a text model as "
        "save_pretrained writes it: config.json, weights and tokenizer"
    )


def join(
    backbone: PreTrainedModel,
    vq_model: VQModel,
    tokenizer: PreTrainedTokenizerBase,
    image_order: ImageOrder = "scales",
    image_positions: ImagePositions = "shared",
    seed: int = 0,
) -> UnifiedForCausalLM:
    """Combine a loaded causal LM and image tokenizer; the three special tokens are added to `tokenizer`.

    Raises ValueError if the output matrix is narrower than the codebook, and as `check_loaded`, `extend_tokenizer`
    and `check_contract`.
    """
    check_loaded(backbone)
    text_scores = score_text(backbone)
    text_rows = len(backbone.get_input_embeddings().get_parameter("weight"))
    vocabulary = extend_tokenizer(tokenizer, text_rows, vq_model.config.codebook_size)
    generator = torch.Generator().manual_seed(seed)
    projection = orthonormal(vq_model.config.code_dim, backbone.config.get_text_config().hidden_size, generator)
    extend_matrices(backbone, vocabulary, vq_model.quantizer.embedding.weight, projection)
    config = UnifiedConfig(
        text_config=backbone.config.get_text_config(),
        vq_config=vq_model.config,
        vq_fingerprint=vq_model.fingerprint(),
        image_order=image_order,
        image_positions=image_positions,
        boi_token_id=vocabulary.boi_token_id,
        eoi_token_id=vocabulary.eoi_token_id,
        image_pad_token_id=vocabulary.image_pad_token_id,
        image_token_offset=vocabulary.image_token_offset,
    )
    with torch.device("meta"):
        model = UnifiedForCausalLM(config)
    model.model.set_backbone(language_model_of(backbone))
    model.lm_head = backbone.get_output_embeddings()
    model.model.vq_model = FrozenImageTokenizer.of(vq_model)
    model.model.image_embedding = init_image_embedding(config, backbone, vq_model, projection, generator)
    model.generation_config = backbone.generation_config
    if "output_router_logits" in vars(config.text_config):
        config.text_config.output_router_logits = False  # training adds the balance loss itself, see `balance_of`
    check_contract(model.eval(), text_scores)
    return model


def extend_tokenizer(tokenizer: PreTrainedTokenizerBase, text_rows: int, codebook_size: int) -> Vocabulary:
    """Add the three special tokens to `tokenizer`; codes come after its ids and the matrices' `text_rows`.

    Raises ValueError if it already has the three and others after them, which would never be sampled.
    """
    tokenizer.add_tokens([AddedToken(t, special=True, normalized=False) for t in SPECIAL_TOKENS], special_tokens=True)
    ids = tokenizer.get_vocab()
    offset = offset_for(max(text_rows, len(tokenizer)))
    vocabulary = Vocabulary(offset, codebook_size, *(ids[token] for token in SPECIAL_TOKENS))
    if max(ids.values()) not in vocabulary.text_ids:
        raise ValueError(
            f"the tokenizer has id {max(ids.values())} after those of {', '.join(SPECIAL_TOKENS)}, which must be the "
            "last; use the tokenizer of a model without them"
        )
    return vocabulary


def orthonormal(code_dim: int, hidden: int, generator: torch.Generator) -> Tensor:
    """Random directions (C, D) with unit rows, orthogonal where C <= D."""
    if code_dim > hidden:
        raise ValueError(f"code_dim {code_dim} exceeds the backbone's hidden size {hidden}; use a narrower codebook")
    return torch.linalg.qr(torch.randn(hidden, code_dim, generator=generator)).Q.T


@torch.no_grad()
def extend_matrices(backbone: PreTrainedModel, vocabulary: Vocabulary, codebook: Tensor, projection: Tensor) -> None:
    """Resize the backbone's input and output matrix to `vocabulary` and initialize new rows; `codebook` is (V, C).

    New text rows and those of the special tokens, which may lie in the old matrices' padding, are the mean of the
    tokenizer's rows; the rest of that padding stays. A code's row is that mean plus its projection, scaled to the
    tokenizer's rows' mean distance from it.
    """
    text_rows = len(backbone.get_input_embeddings().get_parameter("weight"))
    words = min(text_rows, *vocabulary.special_ids)  # rows behind these are padding
    backbone.resize_token_embeddings(vocabulary.size, mean_resizing=False)
    directions = nn.functional.normalize((codebook - codebook.mean(dim=0)).float(), dim=-1) @ projection
    for matrix in (backbone.get_input_embeddings(), backbone.get_output_embeddings()):
        weight = matrix.get_parameter("weight")  # if the two are tied, the second pass changes nothing
        rows = weight[:words].float()
        mean = rows.mean(dim=0)
        radius = (rows - mean).norm(dim=-1).mean()
        weight[text_rows:] = mean.to(weight.dtype)
        weight[list(vocabulary.special_ids)] = mean.to(weight.dtype)
        vocabulary.code_rows(weight).copy_(mean + directions * radius)


@torch.no_grad()
def init_image_embedding(
    config: UnifiedConfig, backbone: PreTrainedModel, vq_model: VQModel, projection: Tensor, generator: torch.Generator
) -> ImageEmbedding:
    """Initialize the image embedding: states of the text states' norm, features in the directions of code rows."""
    table = backbone.get_input_embeddings()
    sample = torch.randint(config.image_token_offset, (4096,), generator=generator)
    text_norm = table(sample).float().norm(dim=-1).mean()  # through the module: Gemma scales its rows there
    embedding = ImageEmbedding(config)
    for parameter in embedding.parameters():
        parameter.normal_(0, 1, generator=generator)
    hidden = config.text_config.hidden_size
    code_norm = vq_model.quantizer.embedding.weight.norm(dim=-1).mean()
    for linear in (embedding.scale_in, embedding.image_in):
        linear.weight.copy_(projection.T * text_norm / code_norm)
        linear.bias.zero_()
    embedding.start.weight.mul_(text_norm / hidden**0.5)
    embedding.scale_embedding.weight.mul_(0.5 * text_norm / hidden**0.5)
    # sines and cosines of 16 angles have a squared norm of 16
    embedding.grid_embedding.weight.mul_(0.5 * text_norm / (16 * hidden) ** 0.5)
    return embedding.to(table.get_parameter("weight").dtype)
