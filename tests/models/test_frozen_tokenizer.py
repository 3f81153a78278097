"""The image tokenizer of a model: no engine has its tensors, and no cast, load or wrapper changes them."""

import copy
import pickle
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from torch import Tensor, nn
from toy_models import BOI, input_image, toy_model

from unified import ImageSampling, UnifiedForCausalLM, VQModel
from unified.models.frozen_tokenizer import FrozenImageTokenizer, check_frozen

Cast = Callable[[nn.Module], nn.Module]
CASTS: dict[str, Cast] = {
    "half": lambda model: model.half(),
    "bfloat16": lambda model: model.bfloat16(),
    "double": lambda model: model.double(),
    "to": lambda model: model.to("cpu", torch.float16),
    "type": lambda model: model.type(torch.bfloat16),
    "of the body": lambda model: model.model.to(torch.bfloat16),
}


def pixels(count: int = 3) -> Tensor:
    return torch.rand(count, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: value for name, value in model.state_dict().items() if "vq_model." in name}


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert len(found) == len(expected) > 20
    assert all(
        torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(found.values(), expected.values(), strict=True)
    )


def test_nothing_of_it_is_a_parameter() -> None:
    model = toy_model()
    model.requires_grad_(True).train()
    assert not any("vq_model" in name for name, _ in model.named_parameters())
    assert not any(part.training for part in model.model.vq_model.modules())
    assert not any(value.requires_grad for value in weights(model).values())


@pytest.mark.parametrize("cast", CASTS)
def test_a_cast_leaves_it_whole(cast: str) -> None:
    model = toy_model()
    before = copy.deepcopy(weights(model))
    dtype = model.lm_head.weight.dtype
    CASTS[cast](model)
    assert model.lm_head.weight.dtype != dtype  # tied: the body's too
    assert_same(weights(model), before)
    model.model.vq_model.check_fingerprint(model.config.vq_fingerprint)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("options", [{}, {"device_map": {"": "cpu"}}])
def test_every_load_gives_the_same(dtype: torch.dtype, options: dict, tmp_path: Path) -> None:
    model = toy_model()
    model.save_pretrained(tmp_path)
    loaded = UnifiedForCausalLM.from_pretrained(tmp_path, dtype=dtype, **options)
    assert loaded.dtype == dtype
    assert not any("vq_model" in name for name, _ in loaded.named_parameters())
    assert_same(weights(loaded), weights(model))
    loaded.save_pretrained(tmp_path / "again")
    assert_same(weights(UnifiedForCausalLM.from_pretrained(tmp_path / "again")), weights(model))


def test_files_hold_what_a_tokenizer_alone_has(tmp_path: Path) -> None:
    model = toy_model()
    tokenizer = VQModel(model.config.vq_config)
    tokenizer.load_state_dict(model.model.vq_model.state_dict())
    assert tokenizer.fingerprint() == model.model.vq_model.fingerprint()
    assert all(parameter.requires_grad for parameter in tokenizer.encoder.parameters())  # which trains as ever
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "vq")
    inside = {
        name.removeprefix("model.vq_model."): value
        for name, value in load_file(tmp_path / "model/model.safetensors").items()
        if "vq_model" in name
    }
    assert_same(inside, {name: value for name, value in load_file(tmp_path / "vq/model.safetensors").items()})


def test_a_frozen_one_leaves_its_source_trainable() -> None:
    source = VQModel(toy_model().config.vq_config)
    frozen = FrozenImageTokenizer.of(source)
    assert frozen.fingerprint() == source.fingerprint()
    assert len(list(source.parameters())) > 20 and not list(frozen.parameters())
    assert frozen.encode(pixels()).equal(source.eval().encode(pixels()))


def test_copies_and_pickles_are_frozen() -> None:
    model = toy_model()
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model.model.vq_model))):
        tokenizer = other if isinstance(other, FrozenImageTokenizer) else other.model.vq_model
        assert not list(tokenizer.parameters())
        assert tokenizer.half().fingerprint() == model.config.vq_fingerprint


def test_input_images_have_the_same_codes_under_autocast() -> None:
    model = toy_model()
    expected = model.model.vq_model.encode(pixels(64))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(model.model.vq_model.encode(pixels(64)), expected)
        row = torch.tensor([[*input_image(model), 5]])
        by_pixels = model(row, pixel_values=pixels(1)).logits
        assert torch.equal(by_pixels, model(row, image_codes=expected[:1]).logits)


def test_distributed_training_does_not_send_it() -> None:
    model = toy_model()
    names = set(weights(model))
    assert names < model._ddp_params_and_buffers_to_ignore
    adapted = get_peft_model(toy_model(), LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    ignored = adapted._ddp_params_and_buffers_to_ignore
    assert {f"base_model.model.{name}" for name in names} < ignored
    assert not ignored & {name for name, _ in adapted.named_parameters()}


def test_an_offloaded_model_finds_it(tmp_path: Path) -> None:
    model = toy_model(tied=False)
    model.save_pretrained(tmp_path / "model")
    here = dict.fromkeys(("model.vq_model", "model.image_embedding", "model.language_model", "lm_head"), "cpu")
    part = UnifiedForCausalLM.from_pretrained(
        tmp_path / "model", device_map=here | {"model.vq_model": "disk"}, offload_folder=tmp_path / "away"
    ).eval()
    ids = torch.tensor([[5, 6, BOI]])
    greedy = ImageSampling(temperature=0)
    images = [each.generate(ids, max_new_tokens=0, image_sampling=greedy) for each in (part, model)]
    assert torch.equal(*images)
    assert torch.equal(part.model.vq_model.encode(pixels()), model.model.vq_model.encode(pixels()))


def test_a_tokenizer_that_would_train_is_refused() -> None:
    model = toy_model()
    check_frozen(model.model.vq_model)
    model.model.vq_model = VQModel(model.config.vq_config).requires_grad_(False)
    with pytest.raises(ValueError, match=r"tensors of the image tokenizer are parameters, encoder.* FrozenImageTok"):
        check_frozen(model.model.vq_model)


def test_zero3_does_not_follow_its_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ranks run them or not, as their batches have images: ZeRO-3 wants one order of layers on all ranks."""
    zero = pytest.importorskip("deepspeed.utils", reason="DeepSpeed is required on Linux alone")
    config = toy_model().config
    assert not zero.get_z3_leaf_modules(FrozenImageTokenizer(config.vq_config))
    monkeypatch.setattr("unified.models.frozen_tokenizer.is_deepspeed_zero3_enabled", lambda: True)
    monkeypatch.setattr("unified.models.frozen_tokenizer.outside_zero_init", nullcontext)
    tokenizer = FrozenImageTokenizer(config.vq_config)
    assert zero.get_z3_leaf_modules(tokenizer) == [tokenizer]
