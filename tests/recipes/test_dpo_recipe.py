"""recipes/dpo.py on a toy: where it starts, that its references agree, what it reports, writes and refuses.

Tolerances: 1e-4 for the first loss; 1e-5 (relative) between ways to the same reference; 1e-4 (relative) between one
and two processes.
"""

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import load_script
from endings import check_ending, check_plot, tracked_images
from engine_world import World
from pairs import toy_pairs
from safetensors.torch import load_file

from unified import UnifiedConfig, UnifiedForCausalLM, UnifiedProcessor
from unified.checkpoints.loading import load
from unified.data.preferences import write_pairs
from unified.inference.text_to_image import draw
from unified.training.arguments import DpoArguments

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / "recipes/configs/tiny_dpo.yaml"
BETA = 0.5  # the configuration's
LN2 = math.log(2)
Dpo = Callable[..., list[dict[str, float]]]


@pytest.fixture
def pairs(toy_checkpoint: Path, tmp_path: Path) -> Callable[..., Path]:
    """`pairs("imut")`: file with a pair for every letter, see `toy_pairs`."""
    config = UnifiedConfig.from_pretrained(toy_checkpoint)

    def write(kinds: str, **columns: object) -> Path:
        path = tmp_path / f"{kinds}.parquet"
        rows = [pair | columns for pair in toy_pairs(kinds)]
        write_pairs(path, rows, config.vq_fingerprint, config.patch_nums)
        return path

    return write


def history(out: Path) -> list[dict[str, float]]:
    """What every step logged of training."""
    entries = json.loads((out / "trainer_state.json").read_text())["log_history"]
    return [entry for entry in entries if "loss" in entry]


@pytest.fixture
def dpo(
    run_script: Callable[..., int],
    monkeypatch: pytest.MonkeyPatch,
    toy_checkpoint: Path,
    pairs: Callable[..., Path],
    tmp_path: Path,
) -> Dpo:
    """Run the recipe with tiny_dpo.yaml in this process; returns the log of training."""
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")

    def run(kinds: str, *arguments: object, out: str = "out") -> list[dict[str, float]]:
        command = ["--config", CONFIG, "--model", toy_checkpoint, "--train_files", pairs(kinds)]
        if "--resume" not in arguments:  # a used folder is refused
            shutil.rmtree(tmp_path / out, ignore_errors=True)
        assert run_script("recipes/dpo.py", *command, "--output_dir", tmp_path / out, *arguments) == 0
        return history(tmp_path / out)

    return run


@pytest.mark.parametrize("kinds", ["iiii", "tttt", "uuuu", "mmmm", "imut"])
@pytest.mark.parametrize("tuning", ["lora", "full"])
def test_the_first_loss_is_ln_2_and_the_second_is_less(dpo: Dpo, kinds: str, tuning: str) -> None:
    first, second = dpo(kinds, "--tuning", tuning, "--learning_rate", 2e-3)
    assert first["loss"] == pytest.approx(LN2, abs=1e-4) and first["rewards/margins"] == pytest.approx(0, abs=1e-4)
    assert second["loss"] < first["loss"] - 1e-3 and second["rewards/margins"] > 0


def test_other_losses_start_where_they_must(dpo: Dpo) -> None:
    assert dpo("iitt", "--loss_type", "ipo")[0]["loss"] == pytest.approx((1 / (2 * BETA)) ** 2, abs=1e-4)
    alone = dpo("iitt", "--loss_type", "sft")[0]["loss"]
    both = dpo("iitt", "--loss_type", "sigmoid", "sft", "--loss_weights", 1.0, 0.2)[0]["loss"]
    assert both == pytest.approx(LN2 + 0.2 * alone, abs=1e-4)


def reference(log: list[dict[str, float]]) -> list[float]:
    """The reference's mean log-probs of chosen and rejected answers at every step."""
    kinds = ("chosen", "rejected")
    return [entry[f"logps/{kind}"] - entry[f"rewards/{kind}"] / BETA for entry in log for kind in kinds]


