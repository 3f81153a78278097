"""bitsandbytes' 4 and 8 bit, and accelerate's offloading: images are read and drawn with whole weights."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from toy_models import BACKBONES, BOI, EOS, input_image, random_codes, toy_model
from transformers import AutoModel, BitsAndBytesConfig

from unified import ImageSampling, UnifiedForCausalLM
from unified.models.pretrained import UnifiedPreTrainedModel

bitsandbytes = pytest.importorskip("bitsandbytes", reason="the extra quantized is not installed")

KINDS: dict[str, dict[str, Any]] = {
    "nf4": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True},
    "4 bit, bf16 products": {"load_in_4bit": True, "bnb_4bit_compute_dtype": torch.bfloat16},
    "8 bit": {"load_in_8bit": True},
    # who names what is to be skipped takes HF's own exceptions away
    "nf4, others to skip": {"load_in_4bit": True, "llm_int8_skip_modules": ["q_proj"]},
}
HIDDEN = 64  # the least that bitsandbytes takes: a block of its 4 bit
GREEDY = ImageSampling(temperature=0)
PLACES = ["model.vq_model", "model.image_embedding", "model.language_model", "lm_head"]


def quantized_parts(model: nn.Module) -> list[str]:
    return [name for name, part in model.named_modules() if type(part).__module__.startswith("bitsandbytes")]


def with_rounded_layers(model: UnifiedForCausalLM, small: UnifiedForCausalLM) -> UnifiedForCausalLM:
    """`model` with the weights that the quantized layers of `small` stand for: all else is its own."""
    for name in quantized_parts(small):
        weight = small.get_submodule(name).weight
        exact = bitsandbytes.functional.dequantize_4bit(weight.data, weight.quant_state)
        model.get_submodule(name).weight.data = exact.float()
    return model


@pytest.mark.filterwarnings("ignore:MatMul8bitLt:UserWarning", "ignore:_check_is_size:FutureWarning")
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_quantized_backbone_only(kind: str, tied: bool, tmp_path: Path) -> None:
    """The rest is the same to the bit, and what is drawn is what rounded layers draw."""
    model = toy_model(tied=tied, hidden_size=HIDDEN)
    model.save_pretrained(tmp_path)
    config = BitsAndBytesConfig(**KINDS[kind])
    small = UnifiedForCausalLM.from_pretrained(tmp_path, quantization_config=config, device_map="cpu").eval()
    parts = quantized_parts(small)
    assert parts and all(".layers." in name and name.startswith("model.language_model") for name in parts)
    whole = {n: v for n, v in model.state_dict().items() if not n.startswith(tuple(parts))}
    kept = small.state_dict()
    assert all(torch.equal(kept[name].float(), value) for name, value in whole.items())
    assert small.dtype.is_floating_point
    codes = random_codes(model, 2)
    states = [m.model.image_embedding(*m.model.image_features(codes, codes[:0]))[0].float() for m in (small, model)]
    assert torch.equal(*states)
    pixels = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    assert torch.equal(small.model.vq_model.encode(pixels), model.model.vq_model.encode(pixels))
    if kind != "8 bit":  # whose products round inputs too
        rounded = with_rounded_layers(model, small)  # before a forward pass, which packs weights anew
        ids = torch.tensor([[5, 6, *input_image(model), 7]])
        tolerance = 0.2 if "bf16" in kind else 1e-3
        found = small(ids, pixel_values=pixels).logits.float()
        assert (found - rounded(ids, pixel_values=pixels).logits).abs().max() < tolerance
    drawn = small.generate(torch.tensor([[5, 6, BOI]]), max_new_tokens=0, image_sampling=GREEDY)
    assert drawn.shape == (1, 3 + 21 + 1) and len(drawn[0, 3:-1].unique()) > 1


@pytest.mark.parametrize("backbone", BACKBONES)
def test_what_hfs_quantizers_leave_alone(backbone: str, tmp_path: Path) -> None:
    """In every backbone, in the base model too, and on a second saving and loading."""
    toy_model(backbone, hidden_size=HIDDEN).save_pretrained(tmp_path / "whole")
    config = BitsAndBytesConfig(load_in_4bit=True)
    for kind in (UnifiedForCausalLM, AutoModel):
        small = kind.from_pretrained(tmp_path / "whole", quantization_config=config, device_map="cpu")
        parts = quantized_parts(small)
        assert len(parts) == 14 and all("language_model.layers." in name for name in parts)
    small = UnifiedForCausalLM.from_pretrained(tmp_path / "whole", quantization_config=config, device_map="cpu").eval()
    small.save_pretrained(tmp_path / "small")
    again = UnifiedForCausalLM.from_pretrained(tmp_path / "small", device_map="cpu").eval()
    ids = torch.tensor([[5, 6, 7, BOI]])
    assert torch.equal(again(ids).logits, small(ids).logits) and quantized_parts(again) == quantized_parts(small)


def test_half_precision_is_what_it_was(tmp_path: Path) -> None:
    """Names that quantizers read are not those that loading keeps in float32."""
    toy_model().save_pretrained(tmp_path)
    for dtype in (torch.float16, torch.bfloat16):
        model = UnifiedForCausalLM.from_pretrained(tmp_path, dtype=dtype)
        assert {p.dtype for p in model.parameters()} == {dtype}
        assert {b.dtype for b in model.model.vq_model.buffers()} <= {torch.float32, torch.int64}
    assert issubclass(UnifiedForCausalLM, UnifiedPreTrainedModel)


@pytest.mark.filterwarnings("ignore::UserWarning:accelerate")
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("away", [*PLACES, "all"])
def test_an_offloaded_part_changes_nothing(away: str, tied: bool, tmp_path: Path) -> None:
    model = toy_model(tied=tied)
    model.save_pretrained(tmp_path / "model")
    disk = PLACES if away == "all" else [away]
    if tied and away in PLACES[2:]:  # accelerate takes tied layers in one place only
        disk = PLACES[2:]
    device_map = {place: "disk" if place in disk else "cpu" for place in PLACES}
    part = UnifiedForCausalLM.from_pretrained(
        tmp_path / "model", device_map=device_map, offload_folder=tmp_path / "away"
    ).eval()
    pixels = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    rows = torch.tensor([[5, 6, BOI], [7, 8, BOI]])
    asked = torch.tensor([[5, *input_image(model), 6]] * 2)
    labels = torch.cat([rows, torch.full((2, 1), EOS)], dim=1)
    calls: dict[str, Callable[[UnifiedForCausalLM], Tensor]] = {
        "text": lambda m: m.generate(rows[:, :2], max_new_tokens=4, do_sample=False),
        "drawn": lambda m: m.generate(rows, max_new_tokens=0, image_sampling=GREEDY),
        "guided": lambda m: m.generate(
            rows,
            max_new_tokens=0,
            image_sampling=ImageSampling(temperature=0, guidance_scale=2.0),
            negative_prompt_ids=rows[:1, :2],
        ),
        "read": lambda m: m(asked, pixel_values=pixels).logits,
        "loss": lambda m: m(labels, labels=labels).loss,
        "decoded": lambda m: m.model.vq_model.decode(random_codes(model, 1)),
    }
    with torch.no_grad():
        for name, call in calls.items():
            assert torch.equal(call(part), call(model)), name


def test_an_offloaded_tokenizer_is_refused(tmp_path: Path) -> None:
    toy_model().save_pretrained(tmp_path / "model")
    with pytest.raises(ValueError, match="offload_buffers True .* leave it out"):
        UnifiedForCausalLM.from_pretrained(
            tmp_path / "model", device_map={"": "disk"}, offload_folder=tmp_path / "away", offload_buffers=True
        )
