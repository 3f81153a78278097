"""Answers with pictures for TRL's `GRPOTrainer`, which trains on what the policy itself says and draws.

Legend: B prompts, T sequence.
"""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from peft import PeftModel
from torch import Tensor
from trl.models import unwrap_model_for_generation

from unified.models.image_sampling import ImageSampling
from unified.models.modeling import UnifiedForCausalLM
from unified.models.processing import UnifiedProcessor
from unified.training.sharding import gathered


class Rollout:
    """`rollout_func` of TRL's `GRPOTrainer`: one answer of text and images to each prompt it is given.

    Prompts are conversations, whose pictures may come in a column `images`; the trainer's `processing_class` is a
    `UnifiedProcessor`. Text and codes are sampled by the trainer's `temperature`, `top_k` and `top_p`, without
    guidance, under which the trainer scores them; its `max_completion_length` counts tokens of text, and images come
    on top, whole. `env_mask` is 0 at ids that generation forces, which the policy had no say in: every image's end,
    in mode "image" its start and the end of the turn. Reward functions get `parts` besides: for every answer, its
    text and PIL images in order, see `UnifiedProcessor.post_process_multimodal_output`.

    Args:
        generation_mode, max_images: see `UnifiedForCausalLM.generate`.
    """

    def __init__(
        self, generation_mode: Literal["text", "image", "interleaved"] = "interleaved", max_images: int | None = None
    ) -> None:
        self.generation_mode, self.max_images = generation_mode, max_images

    def __call__(self, prompts: Sequence[Any], trainer: Any) -> dict[str, list[Any] | None]:
        """Answers as TRL takes them; ValueError for prompts or a trainer that cannot be honoured."""
        processor = self._check(prompts, trainer)
        inputs = processor.apply_chat_template(
            prompts, add_generation_prompt=True, tokenize=True, return_dict=True, padding=True, return_tensors="pt"
        ).to(trainer.accelerator.device)
        whole = gathered(trainer.model)
        with (
            torch.no_grad(),
            unwrap_model_for_generation(
                trainer.model_wrapped,
                trainer.accelerator,
                gradient_checkpointing_kwargs=trainer.args.gradient_checkpointing_kwargs,
            ) as unwrapped,
            whole,
            trainer.accelerator.autocast(),
        ):
            core: Any = unwrapped.get_base_model() if isinstance(unwrapped, PeftModel) else unwrapped
            training = core.training
            core.eval()
            ids = core.generate(
                **inputs,
                generation_config=trainer.generation_config,
                generation_mode=self.generation_mode,
                max_images=self.max_images,
                image_sampling=ImageSampling(trainer.temperature, trainer.top_k or 0, trainer.top_p or 1.0),
            )
            answers = [self._cut(row, processor, trainer) for row in ids[:, inputs["input_ids"].shape[1] :].tolist()]
            parts = [self._parts(answer, processor, core) for answer in answers]
            core.train(training)
        asked = zip(inputs["input_ids"].tolist(), inputs["attention_mask"].tolist(), strict=True)
        return {
            "prompt_ids": [[token for token, kept in zip(*row, strict=True) if kept] for row in asked],
            "completion_ids": answers,
            "logprobs": None,  # the policy that answered is the one that is scored
            "env_mask": [self._chosen(answer, processor) for answer in answers],
            "parts": parts,
        }

    def _check(self, prompts: Sequence[Any], trainer: Any) -> UnifiedProcessor:
        processor = trainer.processing_class
        if not isinstance(processor, UnifiedProcessor):
            raise ValueError(
                f"the trainer's processing_class is a {type(processor).__name__}; give it the UnifiedProcessor"
            )
        if trainer.use_vllm:
            raise ValueError("use_vllm True answers without images; set it to False")
        if isinstance(prompts[0], str):
            raise ValueError('prompts are strings; give conversations, [{"role": "user", "content": "..."}]')
        return processor

    def _cut(self, row: list[int], processor: UnifiedProcessor, trainer: Any) -> list[int]:
        """An answer without padding; in mode "image" with the end of the turn, as training has it."""
        ends = [place for place, token in enumerate(row) if token in trainer.eos_token_ids]
        if ends:
            return row[: ends[0] + 1]
        while len(row) > 1 and row[-1] == trainer.generation_config.pad_token_id:
            row = row[:-1]
        end = processor.end_token_id
        if self.generation_mode != "image" or end is None or end not in trainer.eos_token_ids:
            return row
        return [*row, end]

    def _chosen(self, answer: list[int], processor: UnifiedProcessor) -> list[int]:
        """1 at ids that were sampled."""
        alone = self.generation_mode == "image"
        forced: set[int | None] = {processor.eoi_token_id}
        if alone:
            forced |= {processor.boi_token_id, processor.end_token_id}
        return [int(token not in forced) for token in answer]

    def _parts(
        self, answer: list[int], processor: UnifiedProcessor, model: UnifiedForCausalLM
    ) -> list[dict[str, Any]]:
        ids: Tensor = torch.tensor([answer], device=model.device)
        parts: list[list[dict[str, Any]]] = processor.post_process_multimodal_output(
            ids, generation_mode="interleaved", decode_image_tokens=model.decode_image_tokens
        )
        return parts[0]
