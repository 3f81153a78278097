"""Multi-turn conversations with a model: text, input images and output images so far, and the next answer.

Legend: T sequence, L codes of one image.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import BatchFeature, TextStreamer

from unified.inference.text_to_image import codes_to_images
from unified.models.image_sampling import ImageSampling
from unified.models.messages import Message
from unified.models.modeling import UnifiedForCausalLM
from unified.models.processing import UnifiedProcessor
from unified.models.sequence_layout import remaining_context


class Streamer(TextStreamer):
    """Calls `on_text` with every finished word of an answer; images and special tokens are skipped."""

    def __init__(self, processor: UnifiedProcessor, on_text: Callable[[str], None]) -> None:
        super().__init__(processor.tokenizer, skip_prompt=True, skip_special_tokens=True)
        self.on_text = on_text

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        if text:
            self.on_text(text)


def remaining_text_tokens(model: UnifiedForCausalLM, prompt_ids: Iterable[int], images: int) -> int:
    """Text tokens left in the context after a prompt and `images` output images; see `remaining_context`."""
    ids = torch.tensor([list(prompt_ids)])
    return remaining_context(ids, torch.ones_like(ids), model.config, images)


class Chat:
    """A multi-turn conversation; input and output images are kept as codes.

    Args:
        sampling: image sampling settings. seed: of the images; text is greedy.
        max_images, max_new_tokens: maximum per answer.
        enable_thinking: let a reasoning model think before it answers, as `apply_chat_template`'s.
        tools: functions that the model may call, as Hugging Face's chats have them. A call stands in the answer's
            text, as the LLM writes it; `ask(result, role="tool")` goes on.
    """

    def __init__(
        self,
        model: UnifiedForCausalLM,
        processor: UnifiedProcessor,
        sampling: ImageSampling | None = None,
        seed: int = 0,
        max_images: int = 1,
        max_new_tokens: int = 256,
        enable_thinking: bool = False,
        tools: Sequence[Mapping[str, Any]] | None = None,
    ) -> None:
        self.model, self.processor, self.sampling = model, processor, sampling
        self.max_images, self.max_new_tokens, self.enable_thinking = max_images, max_new_tokens, enable_thinking
        self.tools = tools
        self.generator = torch.Generator(model.device)
        self.seed = seed
        self.reset()

    @property
    def seed(self) -> int:
        """Seed of the images from here on, or from where it was set."""
        return self.generator.initial_seed()

    @seed.setter
    def seed(self, seed: int) -> None:
        self.generator.manual_seed(seed)

    def reset(self) -> None:
        """Start a new conversation."""
        self.messages: list[Message] = []
        self.codes: list[Tensor] = []
        self.pending_images: list[Tensor] = []

    def show(self, image: Image.Image) -> None:
        """Add `image` to the next question."""
        pixels = self.processor.image_processor(image)["pixel_values"].to(self.model.device)
        with torch.no_grad():
            self.pending_images.append(self.model.model.vq_model.encode(pixels)[0].cpu())

    def ask(self, text: str, on_text: Callable[[str], None] | None = None, role: str = "user") -> list[dict[str, Any]]:
        """The model's answer as parts `{"type": "text", "text"}` and `{"type": "image", "image", "codes": (L,)}`.

        `image` is a PIL image, decoded from `codes`.
        `on_text` is called with each word as it is generated; `role` "tool" tells what a function gave.
        Raises ValueError when the conversation no longer fits the model's context or the chat template does not write
        `tools`; the question is then not added to it.
        """
        question = [*({"type": "image"} for _ in self.pending_images), {"type": "text", "text": text}]
        messages = [*self.messages, {"role": role, "content": question}]
        codes = [*self.codes, *self.pending_images]
        parts = self.answer(messages, codes, on_text)
        content = [part if part["type"] == "text" else {"type": "image"} for part in parts]
        self.messages = [*messages, {"role": "assistant", "content": content}]
        self.codes = [*codes, *(part["codes"] for part in parts if part["type"] == "image")]
        self.pending_images = []
        return parts

    def answer(
        self, messages: list[Message], codes: list[Tensor], on_text: Callable[[str], None] | None
    ) -> list[dict[str, Any]]:
        """Parts of the answer to `messages`, without adding it to the conversation."""
        inputs = self.processor.apply_chat_template(
            messages, tools=self.tools, codes=codes, add_generation_prompt=True, enable_thinking=self.enable_thinking
        )
        assert isinstance(inputs, BatchFeature)
        remaining = remaining_text_tokens(self.model, inputs["input_ids"][0].tolist(), self.max_images)
        ids = self.model.generate(
            **inputs.to(self.model.device),
            image_sampling=self.sampling,
            negative_prompt_ids=torch.tensor([self.processor.unconditional_ids()]),
            max_images=self.max_images,
            max_new_tokens=min(self.max_new_tokens, remaining),
            generator=self.generator,
            do_sample=False,
            streamer=on_text and Streamer(self.processor, on_text),
        )
        parts = self.processor.decode_parts(ids[0, inputs["input_ids"].shape[1] :])
        for part in parts:
            if part["type"] == "image":
                (part["image"],) = codes_to_images(self.model, part["codes"][None])
        return parts
