"""DDP on two CPU processes, through recipes/sft.py."""

from collections.abc import Callable
from pathlib import Path

from two_ranks import DDP, assert_tokenizer_unchanged, train


def test_full_tuning_with_activation_checkpointing(
    toy_checkpoint: Path, toy_rows: Callable[[str], Path], tmp_path: Path
) -> None:
    arguments = ["--model", toy_checkpoint, "--train_files", toy_rows("dattttdatttt"), "--max_steps", 4]
    arguments += [
        "--activation_checkpointing",
        "True",
        "--weight_decay",
        0.5,
        "--save_strategy",
        "no",
        "--use_cpu",
        "True",
    ]
    assert_tokenizer_unchanged(train(DDP, tmp_path / "two", *arguments), toy_checkpoint)
