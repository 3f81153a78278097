"""Sampling has one owner: names, defaults, help and checks are the same at every door."""

from dataclasses import dataclass, fields
from pathlib import Path

import pytest
from conftest import load_script

from unified.arguments.fields import arg
from unified.arguments.parser import parse
from unified.cli.main import dashed
from unified.inference.arguments import NAMES, GuidedSamplingArguments, SamplingArguments, sampling_of
from unified.models.image_sampling import ImageSampling
from unified.training.arguments import DpoArguments, TuningArguments, UnifiedTrainingArguments

ROOT = Path(__file__).parents[2]
BAD = {"temperature": -0.5, "top_k": -1, "guidance_scale": -2.0, "top_p": 0.0}


def test_names_and_defaults_are_those_of_image_sampling() -> None:
    assert sorted(NAMES) == sorted({field.name for field in fields(ImageSampling)} - {"on_scale"})
    assert SamplingArguments().sampling() == ImageSampling()
    assert GuidedSamplingArguments().sampling() == ImageSampling(temperature=0.7, guidance_scale=3.0)
    for kind in (SamplingArguments, GuidedSamplingArguments):
        assert all(field.metadata["help"] for field in fields(kind))


@dataclass
class Job(GuidedSamplingArguments):
    """One that needs a model, and asks for pictures of two kinds."""

    model: str = arg("", "needed")
    other_top_k: int = arg(5, "of the others")


def test_flags_say_what_they_were_read_from() -> None:
    (job,) = parse((Job,), ["--model", "m", "--top-k", "7", "--guidance_scale", "2"])
    assert job.sampling() == ImageSampling(0.7, 7, 1.0, 2.0) and sampling_of(job, "other_") == ImageSampling(top_k=5)
    assert parse((Job,), job.sampling_flags())[0].sampling() == job.sampling()


@pytest.mark.parametrize("name", NAMES)
def test_values_without_a_meaning_are_refused_everywhere(name: str) -> None:
    with pytest.raises(ValueError, match=f"^{name} {BAD[name]}; give"):
        ImageSampling(**{name: BAD[name]})
    with pytest.raises(ValueError, match=f"^--{name} {BAD[name]}; give"):
        parse((Job,), [f"--{name}", str(BAD[name])])


@pytest.mark.parametrize("kind", [UnifiedTrainingArguments, DpoArguments])
def test_the_pictures_of_a_training_are_sampled_as_it_says(kind: type[TuningArguments], tmp_path: Path) -> None:
    settings = {"sample_temperature": 0.5, "sample_top_k": 9, "sample_prompts": ["a cat"], "eval_strategy": "epoch"}
    args = kind(output_dir=str(tmp_path), bf16=False, **settings)
    assert args.sampling() == ImageSampling(0.5, 9, guidance_scale=3.0)
    args.sample_top_k = -1
    with pytest.raises(ValueError, match="^--sample_top_k -1; give at least 0"):
        args.sampling()


def test_scripts_take_them_from_one_place() -> None:
    found = 0
    for path in [*ROOT.glob("eval/*.py"), *ROOT.glob("data_prep/*.py"), *ROOT.glob("recipes/*.py")]:
        if "SamplingArguments" in path.read_text(encoding="utf-8"):
            own = [kind for kind in vars(load_script(str(path.relative_to(ROOT)))).values() if isinstance(kind, type)]
            found += any(issubclass(kind, SamplingArguments) for kind in own)
        assert "guidance_scale: float =" not in path.read_text(encoding="utf-8").replace("heldout_guidance_scale", "")
    assert found


def test_the_command_takes_flags_with_underscores_too() -> None:
    words = ["draw", "a_b", "--out_dir=a_b", "--top_k", "3", "-o_o", "--", "--not_this"]
    assert dashed(words) == ["draw", "a_b", "--out-dir=a_b", "--top-k", "3", "-o_o", "--", "--not_this"]
