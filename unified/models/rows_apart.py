"""Generation row by row, for recurrent backbones.

Rows of a batch that write and draw at different times skip columns. Attention masks them; a recurrence would have read
them. Legend: B batch, T sequence.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig

from unified.models.backbones import is_recurrent
from unified.models.generation_arguments import seeded

INPUT_IMAGES = ("pixel_values", "image_codes")


def rows_apart_where_recurrent(generate: Callable[..., Any]) -> Callable[..., Any]:
    """`generate`, which calls itself for every row of a batch that writes and draws on a recurrent backbone.

    HF's outputs of scores and states, and several sequences a prompt, are of one batch: such calls are left to it.
    """

    @functools.wraps(generate)
    def wrapped(
        model: Any,
        inputs: Tensor | None = None,
        generation_config: GenerationConfig | None = None,
        logits_processor: Any = None,
        stopping_criteria: Any = None,
        **kwargs: Any,
    ) -> Any:
        prompts = kwargs.get("input_ids") if inputs is None else inputs
        lists = {"logits_processor": logits_processor, "stopping_criteria": stopping_criteria}
        one = functools.partial(generate, model, generation_config=generation_config, **lists)
        recurrent = is_recurrent(model.config.text_config) and _writes_and_draws(kwargs)
        if recurrent and _is_plain(model, generation_config, kwargs) and prompts is not None and len(prompts) > 1:
            return _rows(model, one, prompts, _padding(model, generation_config, kwargs), **kwargs)
        return one(inputs=inputs, **kwargs)

    return wrapped


def _writes_and_draws(kwargs: Mapping[str, Any]) -> bool:
    """Whether rows of such a call may have both text and images."""
    one_kind = kwargs.get("generation_mode") in ("text", "image") or kwargs.get("max_images") == 0
    return not one_kind and kwargs.get("max_new_tokens") != 0


def _is_plain(model: Any, generation_config: GenerationConfig | None, kwargs: Mapping[str, Any]) -> bool:
    """Whether a call returns ids alone, one sequence a prompt, and has no cache, which is a batch's."""
    stored = model.generation_config if generation_config is None else generation_config
    output = kwargs.get("return_dict_in_generate", stored.return_dict_in_generate)
    return (
        not output
        and kwargs.get("past_key_values") is None
        and (kwargs.get("num_return_sequences", stored.num_return_sequences) or 1) == 1
    )


def _padding(model: Any, generation_config: GenerationConfig | None, kwargs: Mapping[str, Any]) -> int:
    """The id that HF pads with: pad_token_id, by its precedence, else the first of eos_token_id."""
    for name in ("pad_token_id", "eos_token_id"):
        for found in (
            kwargs.get(name),
            *(vars(one).get(name) for one in (generation_config, model.generation_config) if one),
        ):
            if found is not None:
                return int(torch.as_tensor(found).flatten()[0])
    raise ValueError(
        "rows of a batch that generate images are padded, but there is neither pad_token_id nor eos_token_id; "
        "pass pad_token_id"
    )


def _rows(
    model: Any,
    generate: Callable[..., Tensor],
    prompts: Tensor,
    padding: int,
    attention_mask: Tensor | None = None,
    generator: Any = None,
    seed: int | Sequence[int] | None = None,
    **kwargs: Any,
) -> Tensor:
    """Ids (B, T') of left-padded `prompts` (B, T), each generated without its padding, with its own input images."""
    kwargs.pop("input_ids", None)
    images = {name: kwargs.pop(name) for name in INPUT_IMAGES if kwargs.get(name) is not None}
    source = seeded(seed, generator, prompts.device)
    generators = source if isinstance(source, Sequence) else [source] * len(prompts)
    masks = torch.ones_like(prompts) if attention_mask is None else attention_mask
    rows, first = [], 0
    for ids, mask, own in zip(prompts, masks, generators, strict=True):
        prompt = ids[mask.bool()][None]
        last = first + int((prompt == model.config.image_pad_token_id).sum()) // model.config.input_image_length
        shown = {name: given[first:last] for name, given in images.items() if last > first}
        first = last
        written = generate(inputs=prompt, generator=own, **shown, **kwargs)
        rows.append(torch.cat([ids, written[0, prompt.shape[1] :]]))
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=padding)