def test_all_ways_to_the_reference_agree(dpo: Dpo) -> None:
    steps = ("--max_steps", 4, "--train_sampling_strategy", "sequential")
    computed = dpo("imutimut", *steps)
    precomputed = dpo("imutimut", *steps, "--precompute_ref_log_probs", True)
    for entry, other in zip(computed, precomputed, strict=True):
        assert {k: v for k, v in entry.items() if k in other and "time" not in k} == pytest.approx(other, rel=1e-5)
    adapters_off = dpo("imutimut", *steps, "--tuning", "lora")
    off_before = dpo("imutimut", *steps, "--tuning", "lora", "--precompute_ref_log_probs", True)
    assert computed[-1]["loss"] < LN2 - 0.01 and adapters_off[-1]["loss"] < LN2 - 0.001  # they have moved away
    for log in (precomputed, adapters_off, off_before):
        assert reference(log) == pytest.approx(reference(computed), rel=1e-5, abs=1e-4)


def test_coarse_scales_alone_can_count(dpo: Dpo) -> None:
    whole, coarse = dpo("iiii")[0], dpo("iiii", "--num_scales", 1)[0]
    assert coarse["loss"] == pytest.approx(LN2, abs=1e-4)
    assert whole["logps/chosen"] < coarse["logps/chosen"] < 0


