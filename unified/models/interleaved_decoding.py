"""One call of `generate`: HF's decoding for every stretch of text, `generate_image` for the images in between.

Legend: B batch, T columns so far, L codes of an image.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, cast

import torch
from torch import LongTensor, Tensor
from transformers import Cache, GenerationConfig, LogitsProcessor, LogitsProcessorList
from transformers.generation import (
    GenerateDecoderOnlyOutput,
    MaxLengthCriteria,
    StoppingCriteria,
    StoppingCriteriaList,
)
from transformers.generation.streamers import BaseStreamer

from unified.models.backbones import is_recurrent, new_cache
from unified.models.configuration import UnifiedConfig
from unified.models.image_generation import GenerationState
from unified.models.image_sampling import ImageSampling
from unified.models.sampling import Generators
from unified.models.sequence_layout import remaining_context
from unified.models.text_decoding import (
    AllowedIds,
    ChosenIds,
    OneStreamer,
    RowEnds,
    ShownText,
    TextColumns,
    text_generators,
)

INPUT_IMAGES = ("pixel_values", "image_codes")
RECORDS = ("scores", "logits", "attentions", "hidden_states")  # one entry a step, in HF's outputs
Decode = Callable[..., Any]


@dataclass
class CallSettings:
    """What `generate` was told beside HF's arguments.

    writes_text: False for an image alone. allowed: this call's, among its logits processors. processors, criteria: the
    caller's own.
    """

    sampling: ImageSampling
    max_images: int
    writes_text: bool
    generator: Generators
    negative_prompt_ids: Tensor | None
    allowed: AllowedIds
    processors: Sequence[LogitsProcessor] = field(default_factory=list)
    criteria: Sequence[StoppingCriteria] = field(default_factory=list)


class ImageGenerator(Protocol):
    """The interface of the model that this module uses."""

    config: UnifiedConfig

    def generate_image(self, state: GenerationState, generating: Tensor, *args: Any) -> None: ...


class InterleavedDecoding:
    """Text and images of one batch, on one KV cache; HF has prepared everything else.

    A row that starts an image waits for the others to finish or start one; then the images of all are generated
    together. Columns that a row skips are masked, and left out of what is returned.
    """

    def __init__(
        self,
        model: ImageGenerator,
        decode: Decode,
        settings: CallSettings,
        input_ids: Tensor,
        logits_processor: LogitsProcessorList,
        stopping_criteria: StoppingCriteriaList,
        generation_config: GenerationConfig,
        streamer: BaseStreamer | None = None,
        attention_mask: Tensor | None = None,
        past_key_values: Cache | None = None,
        **model_kwargs: Any,
    ) -> None:
        """`decode` is one of HF's decoding methods; the other arguments are what HF passes it."""
        self.model, self.decode, self.settings, self.config = model, decode, settings, model.config
        self.processors, self.criteria, self.generation_config = logits_processor, stopping_criteria, generation_config
        self.model_kwargs, self.cache, self.prompt = model_kwargs, past_key_values, input_ids
        self.prompt_mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        self.streamer = None if streamer is None else OneStreamer(streamer)
        ends = generation_config._eos_token_tensor
        ends = input_ids.new_zeros(0) if ends is None else ends.to(input_ids.device)
        self.stop_ids = torch.cat([ends, ends.new_tensor([self.config.boi_token_id])])
        self.columns = TextColumns(input_ids.shape[1])
        self.records: dict[str, list[Any]] = {name: [] for name in RECORDS}
        self.images, self.gaps = 0, False
        budget = generation_config.max_length - input_ids.shape[1] if settings.writes_text else 0
        self.budget = torch.full_like(input_ids[:, 0], budget)  # tokens of text left to each row
        self.state = self._new_state()

    def _new_state(self) -> GenerationState:
        input_images = {key: self.model_kwargs[key] for key in INPUT_IMAGES if self.model_kwargs.get(key) is not None}
        pad = self.generation_config._pad_token_tensor
        waits = len(self.prompt) > 1 and self.settings.max_images and self.settings.writes_text
        if waits and is_recurrent(self.config.text_config):
            raise ValueError(
                f"rows of a batch wait for each other's images, in which recurrent layers of "
                f"{self.config.text_config.model_type} would read on; generate one row at a time"
            )
        if pad is None and waits:
            raise ValueError(
                "rows of a batch that generate images are padded, but there is neither pad_token_id nor eos_token_id; "
                "pass pad_token_id"
            )
        return GenerationState(
            self.prompt,
            self.prompt_mask,
            torch.zeros_like(self.prompt[:, 0], dtype=torch.bool),
            self.config.image_pad_token_id if pad is None else int(pad),  # of one row nothing is padded
            cache=new_cache(self.config.text_config) if self.cache is None else self.cache,
            input_images=input_images,
        )

    def run(self) -> Any:
        """What `generate` returns: ids (B, T'), or HF's output where `return_dict_in_generate` is set."""
        remaining_context(self.prompt, self.prompt_mask, self.config)
        state = self.state
        while True:
            starts = (state.input_ids[:, -1] == self.config.boi_token_id) & ~state.finished
            state.finished = state.finished | (~starts & (self.budget <= 0))
            if not bool((starts | state.finished).all()):
                starts = self.generate_text(starts)
            if not starts.any():
                return self.output()
            self.generate_image(starts)

    def generate_image(self, starts: Tensor) -> None:
        """One image in the rows `starts` (B,), whose start token is their last column."""
        state, settings = self.state, self.settings
        if self.cache is None:  # use_cache=False: scales need one while an image is generated
            state.cache = new_cache(self.config.text_config)
        before = state.input_ids.shape[1]
        self.model.generate_image(state, starts, settings.sampling, settings.negative_prompt_ids, settings.generator)
        self.columns.grow_by_image(self.config.image_length)
        self.gaps = self.gaps or not bool(starts.all())
        self.images += 1
        if self.streamer is not None:
            self.streamer.put_image(state.input_ids[:, before:])

    def generate_text(self, starts: Tensor) -> Tensor:
        """Run HF's loop until every row has ended or starts an image; returns the rows (B,) that start one.

        Rows where `starts` (B,) do already. Every image start token is moved into the last column.
        """
        state = self.state
        idle = state.finished | starts
        ends = RowEnds(self.criteria, self.settings.criteria, self.stop_ids, self.budget, idle, self.columns)
        new_ids = self._decode(idle, ends)[:, state.input_ids.shape[1] :]
        active = torch.arange(new_ids.shape[1], device=new_ids.device) < (ends.ended - ends.start)[:, None]
        state.append(new_ids, active)
        self.columns.grow(new_ids.shape[1])
        self.gaps = self.gaps or not bool(active.all())
        self.budget = self.budget - active.sum(dim=1)
        starts = starts | ((new_ids == self.config.boi_token_id) & active).any(dim=1)
        state.finished = state.finished | ~starts
        state.move_last_token(starts)
        return starts

    def _decode(self, idle: Tensor, ends: RowEnds) -> Tensor:
        """Ids (B, T) after HF's loop for the rows that are not `idle`; what it recorded is kept."""
        state, settings, generation_config = self.state, self.settings, copy.copy(self.generation_config)
        generation_config.max_length = ends.start + int(self.budget[~idle].max())
        generation_config._eos_token_tensor = self.stop_ids
        generation_config._pad_token_tensor = self.stop_ids.new_tensor(state.pad_token_id)
        vocabulary = self.config.vocabulary
        forbidden = {vocabulary.boi_token_id} if self.images >= settings.max_images else set()
        settings.allowed.suppressed = [vocabulary.eoi_token_id, vocabulary.image_pad_token_id, *forbidden]
        processors, chosen = self._processors(), None
        generator = text_generators(settings.generator, ~idle)
        if generator is not None and generation_config.do_sample:
            generation_config.do_sample = False  # of the one id that is left HF takes the largest
            chosen = ChosenIds(generator, keep=bool(generation_config.output_scores))
            processors.append(chosen)
        extras: dict[str, Any] = {}
        if self.streamer is not None:
            self.streamer.begin(idle, state.pad_token_id)
            extras["streamer"] = self.streamer
        if self.cache is not None:
            extras["past_key_values"] = self.cache
        outputs = self.decode(
            state.input_ids,
            logits_processor=processors,
            stopping_criteria=StoppingCriteriaList([MaxLengthCriteria(generation_config.max_length), ends]),
            generation_config=generation_config,
            attention_mask=state.mask,
            **extras,
            **self.model_kwargs,
        )
        if isinstance(outputs, Tensor):
            return outputs
        for name, steps in self.records.items():
            steps += chosen.kept if chosen and name == "scores" else outputs.get(name) or ()
        sequences: Tensor = outputs.sequences
        return sequences

    def _processors(self) -> LogitsProcessorList:
        """The call's processors; before the first image all columns are text."""
        if bool(self.columns.kept.all()):
            return LogitsProcessorList(self.processors)
        own = [*self.settings.processors, self.settings.allowed]
        skipped = None
        if self.gaps:
            skipped = self.state.mask == 0
            skipped[:, : self.prompt.shape[1]] &= self.prompt_mask != 0  # padding of prompts is shown, as HF shows it
        return LogitsProcessorList(
            [
                processor if any(processor is one for one in own) else ShownText(processor, self.columns, skipped)
                for processor in self.processors
            ]
        )

    def output(self) -> Any:
        """Ids, or HF's output; without the cache where its columns are not those of the ids."""
        if self.streamer is not None:
            self.streamer.streamer.end()
        sequences, given = self.sequences(), self.generation_config
        if not given.return_dict_in_generate:
            return sequences
        asked = (given.output_scores, given.output_logits, given.output_attentions, given.output_hidden_states)
        records = {name: tuple(self.records[name]) for name, wanted in zip(RECORDS, asked, strict=True) if wanted}
        cache = None if self.gaps else self.cache
        return GenerateDecoderOnlyOutput(sequences=cast(LongTensor, sequences), past_key_values=cache, **records)

    def sequences(self) -> Tensor:
        """Ids (B, T') of the rows without the columns they skipped, padded on the right; prompts as they came."""
        state, width = self.state, self.prompt.shape[1]
        if not self.gaps:
            return state.input_ids
        mask = state.mask.bool()
        kept = mask.clone()
        kept[:, :width] |= self.prompt_mask == 0
        order = (~kept).long().argsort(dim=1, stable=True)
        lengths = kept.sum(dim=1, keepdim=True)
        ids = state.input_ids.gather(1, order)[:, : int(lengths.max())]
        beyond = torch.arange(ids.shape[1], device=ids.device) >= lengths
        return ids.masked_fill(beyond, state.pad_token_id)
