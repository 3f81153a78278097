"""Settings that would have no effect, as another one is off, are refused by name; beside it they are taken."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import load_script

from unified.arguments.parser import parse
from unified.training.arguments import DataArguments, DpoArguments, UnifiedTrainingArguments
from unified.training.inherited import NEEDS, check_metric
from unified.training.step_plan import StepPlan
from unified.training.tokenizer_arguments import LOSS_NEEDS, TokenizerLossArguments

ROOT = Path(__file__).parents[2]
EVALUATED = {"eval_strategy": "steps", "eval_steps": 7}
# a value for every name, and what else makes it count
CASES: dict[str, tuple[Any, dict[str, Any]]] = {
    "save_steps": (7, {"save_strategy": "steps"}),
    "save_total_limit": (3, {"save_strategy": "epoch"}),
    "save_only_model": (True, {"save_strategy": "steps"}),
    "load_best_model_at_end": (True, EVALUATED | {"save_strategy": "steps", "save_steps": 7}),
    "logging_steps": (7, {"logging_strategy": "steps"}),
    "num_train_epochs": (7, {"max_steps": -1}),
    "kl_pairs": (3, EVALUATED),
    "learning_rate": (1e-3, {"tuning": "full"}),
    "weight_decay": (0.1, {"tuning": "lora"}),
    "eval_steps": (7, {"eval_strategy": "steps"}),
    "eval_delay": (2, EVALUATED),
    "sample_prompts": (["a cat"], EVALUATED),
    "held_out_share": (0.1, EVALUATED),
    "eval_files": (["pairs.parquet"], EVALUATED),
    "sample_temperature": (0.5, EVALUATED | {"sample_prompts": ["a cat"]}),
    "sample_top_k": (5, EVALUATED | {"sample_prompts": ["a cat"]}),
    "sample_guidance_scale": (5.0, EVALUATED | {"sample_prompts": ["a cat"]}),
    "activation_checkpointing_kwargs": ({"use_reentrant": True}, {"activation_checkpointing": True}),
    "gradient_checkpointing_kwargs": ({"use_reentrant": True}, {"activation_checkpointing": True}),
    "greater_is_better": (True, {"metric_for_best_model": "loss"}),
    "warmup_steps": (5, {"lr_scheduler_type": "constant_with_warmup"}),
    "adam_beta1": (0.8, {"optim": "adamw_torch"}),
    "adam_beta2": (0.8, {"optim": "adamw_torch"}),
    "adam_epsilon": (1e-6, {"optim": "adamw_torch"}),
    "train_text_rows": (True, {"tuning": "full"}),
    "lora_positions": ("image_tokens", {"tuning": "lora"}),
    "lora_rank": (8, {"tuning": "lora"}),
    "lora_alpha": (8, {"tuning": "lora"}),
    "lora_target_modules": (["q_proj"], {"tuning": "lora"}),
    "lora_dropout": (0.1, {"tuning": "lora"}),
    "dataloader_prefetch_factor": (3, {"dataloader_num_workers": 2}),
    "dataloader_multiprocessing_context": ("spawn", {"dataloader_num_workers": 2}),
    "precompute_ref_batch_size": (4, {"precompute_ref_log_probs": True}),
    "ref_model_mixup_alpha": (0.5, {"sync_ref_model": True}),
    "ref_model_sync_steps": (5, {"sync_ref_model": True}),
    "f_alpha_divergence_coef": (0.7, {"f_divergence_type": "alpha_divergence"}),
    "discopop_tau": (0.1, {"loss_type": ["discopop"]}),
    "label_smoothing": (0.1, {"loss_type": "robust"}),
    "lpips_path": ("lpips.pt", {"lpips_weight": 1.0}),
    "gan_start_step": (5, {"gan_weight": 1.0}),
    "gan_learning_rate": (1e-5, {"gan_weight": 1.0}),
    "gan_base_channels": (8, {"gan_weight": 1.0}),
}
# where it is not off by default
OFF = {
    "lr_scheduler_type": "constant",
    "optim": "sgd",
    "save_strategy": "no",
    "logging_strategy": "no",
    "max_steps": 5,
}
OF_ALIGN = ("learning_rate", "weight_decay")  # off with that alone, which DPO has not
RULED = {name for rule in (*NEEDS, *LOSS_NEEDS) for name in rule.names.split()}


def test_every_rule_has_a_case() -> None:
    assert RULED == CASES.keys()


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("kind", [UnifiedTrainingArguments, DpoArguments, TokenizerLossArguments])
def test_a_setting_that_needs_another_is_refused_without_it(kind: type, name: str, tmp_path: Path) -> None:
    known = kind.__dataclass_fields__  # type: ignore[attr-defined]
    value, needed = CASES[name]
    if name not in known or (name in OF_ALIGN and kind is DpoArguments):
        pytest.skip(f"{kind.__name__} has none")
    base = {} if kind is TokenizerLossArguments else {"output_dir": str(tmp_path), "use_cpu": True}
    off = {key: OFF[key] for key in needed if key in OFF}
    off |= {"tuning": "align"} if name in OF_ALIGN else {}
    off |= {"tuning": "full" if needed["tuning"] == "lora" else "lora"} if "tuning" in needed and not off else {}
    with pytest.raises(ValueError, match=rf"^{name} .* would have no effect: .+, or leave it out$"):
        kind(**base, **off, **{name: value})
    if not name.startswith("gradient_checkpointing"):  # HF's deprecated name warns
        kind(**base, **needed, **{name: value})


def test_a_schedule_is_given_what_it_takes(tmp_path: Path) -> None:
    given = {"lr_scheduler_type": "cosine", "lr_scheduler_kwargs": {"lr_end": 1e-5}}
    with pytest.raises(ValueError, match="lr_scheduler_kwargs lr_end: lr_scheduler_type cosine has no such; .*num_c"):
        UnifiedTrainingArguments(output_dir=str(tmp_path), use_cpu=True, **given)


@pytest.mark.parametrize("kind", [UnifiedTrainingArguments, DpoArguments])
@pytest.mark.parametrize(
    "given",
    [
        {"lr_scheduler_type": "reduce_lr_on_plateau", "lr_scheduler_kwargs": {"factor": 0.5, "patience": 3}},
        {"lr_scheduler_type": "greedy", "lr_scheduler_kwargs": {"patience": 3}, "greater_is_better": True},
        {"load_best_model_at_end": True, "save_strategy": "steps", "save_steps": 7, "greater_is_better": False},
    ],
)
def test_what_counts_beside_a_metric_that_hf_sets_is_taken(kind: type, given: dict[str, Any], tmp_path: Path) -> None:
    args = kind(output_dir=str(tmp_path), use_cpu=True, **EVALUATED, **given)
    assert args.metric_for_best_model == "loss" and args.greater_is_better is given.get("greater_is_better", False)
    with pytest.raises(ValueError, match="lr_scheduler_kwargs gamma: .* has no such"):
        kind(output_dir=str(tmp_path), use_cpu=True, **EVALUATED, **given | {"lr_scheduler_kwargs": {"gamma": 1}})


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"metric_for_best_model": "image_los"}, "image_los"),
        ({"load_best_model_at_end": True, "save_steps": 7}, "loss"),  # HF's default, which no modality has
        ({"lr_scheduler_type": "reduce_lr_on_plateau"}, "loss"),
        ({"metric_for_best_model": "eval_image_loss"}, None),
        ({"metric_for_best_model": "image_loss"}, None),
        ({"metric_for_best_model": "image_los", "eval_strategy": "no", "eval_steps": None}, None),
        ({}, None),
    ],
)
def test_a_metric_that_evaluation_does_not_give_is_refused(
    given: dict[str, Any], said: str | None, tmp_path: Path
) -> None:
    args = UnifiedTrainingArguments(output_dir=str(tmp_path), use_cpu=True, **EVALUATED | given)
    if said is None:
        check_metric(args, ["image_loss"])
        return
    with pytest.raises(ValueError, match=f"^metric_for_best_model {said} is not evaluated; give one of image_loss$"):
        check_metric(args, ["image_loss"])


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing:FutureWarning")  # HF's deprecated names
@pytest.mark.parametrize("kind", [UnifiedTrainingArguments, DpoArguments])
def test_gradient_checkpointing_by_its_older_name_counts(kind: type, tmp_path: Path) -> None:
    base, options = {"output_dir": str(tmp_path), "use_cpu": True}, {"use_reentrant": False}
    args = kind(**base, gradient_checkpointing=True, gradient_checkpointing_kwargs=options)
    assert args.activation_checkpointing is True and args.activation_checkpointing_kwargs == options
    assert kind(**base).activation_checkpointing is False
    for flags, on in (([], False), (["--activation_checkpointing"], True), (["--gradient_checkpointing"], True)):
        (args,) = parse((kind,), [*flags, "--use_cpu", "True", "--output_dir", str(tmp_path)])
        assert args.activation_checkpointing is on


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--eval_files", "held.parquet"], "eval_files held.parquet would have no effect"),
        (["--sample_prompts", "a cat"], "sample_prompts ['a cat'] would have no effect"),
    ],
)
def test_a_recipe_says_so_before_it_reads_anything(
    given: list[str],
    said: str,
    run_script: Callable[..., int],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    for recipe, config in (("sft", "tiny"), ("dpo", "tiny_dpo")):
        command = ["--config", ROOT / f"recipes/configs/{config}.yaml", "--output_dir", tmp_path / recipe]
        command += ["--eval_strategy", "no", "--model", "nowhere"]
        assert run_script(f"recipes/{recipe}.py", *command, *given) == 2
        line = capfd.readouterr().err.splitlines()[-1]
        assert said.strip("'") in line.replace("['held.parquet']", "held.parquet"), line


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--gan_weight", 0.5], "gan_weight 0.5 would have no effect: gan_start_step 10000 is not below max_steps 6"),
        (["--scale_dropout", 0.5, "--patch_nums", 2], "scale_dropout 0.5 would have no effect: patch_nums has one"),
    ],
)
def test_a_loss_that_no_step_would_have_is_refused(
    given: list[Any], said: str, run_script: Callable[..., int], capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    command = ["--config", ROOT / "recipes/configs/tiny_vq.yaml", "--max_steps", 6, "--output_dir", tmp_path]
    assert run_script("recipes/train_vq.py", *command, *given) == 2
    assert said in capfd.readouterr().err.splitlines()[-1]


def test_a_shortened_run_has_the_discriminator_for_the_same_share() -> None:
    run = object.__new__(vars(load_script("recipes/train_vq.py"))["TokenizerRun"])
    run.loss_args, run.plan = TokenizerLossArguments(gan_weight=0.5, gan_start_step=10), StepPlan(20, 20)
    assert [step for step in range(20) if run.is_adversarial(step)] == [*range(10, 20)]
    run.plan.replan(2, 8)
    assert [step for step in range(8) if run.is_adversarial(step)] == [5, 6, 7]
    run.loss_args = TokenizerLossArguments()
    assert not run.is_adversarial(7)


def test_a_flag_switches_off_what_the_file_says_beside_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, kinds = tmp_path / "run.yaml", (DataArguments, UnifiedTrainingArguments)
    path.write_text(
        "eval_files: [held.parquet]\neval_strategy: steps\neval_steps: 7\nsample_prompts: [a cat]\n"
        "sample_temperature: 0.7\nwarmup_steps: 5\nlr_scheduler_type: cosine\n"
    )
    config = ["--config", str(path), "--use_cpu", "True", "--output_dir", str(tmp_path)]
    data, args = parse(kinds, [*config, "--eval-strategy=no", "--lr_scheduler_type", "constant"])
    assert data.eval_files == args.sample_prompts == [] and args.eval_steps is None and args.warmup_steps == 0
    said = capsys.readouterr().err
    assert f"of {path} are left out, as flags switch them off: eval_steps, sample_prompts, eval_files, " in said
    assert "warmup_steps" in said and said.rstrip().endswith("sample_temperature") and said.count("\n") == 1
    with pytest.raises(ValueError, match="sample_prompts .* would have no effect"):  # both are asked for now
        parse(kinds, [*config, "--eval_strategy", "no", "--sample_prompts", "a dog"])
    path.write_text("tuning: lora\nlora_rank: 8\nlora_target_modules: [q_proj]\n")
    (args,) = parse((UnifiedTrainingArguments,), [*config, "--tuning", "full"])
    assert args.lora_rank is None and args.lora_target_modules is None
    assert "switch them off: lora_rank, lora_target_modules" in capsys.readouterr().err
    path.write_text("eval_steps: 7\neval_strategy: 'no'\n")
    with pytest.raises(ValueError, match="eval_steps 7.* would have no effect"):  # no flag has said so
        parse(kinds, config)
    with pytest.raises(ValueError, match="eval_steps 7.* would have no effect"):
        parse(kinds, [*config, "--learning_rate", "1"])


@pytest.mark.parametrize(
    ("text", "loss_type", "report_to"),
    [
        ("loss_type: sigmoid\nreport_to: tensorboard", ["sigmoid"], ["tensorboard"]),
        ("loss_type: [sigmoid, sft]\nreport_to: [tensorboard]", ["sigmoid", "sft"], ["tensorboard"]),
        ("report_to: none", ["sigmoid"], []),
        ("report_to:\n- none", ["sigmoid"], []),
    ],
)
def test_what_trl_takes_as_one_or_several_is_read_as_both(
    text: str, loss_type: list[str], report_to: list[str], tmp_path: Path
) -> None:
    (tmp_path / "run.yaml").write_text(text)
    (args,) = parse((DpoArguments,), ["--config", str(tmp_path / "run.yaml"), "--use_cpu", "True"])
    assert (args.loss_type, args.report_to) == (loss_type, report_to)