def test_every_modality_is_evaluated_apart_and_pictures_drawn_once(
    dpo: Dpo, pairs: Callable[..., Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    steps = ["--max_steps", 2, "--eval_strategy", "steps", "--eval_steps", 2, "--eval_on_start", True]
    dpo("imut", *steps, "--eval_files", pairs("iimuutttt"), "--sample_prompts", "a cat", "two dogs")
    entries = json.loads((tmp_path / "out/trainer_state.json").read_text())["log_history"]
    for name in ("image", "mixed", "understanding", "text"):
        start, end = ({k: v for e in entries if e["step"] == step for k, v in e.items()} for step in (0, 2))
        assert start[f"eval_{name}_loss"] == pytest.approx(LN2, abs=1e-4)
        assert start[f"eval_{name}_rewards/margins"] == pytest.approx(0, abs=1e-4)
        assert start[f"eval_{name}_kl"] == pytest.approx(0, abs=1e-6) and end[f"eval_{name}_kl"] > 1e-5
        assert 0 <= end[f"eval_{name}_rewards/accuracies"] <= 1
        assert end[f"eval_{name}_rewards/margins"] == pytest.approx(
            end[f"eval_{name}_rewards/chosen"] - end[f"eval_{name}_rewards/rejected"], abs=1e-5
        )
    names = [path.name for path in sorted((tmp_path / "out/samples").iterdir())]
    assert names == ["000000.png", "000002.png"]
    printed = capfd.readouterr()
    check_ending(printed.err, tmp_path / "out", "held-out image accuracies", "held-out text margins")
    assert "step 2, held out: " in printed.out and "accuracy=" in printed.err
    assert tracked_images(tmp_path / "out/runs") == {"samples": [0, 2]}
    check_plot(tmp_path / "out", panels=3)


def test_a_share_of_prompts_is_held_out(dpo: Dpo, tmp_path: Path) -> None:
    dpo("it" * 20, "--held_out_share", 0.3, "--eval_strategy", "steps", "--eval_steps", 2)
    entries = json.loads((tmp_path / "out/trainer_state.json").read_text())["log_history"]
    assert {"eval_image_loss", "eval_text_loss", "eval_text_kl"} <= {key for entry in entries for key in entry}


def test_a_full_run_leaves_a_checkpoint_and_is_resumed(dpo: Dpo, toy_checkpoint: Path, tmp_path: Path) -> None:
    whole = dpo("imutimut", "--max_steps", 4, out="whole")
    shutil.copytree(tmp_path / "whole/checkpoint-2", tmp_path / "out/checkpoint-2")
    again = dpo("imutimut", "--max_steps", 4, "--resume", True)
    assert [entry["loss"] for entry in again] == [entry["loss"] for entry in whole]
    weights, expected = (load_file(tmp_path / out / "model.safetensors") for out in ("out", "whole"))
    assert all(torch.equal(weights[name], value) for name, value in expected.items())
    before = load_file(toy_checkpoint / "model.safetensors")
    moved = {name for name, value in expected.items() if not torch.equal(value, before[name])}
    assert any("layers.0" in name for name in moved) and not any("vq_model" in name for name in moved)
    name = "model.language_model.embed_tokens.weight"
    offset = UnifiedConfig.from_pretrained(toy_checkpoint).vocabulary.boi_token_id
    assert name in moved and torch.equal(expected[name][:offset], before[name][:offset])  # text rows stay
    model, processor = load(tmp_path / "out", device="cpu")
    assert draw(model, processor, ["two cats"], seed=1)[0].size == (16, 16)


def test_a_reference_that_follows_is_the_policy(dpo: Dpo) -> None:
    """TRL copies the policy's parameters one by one: after every step it starts from ln 2 again."""
    log = dpo("imut", "--sync_ref_model", True, "--ref_model_sync_steps", 1, "--ref_model_mixup_alpha", 1.0)
    assert [entry["loss"] for entry in log] == pytest.approx([LN2, LN2], abs=1e-4)


def test_a_lora_run_leaves_an_adapter_of_the_backbone(dpo: Dpo, toy_checkpoint: Path, tmp_path: Path) -> None:
    dpo("imut", "--tuning", "lora", "--learning_rate", 1e-2)
    names = set(load_file(tmp_path / "out/adapter_model.safetensors"))
    assert names and all(".language_model." in name and "lora_" in name for name in names)
    model, processor = load(tmp_path / "out", device="cpu")
    before = UnifiedForCausalLM.from_pretrained(toy_checkpoint)
    ids = torch.tensor([processor.prompt_ids([{"role": "user", "content": "Hi."}])])
    assert not torch.allclose(model(ids).logits, before(ids).logits, atol=1e-4)


def test_updates_of_image_positions_leave_text_alone(dpo: Dpo, toy_checkpoint: Path, tmp_path: Path) -> None:
    log = dpo("imut", "--tuning", "lora", "--lora_positions", "image_tokens", "--learning_rate", 1e-2)
    assert log[0]["loss"] == pytest.approx(LN2, abs=1e-4) and log[1]["loss"] < LN2 - 1e-4
    model, processor = load(tmp_path / "out", device="cpu")
    before = UnifiedForCausalLM.from_pretrained(toy_checkpoint)
    ids = torch.tensor([processor.prompt_ids([{"role": "user", "content": "Hi."}])])
    assert torch.equal(model(ids).logits, before(ids).logits)


def test_an_adapter_of_sft_goes_on_against_its_copy(
    dpo: Dpo, pairs: Callable[..., Path], image_adapter: Path, tmp_path: Path
) -> None:
    steps = ["--tuning", "lora", "--model", image_adapter, "--max_steps", 4, "--learning_rate", 1e-2]
    steps += ["--eval_strategy", "steps", "--eval_steps", 4, "--eval_files", pairs("imut" * 2)]
    whole = dpo("imutimut", *steps, out="whole")
    assert whole[0]["loss"] == pytest.approx(LN2, abs=1e-4) and whole[-1]["loss"] < LN2 - 1e-3
    entries = json.loads((tmp_path / "whole/trainer_state.json").read_text())["log_history"]
    assert next(entry["eval_image_kl"] for entry in entries if "eval_image_kl" in entry) > 1e-5
    shutil.copytree(tmp_path / "whole/checkpoint-2", tmp_path / "out/checkpoint-2")
    again = dpo("imutimut", *steps, "--resume", True)
    assert [entry["loss"] for entry in again] == [entry["loss"] for entry in whole]  # with the reference it had
    before, after, resumed = (
        load_file(folder / "adapter_model.safetensors")
        for folder in (image_adapter, tmp_path / "whole", tmp_path / "out")
    )
    assert before.keys() == after.keys() and all(torch.equal(after[name], resumed[name]) for name in after)
    assert any(not torch.equal(before[name], after[name]) for name in before if "lora_B" in name)
    assert not (tmp_path / "whole/ref").exists()
    model, processor = load(tmp_path / "whole", device="cpu")
    assert draw(model, processor, ["two cats"], seed=1)[0].size == (16, 16)
    third = dpo("imut", *steps[:4], "--max_steps", 1, "--model", tmp_path / "whole", out="third")
    assert third[0]["loss"] == pytest.approx(LN2, abs=1e-4)


def test_precomputed_log_probs_of_an_adapter_are_those_of_its_copy(dpo: Dpo, image_adapter: Path) -> None:
    steps = ["--tuning", "lora", "--model", image_adapter, "--train_sampling_strategy", "sequential"]
    computed, before = (dpo("imut", *steps, "--precompute_ref_log_probs", flag) for flag in (False, True))
    assert reference(before) == pytest.approx(reference(computed), rel=1e-5, abs=1e-4)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (["--model", "/nowhere"], ["/nowhere", "not a folder"]),
        (["--train_files", "/nowhere.parquet"], ["/nowhere.parquet", "no pairs"]),
        (["--max_length", "40"], ["pair 0", "beyond max_length 40"]),
        (["--max_length", "513"], ["context of 512"]),
        (["--num_scales", "3"], ["num_scales 3", "set it to 1 to 2"]),
        (["--precompute_ref_log_probs", "True", "--eval_on_start", "True"], ["kl_pairs 16", "set kl_pairs 0"]),
        (
            ["--held_out_share", "0.5", "--eval_files", "/a.parquet", "--eval_strategy", "epoch"],
            ["held_out_share 0.5", "keep one"],
        ),
        (["--tuning", "lora", "--lora_target_modules", "query"], ["query", "match nothing"]),
        (["--loss_tipe", "ipo"], ["loss_tipe", "loss_type"]),
    ],
)
def test_bad_settings_are_one_line_and_status_2(
    dpo: Dpo,
    run_script: Callable[..., int],
    toy_checkpoint: Path,
    pairs: Callable[..., Path],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    changes: list[str],
    words: list[str],
) -> None:
    command = ["--config", CONFIG, "--model", toy_checkpoint, "--train_files", pairs("imut")]
    assert run_script("recipes/dpo.py", *command, "--output_dir", tmp_path / "out", *changes) == 2
    line = capfd.readouterr().err.splitlines()[-1]
    assert line.startswith("error: ") and not [word for word in words if word not in line], line
    assert not (tmp_path / "out").exists()


