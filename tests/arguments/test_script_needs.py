"""Scripts refuse, by name, what would have no effect, as recipes do; beside its switch it is taken."""

from typing import Any

import pytest
from conftest import load_script

from unified.arguments.needs import WithNeeds
from unified.arguments.parser import parse
from unified.scenes.object_folder import ObjectArguments
from unified.training.tokenizer_arguments import TokenizerTrainingArguments

OUT = ["--out", "x.json"]
SAMPLING = {"guidance_scale": 2.0, "temperature": 0.5, "top_k": 5, "top_p": 0.9}
DRAWN = {"base": "b", "quantize": "4bit", "sampled": "s", "samples": 3, "max_pairs": 2, "min_gap": 0.1}
DRAWN |= {"batch_size": 3, "shard_size": 3, "scorer": "verdict", **SAMPLING}
# of every script: its arguments, what they cannot do without, and for each switch: flags of off and on, what needs it
CASES: dict[str, tuple[str, list[str], list[tuple[list[str], list[str], dict[str, Any]]]]] = {
    "eval/reconstruction.py": (
        "ReconstructionArguments",
        ["--vq", "v", "--images", "i"],
        [([], ["--rfid", "True"], {"inception": "w"}), ([], ["--grid", "g.png"], {"grid_images": 4})],
    ),
    "eval/learning_curve.py": (
        "CurveArguments",
        ["--runs", "r", *OUT],
        [([], ["--scores", "1=s.json"], {"score_goal": 0.5})],
    ),
    "eval/machine.py": (
        "MachineArguments",
        [],
        [([], ["--model", "m"], {"base": "b", "tasks": "answer", "busy": 3, "repeats": 2, "minutes": 1.0})],
    ),
    "eval/write_prompts.py": (
        "PromptArguments",
        OUT,
        [
            (["--renderable", "p"], [], {"count": 3, "seed": 1, "split": "heldout"}),
            ([], ["--split", "unseen_counts"], {"counts": 7}),
        ],
    ),
    "eval/sampling_speed.py": (
        "SpeedArguments",
        [],
        [
            ([], ["--codes", "85"], {"layers": 2, "hidden_size": 288, "intermediate_size": 2, "heads": 3}),
            (["--codes", "85"], [], {"model": "m", "prompt": "p", "base": "b", "quantize": "4bit"}),
        ],
    ),
    "recipes/compare.py": (
        "CompareArguments",
        ["--run", "r", "--out", "o", "--trials", "{}"],
        [([], ["--prompts", "4"], SAMPLING)],
    ),
    "recipes/iterate_dpo.py": (
        "IterateArguments",
        ["--model", "m", "--out", "o", "--run", "r"],
        [(["--heldout", "h"], [], {"heldout_prompts": 12})],
    ),
    "data_prep/build_preferences.py": (
        "BuildArguments",
        ["--out", "o"],
        [(["--questions", "q"], ["--prompts", "p", "--model", "m"], DRAWN)],
    ),
}


def kind_of(script: str, name: str) -> Any:
    return vars(load_script(script))[name]


def check(kind: Any, needed: list[str], off: list[str], on: list[str], name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=rf"^{name} .*would have no effect: .+, or leave it out$"):
        parse((kind,), [*needed, *off, f"--{name}", str(value)])
    (taken,) = parse((kind,), [*needed, *on, f"--{name}", str(value)])
    assert str(value) in str(vars(taken)[name])


@pytest.mark.parametrize("script", CASES)
def test_what_would_have_no_effect_is_refused(script: str) -> None:
    name, needed, switches = CASES[script]
    for off, on, values in switches:
        for setting, value in values.items():
            check(kind_of(script, name), needed, off, on, setting, value)


@pytest.mark.parametrize("script", CASES)
def test_every_rule_has_a_case(script: str) -> None:
    name, _, switches = CASES[script]
    kind = kind_of(script, name)
    assert issubclass(kind, WithNeeds)
    ruled = {one for rule in kind.NEEDS for one in rule.names.split()}
    tried = {setting for _, _, values in switches for setting in values}
    assert ruled - tried <= {"key_heads", "clip", "choices"}  # that need yet another one


def test_of_the_library() -> None:
    check(ObjectArguments, ["--out", "o"], [], ["--count", "9"], "seed", 3)
    check(TokenizerTrainingArguments, [], ["--revive_after_steps", "0"], [], "revive_until", 0.5)
