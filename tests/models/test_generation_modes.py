"""`generation_mode`, what decodes it, and who else uses the model meanwhile."""

from concurrent.futures import ThreadPoolExecutor
from random import Random
from typing import Any

import pytest
import torch
from test_generation_text import follows
from toy_adapters import adapted
from toy_models import BOI, EOI, EOS, OFFSET, output_image, random_codes, toy_model

from unified import UnifiedForCausalLM
from unified.models.image_sampling import ImageSampling

NEGATIVE = torch.tensor([[3, 4]])


def test_an_image_at_once() -> None:
    """However a prompt ends, whatever lengths are given or stored, and nothing behind it."""
    model = toy_model()
    model.generation_config.max_length, model.generation_config.min_new_tokens = 2, 1
    greedy = {"image_sampling": ImageSampling(temperature=0)}
    begun = model.generate(torch.tensor([[5, 6, BOI]]), generation_mode="image", max_new_tokens=8, **greedy)
    assert begun.shape[1] == 3 + model.config.image_length + 1 and begun[0, -1] == EOI
    prompts = torch.tensor([[0, 5, 6], [7, 8, 9]])
    mask = torch.tensor([[0, 1, 1], [1, 1, 1]])
    ids = model.generate(prompts, attention_mask=mask, generation_mode="image", **greedy)
    assert ids[0, 1:].tolist() == begun[0].tolist() and ids[1, 3] == BOI
    assert torch.equal(model.generate(begun[:, :3], max_new_tokens=0, **greedy), begun)
    with pytest.raises(ValueError, match="some prompts end with the image start token and some do not"):
        model.generate(torch.tensor([[5, BOI], [5, 6]]), generation_mode="image")


def test_text_alone_and_both() -> None:
    model, prompt = toy_model(), torch.tensor([[7]])
    settings = {"logits_processor": follows({7: BOI}), "max_new_tokens": 4, "do_sample": False}
    assert BOI not in model.generate(prompt, generation_mode="text", **settings)
    both = model.generate(prompt, generation_mode="interleaved", seed=0, **settings)
    assert torch.equal(both, model.generate(prompt, seed=0, **settings)) and both[0, 1] == BOI


def test_guidance_as_hfs_argument_or_configuration() -> None:
    model, prompt = toy_model(), torch.tensor([[5, BOI]])
    settings = {"negative_prompt_ids": NEGATIVE, "generation_mode": "image", "seed": 0}
    expected = model.generate(prompt, image_sampling=ImageSampling(guidance_scale=4.0), **settings)
    assert not torch.equal(expected, model.generate(prompt, **settings))
    assert torch.equal(expected, model.generate(prompt, guidance_scale=4.0, **settings))
    model.generation_config.guidance_scale = 4.0
    assert torch.equal(expected, model.generate(prompt, **settings))


def test_guidance_leaves_text_as_it_is() -> None:
    model, prompt = toy_model(), torch.tensor([[5, 6]])
    settings = {"generation_mode": "text", "max_new_tokens": 6, "do_sample": False}
    assert torch.equal(model.generate(prompt, guidance_scale=4.0, **settings), model.generate(prompt, **settings))


def test_decoding_takes_the_last_image_of_every_row() -> None:
    model, codes = toy_model(), random_codes(toy_model(), 3)
    rows = [[*output_image(codes[0]), 5, *output_image(codes[1])], [*output_image(codes[2]), *[0] * 24]]
    pixel_values = model.decode_image_tokens(torch.tensor(rows))
    assert torch.equal(pixel_values, model.model.vq_model.decode(codes[1:]))
    assert torch.equal(model.decode_image_tokens(codes[1:] + OFFSET), pixel_values)
    with pytest.raises(ValueError, match="sequence 1 has 0 image ids, where an image has 21"):
        model.decode_image_tokens(torch.tensor([output_image(codes[0]), [5] * 23]))


# --- re-entrance


def requests(model: UnifiedForCausalLM, count: int) -> list[dict[str, Any]]:
    """Arguments of `generate`: sampled text and images, seeds, settings and lengths of every kind."""
    draw, found = Random(0), []
    for number in range(count):
        rows, words = draw.choice([1, 1, 2]), draw.choice([2, 5])
        prompts = torch.tensor([[draw.randrange(5, 40) for _ in range(words)] for _ in range(rows)])
        start, guided = draw.randrange(5, 40), draw.random() < 0.4
        found.append(
            {
                "inputs": prompts,
                "generation_mode": draw.choice(["text", "image", "interleaved", None]),
                "logits_processor": follows({start: BOI, start + 1: BOI, EOI: 20}),
                "do_sample": draw.random() < 0.7,
                "temperature": draw.choice([0.7, 1.5, 3.0]),
                "top_k": draw.choice([0, 7]),
                "max_new_tokens": draw.randrange(2, 14),
                "image_sampling": ImageSampling(
                    temperature=draw.choice([0, 1.0, 2.0]), guidance_scale=3.0 if guided else 1.0
                ),
                "negative_prompt_ids": NEGATIVE,
                "seed": number if draw.random() < 0.5 else [number + row for row in range(rows)],
            }
        )
    return found


def check_threads(model: UnifiedForCausalLM, count: int, threads: int = 8) -> list[torch.Tensor]:
    """`count` answers by `threads` are equal to each alone, and leave the global generator alone; those answers."""
    arguments, state = requests(model, count), torch.get_rng_state()
    alone = [model.generate(**given) for given in arguments]
    with ThreadPoolExecutor(threads) as pool:
        together = list(pool.map(lambda given: model.generate(**given), arguments))
    assert all(torch.equal(*pair) for pair in zip(alone, together, strict=True))
    assert torch.equal(torch.get_rng_state(), state)
    return alone


@pytest.mark.parametrize("positions", [None, "image_tokens", "split_ranks"])
def test_threads_share_a_model(positions: str | None) -> None:
    model = toy_model()
    if positions is not None:
        model = adapted(model, lora_positions=positions).get_base_model()
    answers = check_threads(model, 20)
    assert any((ids == BOI).any() for ids in answers) and any((ids != BOI).all() for ids in answers)
    assert len({tuple(ids.flatten().tolist()) for ids in answers}) == 20
    assert any(EOS in ids for ids in answers)
