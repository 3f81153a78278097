"""Cached, batched generation against a loop that runs the whole model for every step, without a cache."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from toy_models import BOI, EOI, EOS, IMAGE_PAD, OFFSET, input_image, output_image, random_codes, toy_model

from unified import UnifiedForCausalLM
from unified.image_tokenizer.scales import scale_spans
from unified.models.image_sampling import ImageSampling
from unified.models.sampling import ramped_guidance_scale

MODES = [
    {"backbone": "llama", "image_positions": "shared"},
    {"backbone": "qwen3", "image_positions": "sequential"},
    {"backbone": "gemma2", "image_positions": "shared"},
    {"backbone": "llama", "image_order": "raster"},
]
GREEDY = ImageSampling(temperature=0)
NEGATIVE = torch.tensor([[3, 4]])
Nudges = dict[int, int]  # token -> the text token that has to follow it


@pytest.fixture(params=MODES, ids=lambda mode: "-".join(mode.values()))
def model(request: pytest.FixtureRequest) -> UnifiedForCausalLM:
    return toy_model(**request.param)


def steps(model: UnifiedForCausalLM) -> list[tuple[int, int]]:
    """Spans of codes that are generated in one step."""
    if model.config.image_order == "raster":
        return [(place, place + 1) for place in range(model.config.image_length)]
    return scale_spans(model.config.patch_nums)


def code_logits(model: UnifiedForCausalLM, context: list[int], codes: Tensor, **input_images: Tensor) -> Tensor:
    """Logits (L, codebook) of an image of `codes` (L,) after `context`, which ends with the image start."""
    ids = torch.tensor([context + (codes + OFFSET).tolist()])
    return model(ids, **input_images).logits[0, len(context) - 1 : -1, OFFSET:]


@torch.no_grad()
def generate_uncached(
    model: UnifiedForCausalLM, context: list[int], guidance_scale: float = 1.0, **input_images: Tensor
) -> list[int]:
    """Greedy image ids: the logits of a step depend only on the codes of earlier steps."""
    codes, spans = torch.zeros(model.config.image_length, dtype=torch.long), steps(model)
    for step, (start, stop) in enumerate(spans):
        logits = code_logits(model, context, codes, **input_images)
        if guidance_scale != 1:
            raster = model.config.image_order == "raster"
            strength = guidance_scale if raster else ramped_guidance_scale(guidance_scale, step, len(spans))
            blank = code_logits(model, [*NEGATIVE[0].tolist(), BOI], codes)
            logits = blank + strength * (logits - blank)
        codes[start:stop] = logits[start:stop].argmax(dim=-1)
    return (codes + OFFSET).tolist()


@torch.no_grad()
def answer_uncached(
    model: UnifiedForCausalLM,
    prompt: list[int],
    nudges: Nudges,
    budget: int,
    max_images: int = 1,
    **input_images: Tensor,
) -> list[int]:
    """Greedy answer of one prompt: what `generate` has to give, column for column."""
    ids, text, images = list(prompt), 0, 0
    while True:
        if ids[-1] == BOI:
            ids += [*generate_uncached(model, ids, **input_images), EOI]
            images += 1
        if text == budget or ids[-1] == EOS:
            return ids
        scores = model(torch.tensor([ids]), **input_images).logits[0, -1, :OFFSET]
        forbidden = [EOI, IMAGE_PAD] + [BOI] * (images >= max_images)
        if ids[-1] in nudges:
            scores[nudges[ids[-1]]] += 1000
        scores[forbidden] = float("-inf")
        ids.append(int(scores.argmax()))
        text += 1


def left_padded(prompts: list[list[int]]) -> tuple[Tensor, Tensor]:
    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    return ids, mask


def generate(model: UnifiedForCausalLM, prompts: list[list[int]], nudges: Nudges, **settings: Any) -> list[list[int]]:
    """Answers without padding, which is the pad token before and the EOS token after a row."""
    bias = [[[token, following], 1000.0] for token, following in nudges.items()]
    settings = {"image_sampling": GREEDY, "do_sample": False, **settings}
    input_ids, mask = left_padded(prompts)
    ids = model.generate(input_ids, attention_mask=mask, **({"sequence_bias": bias} if bias else {}), **settings)
    return [without_padding(row) for row in ids.tolist()]


def without_padding(ids: list[int]) -> list[int]:
    return [token for token in ids if token not in (0, EOS)]


def image_runs(row: list[int]) -> Iterator[list[int]]:
    """Every image of a row; asserts that each is complete between start and end token."""
    for place, token in enumerate(row):
        if token == BOI:
            stop = row.index(EOI, place)
            assert all(OFFSET <= inner for inner in row[place + 1 : stop])
            yield row[place + 1 : stop]


def test_cached_generation_equals_uncached(model: UnifiedForCausalLM) -> None:
    prompts = [[5, 6, 7, BOI], [8, 9, 10, 11, 12, 13, 14, 15, 16, BOI], [17, BOI]]
    generated = generate(model, prompts, {}, max_new_tokens=0)
    expected = [[*prompt, *generate_uncached(model, prompt), EOI] for prompt in prompts]
    assert generated == expected
    assert len({tuple(row[-17:]) for row in expected}) == 3


@pytest.mark.parametrize("guidance_scale", [2.5, 0.0])
def test_guidance_combines_two_contexts(model: UnifiedForCausalLM, guidance_scale: float) -> None:
    prompts = [[5, 6, 7, BOI], [8, BOI]]
    sampling = ImageSampling(temperature=0, guidance_scale=guidance_scale)
    guided = generate(model, prompts, {}, max_new_tokens=0, image_sampling=sampling, negative_prompt_ids=NEGATIVE)
    expected = [[*prompt, *generate_uncached(model, prompt, guidance_scale), EOI] for prompt in prompts]
    assert guided == expected
    assert expected[0][4:-1] != generate_uncached(model, prompts[0])


def test_guidance_scale_one_is_no_guidance(model: UnifiedForCausalLM) -> None:
    settings = {"temperature": 0.9, "top_k": 9, "top_p": 0.95}
    prompt, results = torch.tensor([[5, 6, BOI]]), []
    for sampling, negative in (
        (ImageSampling(**settings, guidance_scale=1.0), NEGATIVE),
        (ImageSampling(**settings), None),
    ):
        generator = torch.Generator().manual_seed(0)
        results.append(
            model.generate(
                prompt,
                image_sampling=sampling,
                negative_prompt_ids=negative,
                max_new_tokens=0,
                generator=generator,
            )
        )
    assert torch.equal(*results)


def test_guidance_needs_a_negative_prompt(model: UnifiedForCausalLM) -> None:
    with pytest.raises(ValueError, match="guidance_scale 3.0 needs negative_prompt_ids"):
        model.generate(torch.tensor([[5, BOI]]), image_sampling=ImageSampling(guidance_scale=3.0))


def test_text_image_text(model: UnifiedForCausalLM) -> None:
    nudges = {7: BOI}
    (row,) = generate(model, [[5, 6, 7]], nudges, max_new_tokens=9)
    assert row == without_padding(answer_uncached(model, [5, 6, 7], nudges, budget=9))
    assert row[3] == BOI and row[4 + model.config.image_length] == EOI


def test_rows_of_a_batch_equal_rows_alone(model: UnifiedForCausalLM) -> None:
    """Rows start an image at once, after three tokens, never, in the prompt and after one token; then text follows."""
    prompts = [[5, 6], [7, 8, 9, 10, 11], [12, 13, 14], [15, BOI], [16]]
    nudges = {6: BOI, 11: 30, 30: 31, 31: 32, 32: BOI, 14: 33, 33: EOS, 16: 34, 34: BOI, EOI: 40, 40: 41, 41: EOS}
    settings = {"max_images": 2, "max_new_tokens": 30}
    together = generate(model, prompts, nudges, **settings)
    for prompt, row in zip(prompts, together, strict=True):
        assert generate(model, [prompt], nudges, **settings) == [row]
        assert row == without_padding(answer_uncached(model, prompt, nudges, budget=30, max_images=2))
    assert [sum(1 for _ in image_runs(row)) for row in together] == [1, 1, 0, 1, 1]


def test_one_image_each_wherever_it_begins() -> None:
    """A row whose prompt begins an image leaves the others theirs."""
    model = toy_model()
    rows = generate(model, [[5, BOI], [6]], {6: 20, 20: BOI, EOI: EOS}, max_images=1, max_new_tokens=8)
    assert [len(list(image_runs(row))) for row in rows] == [1, 1]


def test_several_images_in_a_row(model: UnifiedForCausalLM) -> None:
    nudges = {5: BOI, EOI: 20, 20: BOI}
    (row,) = generate(model, [[5]], nudges, max_images=3, max_new_tokens=9)
    assert row == without_padding(answer_uncached(model, [5], nudges, budget=9, max_images=3))
    assert len(list(image_runs(row))) == 3


def test_a_prompt_with_input_images(model: UnifiedForCausalLM) -> None:
    """Input images in a prompt, an output image of an earlier turn, and a new one generated after some text."""
    with torch.no_grad():
        model.model.image_embedding.image_in.weight.mul_(5)  # so that images change the answer
    old, images = random_codes(model, 1, seed=7)[0], random_codes(model, 2)
    prompt, nudges = [*input_image(model), 5, *output_image(old), 6, *input_image(model), 7], {7: 8, 8: BOI}
    (row,) = generate(model, [prompt], nudges, max_new_tokens=6, image_codes=images)
    assert row == without_padding(answer_uncached(model, prompt, nudges, budget=6, image_codes=images))
    others = [generate(model, [prompt], nudges, max_new_tokens=6, image_codes=images.roll(i, 1)) for i in (1, 2, 3)]
    assert others != [[row]] * 3
    (begun,) = generate(model, [[*prompt, BOI]], {}, max_new_tokens=0, image_codes=images)
    assert begun == [*prompt, BOI, *generate_uncached(model, [*prompt, BOI], image_codes=images), EOI]


def test_input_images_may_be_given_as_pixels(model: UnifiedForCausalLM) -> None:
    pixel_values = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    codes, prompt = model.model.vq_model.encode(pixel_values), [*input_image(model), 5, BOI]
    rows = [
        generate(model, [prompt], {}, max_new_tokens=4, **input_images)
        for input_images in ({"pixel_values": pixel_values}, {"image_codes": codes})
    ]
    assert rows[0] == rows[1]


def test_no_image_means_no_image_start(model: UnifiedForCausalLM) -> None:
    nudges = {token: BOI for token in range(3, 60)}
    (row,) = generate(model, [[5]], nudges, max_images=0, max_new_tokens=8)
    assert not {BOI, EOI, IMAGE_PAD} & set(row) and max(row) < OFFSET and len(row) > 1
    (generated,) = generate(model, [[5]], nudges, max_images=1, max_new_tokens=8)
    assert generated[1] == BOI and generated.count(BOI) == 1


def test_text_is_never_an_image_and_an_image_never_text() -> None:
    model = toy_model()
    with torch.no_grad():
        model.lm_head.weight[OFFSET:] *= 30  # codes would win every step
    settings = {"do_sample": True, "temperature": 3.0, "max_new_tokens": 12, "image_sampling": ImageSampling()}
    rows = generate(model, [[5, BOI]] * 4, {}, generator=torch.Generator().manual_seed(0), **settings)
    for row in rows:
        (image,) = image_runs(row)
        assert len(image) == 21 and all(token < OFFSET for token in row[3 + 21 :])


def test_the_generator_decides_text_and_image(model: UnifiedForCausalLM) -> None:
    def answers(seed: int) -> list[list[int]]:
        generator = torch.Generator().manual_seed(seed)
        sampling = ImageSampling(temperature=2.0)
        return generate(
            model, [[5, 6], [7]], {6: BOI, 7: 20}, max_new_tokens=9, generator=generator, do_sample=True,
            temperature=2.0, image_sampling=sampling,
        )  # fmt: skip

    state = torch.get_rng_state()
    first = answers(1)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(99)
    assert answers(1) == first and answers(2) != first


def test_on_scale_is_called_after_every_scale() -> None:
    model, calls = toy_model(), []
    sampling = ImageSampling(temperature=0, on_scale=lambda scale, codes: calls.append((scale, codes.clone())))
    rows = generate(model, [[5, BOI], [6, BOI]], {}, max_new_tokens=0, image_sampling=sampling)
    final = torch.tensor([row[2:-1] for row in rows]) - OFFSET
    assert [(scale, codes.shape[1]) for scale, codes in calls] == [(0, 1), (1, 5), (2, 21)]
    assert all(torch.equal(codes, final[:, : codes.shape[1]]) for _, codes in calls)


def test_no_budget_and_no_image_start_gives_the_prompt_back() -> None:
    prompt = torch.tensor([[5, 6]])
    assert torch.equal(toy_model().generate(prompt, max_new_tokens=0), prompt)


def test_without_an_end_token_text_goes_on_to_its_limit() -> None:
    model = toy_model()
    model.generation_config.eos_token_id = model.generation_config.pad_token_id = None
    assert model.generate(torch.tensor([[5, 6]]), max_images=0, max_new_tokens=30).shape[1] == 32
    with pytest.raises(ValueError, match="neither pad_token_id nor eos_token_id; pass pad_token_id"):
        model.generate(torch.tensor([[5, 6], [7, 8]]))
