"""Every setting that `--allow_changed` takes: a run that goes on with another value is another run from there on."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.utils import set_seed
from conftest import ROOT
from pairs import toy_pairs
from PIL import Image
from safetensors.torch import load_file, save_file

from unified import UnifiedConfig
from unified.data.preferences import write_pairs
from unified.training.run_record import CHANGEABLE

# runs of two steps that go on to the fourth, whose settings are such that each of the changes can show
RUNS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "full": ("sft", "tiny", {"lr_scheduler_type": "polynomial"}),
    "lora": ("sft", "tiny", {"tuning": "lora", "lora_rank": 2}),
    "dpo": (
        "dpo",
        "tiny_dpo",
        {"loss_type": ["robust", "sft"], "loss_weights": [1, 1], "label_smoothing": 0.1, "save_only_model": False},
    ),
    "vq": (
        "train_vq",
        "tiny_vq",
        {"gan_weight": 0.5, "gan_start_step": 0, "gan_base_channels": 8, "save_total_limit": 5},
    ),
}
CHANGES: dict[str, dict[str, Any]] = {
    "full": {
        "learning_rate": 1e-5,
        "new_parts_learning_rate": 1e-5,
        "weight_decay": 0.5,
        "adam_beta1": 0.1,
        "adam_beta2": 0.1,
        "adam_epsilon": 1e-2,
        "max_grad_norm": 0.01,
        "lr_scheduler_type": "cosine",
        "lr_scheduler_kwargs": '{"power": 3}',
        "warmup_steps": 50,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "caption_dropout": 0.9,
        "last_scale_fraction": 1,
        "code_noise": 0.9,
        "text_loss_weight": 3,
        "scale_loss_weights": [3, 1],
        "modality_stride": 2,
        "seed": 1,
        "data_seed": 1,
        "max_length": 60,
        "pack": False,
        "train_sampling_strategy": "sequential",
        "accelerator_config": '{"use_seedable_sampler": false}',
        "rows": "dddtdddtdddt",
    },
    "lora": {"lora_dropout": 0.9, "base": "other"},
    "dpo": {
        "beta": 0.01,
        "label_smoothing": 0.4,
        "loss_type": ["exo_pair", "sft"],
        "loss_weights": [1, 9],
        "num_scales": 1,
    },
    "vq": {
        "batch_size": 2,
        "final_learning_rate": 1e-2,
        "gan_learning_rate": 1e-1,
        "ema_decay": 0,
        "l1_weight": 9,
        "l2_weight": 9,
        "vq_weight": 9,
        "scale_dropout": 1,
        "revive_after_steps": 2,
        "revive_until": 0,
        "lpips_weight": 5,
        "max_grad_norm": 0.01,
        "warmup_steps": 50,
        "weight_decay": 0.9,
        "learning_rate": 1e-5,
    },
}
DETECTOR = {"tidy_share": 0, "torn_share": 1, "tokenizer_share": 0}
RENAMED = {"rows": "train_files", "base": "model"}  # the flags by which these change
Given = dict[str, Any]


def flags(given: Given) -> list[object]:
    """Settings as a command line has them."""
    found: list[object] = []
    for name, value in given.items():
        found += [f"--{name}", *(value if isinstance(value, list) else [value])]
    return found


@pytest.fixture(scope="module")
def data(toy_checkpoint: Path, toy_rows: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Models, rows and pictures of the runs, by name."""
    folder = tmp_path_factory.mktemp("data")
    config = UnifiedConfig.from_pretrained(toy_checkpoint)
    write_pairs(folder / "pairs.parquet", toy_pairs("imutimut"), config.vq_fingerprint, config.patch_nums)
    shutil.copytree(toy_checkpoint, folder / "other")
    weights = load_file(folder / "other/model.safetensors")
    shifted = {name: value * 1.5 if name.endswith("q_proj.weight") else value for name, value in weights.items()}
    save_file(shifted, folder / "other/model.safetensors", {"format": "pt"})
    (folder / "images").mkdir()
    pixels = torch.randint(0, 256, (12, 16, 16, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    for number, image in enumerate(pixels):
        Image.fromarray(image.numpy()).save(folder / f"images/{number:02d}.png")
    rows = {"model": toy_checkpoint, "train_files": toy_rows("dddddaaatttt")}
    return {
        "full": rows,
        "lora": rows,
        "dpo": rows | {"train_files": folder / "pairs.parquet"},
        "vq": {"data_dir": folder / "images"},
        "other": folder / "other",
        "rows": toy_rows,
    }


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of runs that there are."""
    return {"folder": tmp_path_factory.mktemp("runs")}


@pytest.fixture
def run(
    run_script: Callable[..., int], monkeypatch: pytest.MonkeyPatch, data: Any, made: dict[str, Path]
) -> Callable[..., Path]:
    """`run(kind, out, **settings)` goes on with a run of two steps, to its fourth; returns the folder."""
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")

    def train(kind: str, out: Path, given: Given) -> Path:
        recipe, config, settings = RUNS[kind]
        command = ["--config", ROOT / f"recipes/configs/{config}.yaml", "--report_to", "none", "--save_steps", 2]
        assert (
            run_script(f"recipes/{recipe}.py", *command, *flags(data[kind] | settings | given), "--output_dir", out)
            == 0
        )
        return out

    def go_on(kind: str, out: Path, **given: Any) -> Path:
        if kind not in made:
            made[kind] = train(kind, made["folder"] / kind, {"max_steps": 2})
        (checkpoint,) = made[kind].glob("checkpoint-*2")
        shutil.copytree(checkpoint, out / checkpoint.name)
        return train(kind, out, {"max_steps": 4, "resume": True} | given)

    return go_on


def weights(out: Path) -> dict[str, torch.Tensor]:
    (path,) = out.glob("*model.safetensors")
    return load_file(path)


def test_every_name_has_a_case() -> None:
    cases = {name for changes in CHANGES.values() for name in changes} | DETECTOR.keys()
    assert cases | {"processes"} == CHANGEABLE  # processes: test_engines.py


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind, names in CHANGES.items() for name in names])
def test_an_allowed_change_takes_effect_and_is_on_record(
    run: Callable[..., Path],
    data: Any,
    made: dict[str, Path],
    kind: str,
    name: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if name == "lpips_weight":
        monkeypatch.setattr("unified.image_tokenizer.losses.LPIPS.load", lambda path: Brightness())
    if f"{kind} plain" not in made:
        made[f"{kind} plain"] = run(kind, made["folder"] / f"{kind} plain")
    value = {"rows": data["rows"]("dddtdddtdddt"), "base": data["other"]}.get(name, CHANGES[kind][name])
    given = {RENAMED.get(name, name): value, "allow_changed": name}
    out = run(kind, tmp_path / "out", **given, **({"lpips_path": "x"} if name == "lpips_weight" else {}))
    (change,) = json.loads((out / "run.json").read_text())["changes"]
    assert (change["after_step"], change["name"]) == (2, name)
    plain, found = weights(made[f"{kind} plain"]), weights(out)
    assert [key for key, kept in plain.items() if not torch.equal(kept, found[key])], "as without the change"


class Brightness(torch.nn.Module):
    """In LPIPS's place: how far the brightness of two pictures is apart."""

    def forward(self, one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        return (one.mean(dim=(1, 2, 3)) - other.mean(dim=(1, 2, 3))) ** 2


@pytest.mark.parametrize("name", DETECTOR)
def test_the_detectors_images_change(
    run_script: Callable[..., int], monkeypatch: pytest.MonkeyPatch, made: dict[str, Path], name: str, tmp_path: Path
) -> None:
    from unified import VQConfig, VQModel

    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    toy = {"channels": [8, 8], "num_blocks": [1, 1], "batch_size": 16, "warmup_steps": 1, "save_steps": 1}
    toy |= {"log_steps": 1, "eval_scenes": 4, "ceiling_scenes": 4, "report_to": "none", "vq": made["folder"] / "v64"}

    def train(out: Path, **given: Any) -> Path:
        config = ROOT / "recipes/configs/smollm2_scenes/detector.yaml"
        assert (
            run_script("recipes/train_detector.py", "--config", config, *flags(toy | given), "--output_dir", out) == 0
        )
        return out

    if "detector" not in made:
        set_seed(0)
        tokenizer = VQModel(VQConfig(channels=(32, 32), patch_nums=(1, 8), codebook_size=32, code_dim=4))
        tokenizer.save_pretrained(toy["vq"])
        made["detector"] = train(made["folder"] / "detector", max_steps=1)
        shutil.copytree(made["detector"] / "checkpoint-0000001", made["folder"] / "detector plain/checkpoint-0000001")
        made["detector plain"] = train(made["folder"] / "detector plain", max_steps=2, resume=True)
    shutil.copytree(made["detector"] / "checkpoint-0000001", tmp_path / "out/checkpoint-0000001")
    given = {name: DETECTOR[name], "allow_changed": name}
    out = train(tmp_path / "out", max_steps=2, resume=True, **given)
    plain, found = weights(made["detector plain"]), weights(out)
    assert [key for key, kept in plain.items() if not torch.equal(kept, found[key])], "as without the change"
