"""Backbones with attention in some layers and a recurrence in others: batches, guidance, orders, text, adapters."""

from pathlib import Path

import pytest
import torch
from families import tiny_llm
from tolerances import assert_sums_agree, error_of, terms_of
from torch import Tensor
from toy_adapters import adapted
from toys import make_tokenizer

from unified import UnifiedForCausalLM, UnifiedProcessor, VQConfig, VQModel
from unified.checkpoints.extension import join
from unified.checkpoints.loading import load
from unified.checkpoints.publishing import save
from unified.inference.samples_per_prompt import generate_samples
from unified.inference.text_to_image import generate_codes
from unified.models.image_sampling import ImageSampling
from unified.training.arguments import UnifiedTrainingArguments
from unified.training.tuning import default_layers, prepare

NAMED = ["granitemoehybrid", "lfm2", "nemotron_h", "qwen3_5_text"]
MORE = ["bamba", "falcon_h1", "lfm3", "olmo_hybrid", "qwen3_next"]
FAMILIES = [*NAMED, *(pytest.param(name, marks=pytest.mark.families) for name in MORE)]
SAME = error_of(20_000)
GREEDY = ImageSampling(top_k=1)
every_family = pytest.mark.parametrize("family", FAMILIES)
every_order = pytest.mark.parametrize("order", ["scales", "raster"])


def made(family: str, order: str = "scales") -> tuple[UnifiedForCausalLM, UnifiedProcessor]:
    tokenizer = make_tokenizer()
    patch_nums = (1, 2, 3) if order == "scales" else (3,)
    sizes = {"image_size": 24, "channels": (32, 32), "codebook_size": 32, "code_dim": 8}
    torch.manual_seed(0)
    vq_model = VQModel(VQConfig(patch_nums=patch_nums, **sizes)).eval()
    model = join(tiny_llm(family, len(tokenizer)), vq_model, tokenizer, image_order=order)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    return model, UnifiedProcessor.from_config(tokenizer, model.config)


