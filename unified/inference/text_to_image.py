"""Text to image with a loaded model, for the CLI, sample images of a training, and evaluations."""

from collections.abc import Iterator, Sequence

import torch
from PIL import Image, ImageDraw
from torch import Tensor
from transformers import BatchFeature

from unified.files.images import pixels_to_image
from unified.models.image_sampling import ImageSampling
from unified.models.modeling import UnifiedForCausalLM
from unified.models.processing import UnifiedProcessor
from unified.models.sampling import Generators


def image_prompts(
    model: UnifiedForCausalLM, processor: UnifiedProcessor, prompts: Sequence[str]
) -> tuple[Tensor, Tensor]:
    """Ids and attention mask (B, T) of text-to-image chats, padded on the left, followed by the image start token."""
    chats = [[{"role": "user", "content": [{"type": "text", "text": prompt}]}] for prompt in prompts]
    inputs = processor.apply_chat_template(
        chats, add_generation_prompt=True, tokenize=True, return_dict=True, padding=True
    )
    assert isinstance(inputs, BatchFeature)
    boi = torch.full((len(chats), 1), model.config.boi_token_id)
    ids = torch.cat([inputs["input_ids"], boi], dim=1).to(model.device)
    mask = torch.cat([inputs["attention_mask"], torch.ones_like(boi)], dim=1).to(model.device)
    return ids, mask


@torch.no_grad()
def generate_codes(
    model: UnifiedForCausalLM,
    processor: UnifiedProcessor,
    prompts: Sequence[str],
    sampling: ImageSampling | None = None,
    generator: Generators = None,
) -> Tensor:
    """Codes (B, L) of one image per prompt, in one batch; `generator` may be one per prompt."""
    input_ids, attention_mask = image_prompts(model, processor, prompts)
    ids = model.generate(
        input_ids,
        attention_mask=attention_mask,
        image_sampling=sampling,
        negative_prompt_ids=torch.tensor([processor.unconditional_ids()]),
        max_new_tokens=0,
        generator=generator,
    )
    start = input_ids.shape[1]
    return model.config.vocabulary.ids_to_codes(ids[:, start : start + model.config.image_length])


def codes_to_images(model: UnifiedForCausalLM, codes: Tensor) -> list[Image.Image]:
    """Decoded images of `codes` (B, L)."""
    return [pixels_to_image(pixels) for pixels in model.model.vq_model.decode(codes.to(model.device))]


def draw(
    model: UnifiedForCausalLM,
    processor: UnifiedProcessor,
    prompts: Sequence[str],
    sampling: ImageSampling | None = None,
    seed: int = 0,
    batch_size: int = 16,
) -> list[Image.Image]:
    """One image per prompt, the i-th with seed + i; but for rounding, images do not depend on the batch."""
    batches = seeded_codes(model, processor, prompts, sampling, seed, batch_size)
    return [image for codes in batches for image in codes_to_images(model, codes)]


def draw_by_scale(
    model: UnifiedForCausalLM,
    processor: UnifiedProcessor,
    prompts: Sequence[str],
    sampling: ImageSampling | None = None,
    seed: int = 0,
    batch_size: int = 16,
) -> list[list[Image.Image]]:
    """The images of `draw` after each scale, coarse to fine; the last ones are complete."""
    images: list[list[Image.Image]] = []
    for codes in seeded_codes(model, processor, prompts, sampling, seed, batch_size):
        scales = model.model.vq_model.decode_by_scale(codes)
        images += [[pixels_to_image(pixels) for pixels in steps] for steps in zip(*scales, strict=True)]
    return images


def seeded_codes(
    model: UnifiedForCausalLM,
    processor: UnifiedProcessor,
    prompts: Sequence[str],
    sampling: ImageSampling | None,
    seed: int,
    batch_size: int,
) -> Iterator[Tensor]:
    """Codes (B, L) of one image per prompt, batch by batch, the i-th image with seed + i."""
    generators = [torch.Generator(model.device).manual_seed(seed + index) for index in range(len(prompts))]
    for start in range(0, len(prompts), batch_size):
        batch = slice(start, start + batch_size)
        yield generate_codes(model, processor, prompts[batch], sampling, generators[batch])


def contact_sheet(
    images: Sequence[Image.Image], captions: Sequence[str], columns: int = 4, side: int = 160
) -> Image.Image:
    """Grid of images with their captions below, resized to `side` pixels (nearest neighbour)."""
    line, lines = 12, 3
    rows = -(-len(images) // columns)
    sheet = Image.new("RGB", (columns * (side + 8) + 8, rows * (side + lines * line + 12) + 8), "white")
    pen = ImageDraw.Draw(sheet)
    for index, (image, caption) in enumerate(zip(images, captions, strict=True)):
        x = 8 + (index % columns) * (side + 8)
        y = 8 + (index // columns) * (side + lines * line + 12)
        sheet.paste(image.resize((side, side), Image.Resampling.NEAREST), (x, y))
        for number, text in enumerate(_wrap(pen, caption, side)[:lines]):
            pen.text((x, y + side + 2 + number * line), text, fill="black")
    return sheet


def _wrap(pen: ImageDraw.ImageDraw, caption: str, width: int) -> list[str]:
    lines = [""]
    for word in caption.split():
        longer = f"{lines[-1]} {word}".strip()
        if pen.textlength(longer) <= width or not lines[-1]:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines
