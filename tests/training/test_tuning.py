"""Trainable parameters that cannot be honoured are refused."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft.tuners.trainable_tokens import TrainableTokensLayer
from toy_models import output_image, random_codes, toy_model

from unified.models.trainable_token_rows import split_rows
from unified.training.arguments import UnifiedTrainingArguments
from unified.training.tuning import check_masters, check_start_share, prepare


def arguments(tmp_path: Path, **settings: object) -> UnifiedTrainingArguments:
    return UnifiedTrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to="none", **settings)


@pytest.mark.parametrize("tuning", ["full", "align"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_training_half_precision_weights_is_refused(tuning: str, dtype: torch.dtype, tmp_path: Path) -> None:
    model = prepare(toy_model().to(dtype), arguments(tmp_path, tuning=tuning))
    with pytest.raises(
        ValueError, match=f"trainable weights in {str(dtype)[6:]} lose .* set dtype to float32 with bf16"
    ):
        check_masters(model)
    check_masters(prepare(toy_model(), arguments(tmp_path, tuning=tuning)))


def test_a_lora_of_half_precision_weights_trains_in_float32(tmp_path: Path) -> None:
    check_masters(prepare(toy_model().bfloat16(), arguments(tmp_path, tuning="lora")))


NO_LAYERS = ["lm_head", "quest", "embed_tokens", "norm", "mlp", "0", "."]


@pytest.mark.parametrize("targets", [["lm_head"], ["embed_tokens"], *(["q_proj", name] for name in NO_LAYERS)])
def test_every_target_of_a_lora_is_matched(targets: list[str], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=rf"lora_target_modules \['{targets[-1]}'\] match nothing in the backbone"):
        prepare(toy_model(), arguments(tmp_path, tuning="lora", lora_target_modules=targets))


@pytest.mark.parametrize("tuning", ["lora", "full"])
@pytest.mark.parametrize("options", [None, {}, {"use_reentrant": False}, {"preserve_rng_state": False}])
def test_layers_below_the_first_trained_one_and_the_image_embedding_stay(
    tuning: str, options: dict[str, Any] | None, tmp_path: Path
) -> None:
    base = toy_model()
    count = base.config.text_config.num_hidden_layers - 1
    checkpointing = {"activation_checkpointing": options is not None, "activation_checkpointing_kwargs": options}
    args = arguments(tmp_path, tuning=tuning, first_trained_layer=count, **checkpointing)
    model = prepare(base, args)
    if args.activation_checkpointing:
        base.train().activation_checkpointing_enable(args.activation_checkpointing_kwargs or None)
    ids = torch.tensor([[5, 6, *output_image(random_codes(base, 1)[0]), 7]])
    model(input_ids=ids, labels=ids).loss.backward()
    moved = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    layers = {int(name.split(".layers.")[1].split(".")[0]) for name in moved if ".layers." in name}
    assert layers == {count} and not [name for name in moved if "image_embedding" in name]
    assert [name for name in moved if "new_rows" in name or "trainable_tokens" in name]
    learning = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert moved == learning  # or DDP would wait for the others


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing:FutureWarning")  # HF's deprecated names
@pytest.mark.parametrize("name", ["activation_checkpointing", "gradient_checkpointing"])
def test_checkpointing_that_cuts_off_the_first_trained_layer_is_refused(name: str, tmp_path: Path) -> None:
    given: dict[str, Any] = {name: True, f"{name}_kwargs": {"use_reentrant": True}}
    with pytest.raises(ValueError, match="first_trained_layer 1 with use_reentrant true in .* set it to false"):
        arguments(tmp_path, tuning="lora", first_trained_layer=1, **given)
    assert arguments(tmp_path, **given).activation_checkpointing_kwargs["use_reentrant"] is True


def test_a_first_trained_layer_behind_the_last_one_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="first_trained_layer 9, but the backbone has"):
        prepare(toy_model(), arguments(tmp_path, tuning="lora", first_trained_layer=9))
    with pytest.raises(ValueError, match="tuning align trains no layer"):
        prepare(toy_model(), arguments(tmp_path, tuning="align", first_trained_layer=1))


def test_a_share_of_what_is_no_adapter_is_refused(toy_checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="start_share 0.5 needs an adapter as model"):
        check_start_share(str(toy_checkpoint), arguments(tmp_path, tuning="lora", start_share=0.5))
    check_start_share(str(toy_checkpoint), arguments(tmp_path, tuning="lora"))


@pytest.mark.parametrize("tied", [True, False])
def test_token_rows_start_as_the_matrix_under_zero3_on_a_cpu(
    tied: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("deepspeed", reason="DeepSpeed is required on Linux alone")
    args, own = arguments(tmp_path, tuning="lora"), TrainableTokensLayer._collect_token_weights
    monkeypatch.setattr("peft.tuners.trainable_tokens.layer.check_deepspeed_zero3_enabled", lambda: True)
    model = toy_model(tied=tied)
    expected = model.get_output_embeddings().weight.detach().clone()
    prepare(model, args)
    _, rows = split_rows(model.get_output_embeddings())
    assert rows is not None and torch.equal(rows.values, expected[rows.ids])
    assert TrainableTokensLayer._collect_token_weights is own