def left_padded(*rows: list[int]) -> dict[str, Tensor]:
    length = max(map(len, rows))
    ids = torch.tensor([[0] * (length - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (length - len(row)) + [1] * len(row) for row in rows])
    return {"input_ids": ids, "attention_mask": mask}


@every_order
@every_family
def test_rows_that_draw_together_draw_as_alone(family: str, order: str) -> None:
    model, _ = made(family, order)
    boi = model.config.boi_token_id
    prompts, negative = [[5, 9, 30, 7, boi], [11, 12, boi]], torch.tensor([[5, 6]])
    how = {"image_sampling": ImageSampling(guidance_scale=3.0, top_k=1), "negative_prompt_ids": negative}
    together = model.generate(**left_padded(*prompts), **how, max_new_tokens=0)
    for row, prompt in zip(together, prompts, strict=True):
        alone = model.generate(torch.tensor([prompt]), **how, max_new_tokens=0)[0]
        assert torch.equal(row[5:], alone[len(prompt) :])


@every_order
@every_family
def test_what_is_generated_is_the_best_of_one_pass(family: str, order: str) -> None:
    model, _ = made(family, order)
    boi, length = model.config.boi_token_id, model.config.image_length
    ids = model.generate(torch.tensor([[5, 9, boi]]), image_sampling=GREEDY, max_new_tokens=4, max_images=1)
    with torch.no_grad():
        scores = model(ids[:, : 3 + length]).logits[0, 2:-1]
    codes = model.config.vocabulary.code_rows(scores.T).T
    chosen = model.config.vocabulary.ids_to_codes(ids[0, 3 : 3 + length])
    best = codes.amax(dim=1)
    assert torch.allclose(codes.gather(1, chosen[:, None])[:, 0], best, atol=SAME * float(best.abs().max()))


@every_order
@every_family
def test_rows_that_write_and_draw_at_different_times_are_those_alone(family: str, order: str) -> None:
    model, _ = made(family, order)
    prompts = [[5, 9, 30, 7, model.config.boi_token_id], [11, 12], [13, 14, 15]]
    how = {"image_sampling": GREEDY, "max_new_tokens": 6, "do_sample": False}
    together = model.generate(**left_padded(*prompts), **how, pad_token_id=62)
    for row, prompt in zip(together, prompts, strict=True):
        alone = model.generate(torch.tensor([prompt]), image_sampling=GREEDY, max_new_tokens=6, do_sample=False)[
            0, len(prompt) :
        ]
        assert torch.equal(row[5 : 5 + len(alone)], alone)
        assert row[5 + len(alone) :].eq(62).all()
    texts = left_padded(*prompts[1:])
    written = model.generate(**texts, max_images=0, max_new_tokens=5, do_sample=False)
    for row, prompt in zip(written, prompts[1:], strict=True):
        alone = model.generate(torch.tensor([prompt]), max_images=0, max_new_tokens=5, do_sample=False)
        assert torch.equal(row[3 : 3 + alone.shape[1] - len(prompt)], alone[0, len(prompt) :])


@every_family
def test_rows_have_their_own_images(family: str) -> None:
    """Of input images each row of a batch reads its own, also where rows are generated one by one."""
    model, _ = made(family)
    config = model.config
    image = [config.boi_token_id, *[config.image_pad_token_id] * config.input_image_length, config.eoi_token_id]
    prompts = [[5, *image, 6], [7, 8], [9, *image, *image]]
    codes = torch.randint(32, (3, config.image_length), generator=torch.Generator().manual_seed(0))
    how = {"image_sampling": GREEDY, "max_new_tokens": 4, "do_sample": False}
    together = model.generate(**left_padded(*prompts), image_codes=codes, **how)
    for row, prompt, own in zip(together, prompts, (codes[:1], codes[:0], codes[1:]), strict=True):
        given = {"image_codes": own} if len(own) else {}
        alone = model.generate(torch.tensor([prompt]), **given, **how)[0, len(prompt) :]
        start = together.shape[1] - len(row) + max(map(len, prompts))
        assert torch.equal(row[start : start + len(alone)], alone)


@every_family
def test_copies_of_a_prompt_are_drawn_from_one_prefill(family: str) -> None:
    model, processor = made(family)
    sampling, seeds = ImageSampling(guidance_scale=3.0, top_k=8), [[1, 2], [3, 4]]
    codes = generate_samples(model, processor, ["a cat", "a photo of two green books"], seeds, sampling)
    for prompt, drawn, row in zip(["a cat", "a photo of two green books"], codes, seeds, strict=True):
        for image, seed in zip(drawn, row, strict=True):
            alone = generate_codes(model, processor, [prompt], sampling, torch.Generator().manual_seed(seed))
            assert torch.equal(alone[0], image)


@every_family
def test_saved_and_loaded(family: str, tmp_path: Path) -> None:
    model, processor = made(family)
    save(model, processor, tmp_path / "model")
    loaded, _ = load(tmp_path / "model", device="cpu")
    stored = loaded.state_dict()
    assert [name for name, value in model.state_dict().items() if not torch.equal(value, stored[name])] == []
    ids = torch.tensor([[5, 9, 30, 7]])
    with torch.no_grad():
        assert_sums_agree(loaded(ids).logits, model(ids).logits, terms_of(model))


@every_family
def test_what_a_recurrence_cannot_is_refused(family: str) -> None:
    model, _ = made(family)
    ids = torch.tensor([[5, 9, 30, 7]])
    with pytest.raises(ValueError, match=f"several documents in the backbone {family}, .*; set pack to False"):
        model(ids, document_ids=torch.tensor([[0, 0, 1, 1]]))
    with pytest.raises(ValueError, match=f"several documents in the backbone {family}"):
        model(ids, position_ids=torch.tensor([[0, 1, 0, 1]]))
    with pytest.raises(ValueError, match=f"recurrent layers of the backbone {family} .*set last_scale_fraction to 1"):
        model(ids, keep_positions=torch.tensor([[0, 1, 3]]))


LAYERS = {
    "granitemoehybrid": {"in_proj", "q_proj", "k_proj", "v_proj", "o_proj", "input_linear", "output_linear"},
    "lfm2": {"in_proj", "out_proj", "q_proj", "k_proj", "v_proj", "w1", "w2", "w3"},
    "nemotron_h": {"in_proj", "q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "down_proj"},
    "qwen3_5_text": {
        *("in_proj_qkv", "in_proj_z", "in_proj_a", "in_proj_b", "out_proj"),
        *("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
    },
}


@pytest.mark.parametrize("family", NAMED)
def test_lora_reaches_recurrent_layers(family: str, tmp_path: Path) -> None:
    """All linear layers, but for outputs of Mamba 2, which its kernel multiplies by itself."""
    model, _ = made(family)
    assert {name.rsplit(".", 1)[-1] for name in default_layers(model)} == LAYERS[family]
    if "out_proj" not in LAYERS[family]:
        arguments = {"output_dir": str(tmp_path), "use_cpu": True, "report_to": "none", "tuning": "lora"}
        with pytest.raises(ValueError, match=r"Mamba 2's kernel multiplies by itself, .*; leave lora_target_modules"):
            prepare(model, UnifiedTrainingArguments(**arguments, lora_target_modules=["out_proj"]))


@pytest.mark.parametrize("positions", ["all", "image_tokens", "after_image", "split_ranks"])
@pytest.mark.parametrize("family", NAMED)
def test_every_update_learns(family: str, positions: str) -> None:
    model, _ = made(family)
    config = model.config
    codes = torch.arange(config.image_length) + config.image_token_offset
    ids = torch.tensor([[5, 9, config.boi_token_id, *codes.tolist(), config.eoi_token_id, 7, 8]])
    layers = len(default_layers(model))
    tuned = adapted(model, lora_positions=positions).train()
    tuned(input_ids=ids, labels=ids).loss.backward()
    updates = {name: p.grad for name, p in tuned.named_parameters() if ".lora_B." in name}
    assert len(updates) == layers
    assert [name for name, gradient in updates.items() if gradient is None or not gradient.any()] == []
