"""What a backbone does under the contract, tried when a checkpoint is made: what breaks it is refused by name.

Legend: B batch, T sequence, D hidden, V vocabulary.
"""

import inspect
import sys
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from unified.checkpoints.language_models import language_model_of
from unified.models.backbones import check_layers, layer_kinds, new_cache
from unified.models.modeling import UnifiedForCausalLM

WORDS = 8  # text ids that are scored before and after
ARGUMENTS = ("inputs_embeds", "attention_mask", "position_ids", "past_key_values", "use_cache")
# Sums of a deep network in its dtype, relative to the largest value. A broken mask or a lost factor is of order 1.
TOLERANCE = {torch.float32: 1e-3, torch.float16: 0.05, torch.bfloat16: 0.15}

FORWARD_ERRORS = (
    ArithmeticError,
    AttributeError,
    LookupError,
    NotImplementedError,
    RuntimeError,
    TypeError,
    ValueError,
)


def refuse(model_type: str, problem: str, remedy: str = "use another backbone") -> ValueError:
    return ValueError(f"the backbone {model_type} {problem}; {remedy}")


def check_backbone(text_config: PreTrainedConfig) -> None:
    """Raise ValueError for a configuration that cannot be extended, and as `check_layers`."""
    kind, settings = text_config.model_type, text_config.to_dict()
    if text_config.is_encoder_decoder:
        raise refuse(kind, "is an encoder-decoder, or the half of one", "use one with a decoder alone")
    if settings.get("alibi"):
        raise refuse(kind, "has ALiBi, which counts columns and not positions", "use one with RoPE")
    check_layers(text_config)
    if getattr(text_config, "max_position_embeddings", None) is None:
        raise refuse(kind, "has no max_position_embeddings, the length of its context")


def check_loaded(backbone: PreTrainedModel) -> None:
    """Raise ValueError for a causal LM whose parts cannot take the place of ours."""
    kind, head, body = backbone.config.model_type, backbone.get_output_embeddings(), language_model_of(backbone)
    missing = [name for name in ARGUMENTS if name not in inspect.signature(body.forward).parameters]
    if missing or body is backbone:
        raise refuse(kind, f"takes no {', '.join(missing)}" if missing else "has no base model of its own")
    windows = "create_sliding_window_causal_mask" in vars(sys.modules[type(body).__module__])
    if "sliding_attention" in layer_kinds(backbone.config.get_text_config()) and not windows:
        raise refuse(kind, "has a sliding_window that its layers do not use", "set it to null in config.json")
    if not isinstance(head, torch.nn.Linear) or not isinstance(backbone.get_input_embeddings(), torch.nn.Embedding):
        raise refuse(kind, "has no single input and output matrix")
    if head.bias is not None:
        raise refuse(kind, "has an output matrix with a bias, which is not supported", "use one without it")
    if head.in_features != backbone.get_input_embeddings().embedding_dim:
        raise refuse(kind, f"has an output matrix of width {head.in_features}, not that of its embedding")


def probe_ids(rows: int) -> Tensor:
    """Some text ids (1, WORDS) below `rows`."""
    return (torch.arange(3, 3 + WORDS) * 7 % max(1, rows))[None]


@torch.no_grad()
def score_text(backbone: PreTrainedModel) -> Tensor:
    """Logits (1, T, V) of `probe_ids` by the causal LM that is extended."""
    rows = len(backbone.get_input_embeddings().get_parameter("weight"))
    scores: Tensor = backbone.eval()(probe_ids(rows), use_cache=False).logits
    return scores


def difference(found: Tensor, expected: Tensor) -> float:
    """Largest difference relative to the largest value."""
    return float((found - expected).abs().max() / expected.abs().max().clamp(min=1e-12))


@torch.no_grad()
def check_contract(model: UnifiedForCausalLM, text_scores: Tensor) -> None:
    """Raise ValueError unless text is scored as by the causal LM, and as `compare_scales`.

    `text_scores`: those of `score_text`, before the vocabulary was extended.
    """
    kind = model.config.text_config.model_type
    rows = min(text_scores.shape[-1], *model.config.vocabulary.special_ids)  # those behind may have been padding
    try:
        logits: Tensor = model(probe_ids(rows), use_cache=False).logits[..., :rows]
        problem = compare_scales(model)
    except FORWARD_ERRORS as error:
        raise refuse(kind, f"fails when its layers get states and masks ({type(error).__name__}: {error})") from error
    off = difference(logits.float(), text_scores[..., :rows].float())
    if not off < TOLERANCE[model.dtype]:
        problem = f"scores text in another way than its hidden states times its output matrix ({off:.1e})"
    if problem:
        raise refuse(kind, problem)


def compare_scales(model: UnifiedForCausalLM) -> str:
    """What is wrong in a pass over scales; empty where a cache goes on as one pass does, and no scale sees later ones.

    Tried on text and two blocks of one and four positions, the last of which is changed.
    """
    base, tolerance = model.model, TOLERANCE[model.dtype]
    ids = probe_ids(model.config.boi_token_id)
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(model.config.vq_config.codebook_size, (1, model.config.image_length), generator=generator)
    text = base.get_input_embeddings()(ids)
    image = base.image_embedding(*base.image_features(codes, codes[:0]))[0]
    noise = torch.randn(5, text.shape[-1], generator=generator).to(text)
    states = torch.cat([text, noise[None] * image.float().std().to(text)], dim=1)
    spans = [(0, WORDS), (WORDS, WORDS + 1), (WORDS + 1, WORDS + 5)]
    positions = torch.tensor([[*range(WORDS), WORDS, *[WORDS + 1] * 4]])
    blocks = torch.tensor([[-1] * WORDS + [0] + [1] * 4])
    text_ids = torch.cat([ids, ids.new_full((1, 5), model.config.image_token_offset)], dim=1)

    def run(states: Tensor, start: int, stop: int, **more: Any) -> Tensor:
        part, valid = slice(start, stop), torch.ones(1, stop, dtype=torch.long)
        hidden: Tensor = base.run_backbone(
            states[:, part], positions[:, part], blocks[:, part], valid, text_ids=text_ids[:, part], **more
        )[0]
        return hidden.float()

    whole = run(states, 0, WORDS + 5, use_cache=False)
    cache = new_cache(model.config.text_config)
    cached = torch.cat([run(states, *span, cache=cache, use_cache=True) for span in spans], dim=1)
    off = difference(cached, whole)
    if not off < tolerance:
        return f"does not go on scale by scale from its cache as in one pass ({off:.1e})"
    changed = states.clone()
    changed[:, -1] = -changed[:, -1]
    after = run(changed, 0, WORDS + 5, use_cache=False)
    off = difference(after[:, : WORDS + 1], whole[:, : WORDS + 1])
    if not off < tolerance:
        return f"lets earlier scales see later ones ({off:.1e})"
    if torch.equal(after[:, WORDS + 1], whole[:, WORDS + 1]):
        return "does not let the positions of a scale see each other"
    return ""