def test_an_adapter_cannot_go_on_under_zero3(image_adapter: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = load_script("recipes/dpo.py")
    monkeypatch.setattr(script, "is_deepspeed_zero3_enabled", lambda: True)
    args = DpoArguments(model=str(image_adapter), output_dir="unused", use_cpu=True)
    with pytest.raises(ValueError, match="cannot train on under ZeRO-3; launch with zero2"):
        script.check(args)


def test_bad_pairs_and_adapters_are_refused_before_training(
    dpo: Dpo,
    run_script: Callable[..., int],
    toy_checkpoint: Path,
    image_adapter: Path,
    pairs: Callable[..., Path],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    bad = pairs("ti", chosen_codes=[])
    given = ["--config", CONFIG, "--model", toy_checkpoint, "--train_files", bad, "--output_dir", tmp_path / "out"]
    assert run_script("recipes/dpo.py", *given) == 2
    assert f"1 bad pairs: {bad}:2: 1 image parts in chosen but" in capfd.readouterr().err
    given[5] = pairs("ti")
    assert run_script("recipes/dpo.py", *given, "--model", image_adapter, "--tuning", "full") == 2
    assert "tuning full needs a checkpoint but" in capfd.readouterr().err
    assert run_script("recipes/dpo.py", *given, "--model", image_adapter, "--tuning", "lora", "--lora_rank", 3) == 2
    assert "lora_rank 3 is not that of the adapter" in capfd.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("engine", "tuning"), [("zero3", "dpo_evaluated"), ("zero2", "dpo_evaluated_lora")])
def test_two_processes_train_as_one(engine: str, tuning: str, cell: Callable[[str, str], Path], world: World) -> None:
    """Read in order, 2 x 2 at a time: in some steps one process has images alone and the other text alone."""
    two, one = cell(engine, tuning), world.one(tuning)
    assert list(two.glob("checkpoint-2/global_step2/*optim_states.pt")), "DeepSpeed was not used"
    for entry, other in zip(history(two), history(one), strict=True):
        for name in ("loss", "grad_norm", "rewards/margins", "logps/chosen", "logps/rejected"):
            assert entry[name] == pytest.approx(other[name], rel=1e-4, abs=1e-5), name
    values = [
        {k: v for e in json.loads((out / "trainer_state.json").read_text())["log_history"] for k, v in e.items()}
        for out in (two, one)
    ]
    for name in ("image", "mixed", "understanding", "text"):
        for kind in ("rewards/margins", "kl"):
            assert values[0][f"eval_{name}_{kind}"] == pytest.approx(
                values[1][f"eval_{name}_{kind}"], rel=1e-3, abs=1e-5
            )
    assert (two / "samples/000003.png").is_file()
    model, processor = load(two, device="cpu")
    assert isinstance(processor, UnifiedProcessor) and draw(model, processor, ["a cat"], seed=1)[0].size == (16, 16)
