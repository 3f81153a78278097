"""A conversation with a model: what was said, shown and painted so far, and the next answer.

Legend: T sequence, L codes of one image.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import BatchFeature, TextStreamer

from unified.files.images import image_to_pixels
from unified.models.generation import ImageSampling
from unified.models.messages import Message
from unified.models.modeling import UnifiedForCausalLM
from unified.models.processing import UnifiedProcessor
from unified.models.sequence_layout import remaining_context


class Streamer(TextStreamer):
    """Hands every finished word of an answer to `on_text`; images and special tokens are silent."""

    def __init__(self, processor: UnifiedProcessor, on_text: Callable[[str], None]) -> None:
        super().__init__(processor.tokenizer, skip_prompt=True, skip_special_tokens=True)
        self.on_text = on_text

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        if text:
            self.on_text(text)


def text_budget(model: UnifiedForCausalLM, prompt_ids: Iterable[int], images: int) -> int:
    """Text tokens the context has room for behind a prompt and so many painted images; see `remaining_context`."""
    ids = torch.tensor([list(prompt_ids)])
    return remaining_context(ids, torch.ones_like(ids), model.config, images)


class Chat:
    """A conversation that grows; images, read or painted, are kept as codes.

    Args:
        sampling: how images are painted. seed: of the images; text is greedy.
        max_images, max_new_tokens: most an answer may hold.
    """

    def __init__(
        self,
        model: UnifiedForCausalLM,
        processor: UnifiedProcessor,
        sampling: ImageSampling | None = None,
        seed: int = 0,
        max_images: int = 1,
        max_new_tokens: int = 256,
    ) -> None:
        self.model, self.processor, self.sampling = model, processor, sampling
        self.max_images, self.max_new_tokens = max_images, max_new_tokens
        self.generator = torch.Generator(model.device).manual_seed(seed)
        self.reset()

    def reset(self) -> None:
        """Forget everything said and shown."""
        self.messages: list[Message] = []
        self.codes: list[Tensor] = []
        self.shown: list[Tensor] = []

    def show(self, image: Image.Image) -> None:
        """Put `image` into the next question."""
        pixels = image_to_pixels(image, self.processor.image_size)[None].to(self.model.device)
        with torch.no_grad():
            self.shown.append(self.model.model.vq_model.encode(pixels)[0].cpu())

    def ask(self, text: str, on_text: Callable[[str], None] | None = None) -> list[dict[str, Any]]:
        """Answer of the model as parts `{"type": "text", "text"}` and `{"type": "image", "codes": (L,)}`.

        `on_text` gets the text word by word while it is written. Raises ValueError when the conversation no longer
        fits the model's context; the question is then taken back.
        """
        question = [*({"type": "image"} for _ in self.shown), {"type": "text", "text": text}]
        messages = [*self.messages, {"role": "user", "content": question}]
        codes = [*self.codes, *self.shown]
        parts = self.answer(messages, codes, on_text)
        content = [part if part["type"] == "text" else {"type": "image"} for part in parts]
        self.messages = [*messages, {"role": "assistant", "content": content}]
        self.codes = [*codes, *(part["codes"] for part in parts if part["type"] == "image")]
        self.shown = []
        return parts

    def answer(
        self, messages: list[Message], codes: list[Tensor], on_text: Callable[[str], None] | None
    ) -> list[dict[str, Any]]:
        """Parts of the answer to `messages`, which stay as they are."""
        inputs = self.processor.apply_chat_template(messages, codes=codes, add_generation_prompt=True)
        assert isinstance(inputs, BatchFeature)
        budget = text_budget(self.model, inputs["input_ids"][0].tolist(), self.max_images)
        ids = self.model.generate(
            **inputs.to(self.model.device),
            image_sampling=self.sampling,
            negative_prompt_ids=torch.tensor([self.processor.unconditional_ids()]),
            max_images=self.max_images,
            max_new_tokens=min(self.max_new_tokens, budget),
            generator=self.generator,
            do_sample=False,
            streamer=on_text and Streamer(self.processor, on_text),
        )
        return self.processor.decode_parts(ids[0, inputs["input_ids"].shape[1] :])
