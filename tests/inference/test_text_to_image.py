"""Text to image: one image per prompt, the same for the same seed, and the last scale is the final image."""

import numpy as np
import pytest
import torch
from PIL import Image
from toy_models import make_lively
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from unified import UnifiedForCausalLM, UnifiedProcessor, VQModel
from unified.checkpoints.extension import join
from unified.inference.text_to_image import codes_to_images, contact_sheet, draw, draw_by_scale, generate_codes
from unified.models.image_sampling import ImageSampling

PROMPTS = ["a red apple", "a photo of two green books", "cats"]
SAMPLING = ImageSampling(temperature=1.5, top_k=20, guidance_scale=2.0)
Toy = tuple[UnifiedForCausalLM, UnifiedProcessor]


@pytest.fixture
def toy(tiny_tokenizer: PreTrainedTokenizerFast, tiny_vq: VQModel, tiny_llm_dir: str) -> Toy:
    torch.manual_seed(0)
    torch.nn.init.normal_(tiny_vq.quantizer.embedding.weight)
    model = join(LlamaForCausalLM.from_pretrained(tiny_llm_dir), tiny_vq, tiny_tokenizer)
    make_lively(model)
    return model, UnifiedProcessor.from_config(tiny_tokenizer, model.config)


def pixels(images: list[Image.Image]) -> np.ndarray:
    return np.stack([np.asarray(image) for image in images])


def test_every_prompt_gets_its_image(toy: Toy) -> None:
    images = draw(*toy, PROMPTS, SAMPLING, seed=1, batch_size=2)
    assert [image.size for image in images] == [(16, 16)] * 3
    assert (pixels(draw(*toy, PROMPTS, SAMPLING, seed=1, batch_size=2)) == pixels(images)).all()
    assert (pixels(draw(*toy, PROMPTS, SAMPLING, seed=2, batch_size=2)) != pixels(images)).any()
    assert draw(*toy, []) == []


def test_batches_do_not_change_greedy_images(toy: Toy) -> None:
    greedy = ImageSampling(temperature=0, guidance_scale=3.0)
    together = pixels(draw(*toy, PROMPTS, greedy))
    assert (pixels(draw(*toy, PROMPTS, greedy, batch_size=1)) == together).all()
    assert (together[0] != together[1]).any()


def test_an_image_with_its_own_generator_is_the_same_in_any_batch(toy: Toy) -> None:
    def codes(order: list[int]) -> torch.Tensor:
        generators = [torch.Generator().manual_seed(10 + number) for number in order]
        return generate_codes(*toy, [PROMPTS[number] for number in order], SAMPLING, generators)

    together = codes([0, 1, 2])
    assert torch.equal(codes([2, 0]), together[[2, 0]])
    assert torch.equal(torch.cat([codes([number]) for number in range(3)]), together)


def test_the_last_scale_is_the_final_image(toy: Toy) -> None:
    (by_scale,) = draw_by_scale(*toy, PROMPTS[:1], SAMPLING, seed=3)
    assert len(by_scale) == 2
    whole = draw(*toy, PROMPTS[:1], SAMPLING, seed=3)
    assert (pixels(by_scale[-1:]) == pixels(whole)).all() and (pixels(by_scale[:1]) != pixels(whole)).any()


def test_images_are_the_decoded_codes(toy: Toy) -> None:
    model, processor = toy
    generators = [torch.Generator().manual_seed(7 + number) for number in range(3)]
    codes = generate_codes(model, processor, PROMPTS, SAMPLING, generators)
    assert codes.shape == (3, 5) and codes.min() >= 0 and codes.max() < 32
    images = draw(model, processor, PROMPTS, SAMPLING, seed=7, batch_size=2)
    assert (pixels(codes_to_images(model, codes)) == pixels(images)).all()


def test_a_contact_sheet_has_room_for_all() -> None:
    colours = ["red", "green", "blue", "black", "orange"]
    images = [Image.new("RGB", (16, 16), colour) for colour in colours]
    captions = ["a caption that is much too long for one line of its image"] * 5
    sheet = contact_sheet(images, captions, columns=2, side=48)
    wide, high = sheet.size
    assert wide > 2 * 48 and high > 3 * 48 and wide < high
    shown = {pixel for _, pixel in sheet.getcolors(maxcolors=2**20)}
    assert {image.getpixel((0, 0)) for image in images} <= shown
    with pytest.raises(ValueError, match="zip"):
        contact_sheet(images, ["one caption"])
