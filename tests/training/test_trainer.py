"""The trainer on a toy: what it logs, what it divides by, what each kind of tuning moves, and what it saves."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image
from tolerances import assert_sums_agree, near, terms_of
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter

from unified import UnifiedForCausalLM, UnifiedProcessor
from unified.checkpoints.loading import load
from unified.data.chat_dataset import ChatDataset, SFTCollator, load_encoded_rows
from unified.training.arguments import UnifiedTrainingArguments
from unified.training.compiled_layers import compile_layers
from unified.training.finite import FiniteTrainer
from unified.training.trainer import TrimMemoryCallback, UnifiedTrainer, check_launch
from unified.training.tuning import prepare

MIXED = "dadtadtd"
WEIGHTS = {"text_loss_weight": 0.3, "scale_loss_weights": [0.5, 2.0]}


@pytest.fixture
def make_trainer(
    toy_checkpoint: Path, toy_rows: Callable[[str], Path], tmp_path: Path
) -> Callable[..., UnifiedTrainer]:
    """`make_trainer(kinds, weights, **TrainingArguments)`: a trainer of the toy on rows `kinds`, in their order."""

    def make(kinds: str = MIXED, weights: dict[str, Any] | None = None, **settings: Any) -> UnifiedTrainer:
        model = UnifiedForCausalLM.from_pretrained(toy_checkpoint)
        for name, value in (weights or {}).items():
            setattr(model.config, name, value)
        processor = UnifiedProcessor.from_pretrained(toy_checkpoint)
        data = ChatDataset(load_encoded_rows([str(toy_rows(kinds))], model.config), processor)
        defaults = {
            "output_dir": str(tmp_path / "out"),
            "per_device_train_batch_size": len(kinds),
            "max_steps": 3,
            **({} if settings.get("tuning") == "align" else {"learning_rate": 1e-3}),
            "lr_scheduler_type": "constant",
            "logging_steps": 1,
            "save_strategy": "no",
            "report_to": "none",
            "use_cpu": True,
            "disable_tqdm": True,
            "train_sampling_strategy": "sequential",
        }
        args = UnifiedTrainingArguments(**(defaults | settings))
        return UnifiedTrainer(
            model=prepare(model, args),
            args=args,
            train_dataset=data,
            eval_dataset=data,
            data_collator=SFTCollator(processor, pack_length=200),
            processing_class=processor,
        )

    return make


def logged(trainer: UnifiedTrainer) -> list[dict[str, float]]:
    return [entry for entry in trainer.state.log_history if "loss" in entry]


def snapshot(model: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def moved(before: dict[str, Tensor], model: nn.Module) -> set[str]:
    return {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}


@torch.no_grad()
def token_losses(trainer: UnifiedTrainer) -> Iterator[tuple[int, float]]:
    """Group (0 text, 1.. scales) and cross-entropy of every trained token, from the logits of rows run one by one."""
    model, image_start = trainer.core.eval(), trainer.core.config.boi_token_id
    for index in range(len(trainer.train_dataset)):
        item = trainer.train_dataset[index]
        ids, codes = (
            torch.tensor([item["input_ids"]]),
            torch.tensor(item["input_image_codes"]) if item["input_image_codes"] else None,
        )
        log_probs = model(ids, image_codes=codes).logits[0].log_softmax(dim=-1)
        index = 0
        for position, label in enumerate(item["labels"]):
            index = 0 if item["input_ids"][position] == image_start else index + 1
            if label >= 0:
                is_code = label >= model.config.image_token_offset
                group = (1 if index == 1 else 2) if is_code else 0
                yield group, -log_probs[position - 1, label].item()


def group_means(losses: list[tuple[int, float]]) -> dict[str, float]:
    names = {"text_loss": (0,), "image_loss": (1, 2), "scale_1_loss": (1,), "scale_2_loss": (2,)}
    members = {name: [loss for group, loss in losses if group in groups] for name, groups in names.items()}
    return {name: sum(values) / len(values) for name, values in members.items()}


def test_every_groups_loss_is_logged(make_trainer: Callable[..., UnifiedTrainer]) -> None:
    trainer = make_trainer(weights=WEIGHTS, max_steps=1)
    losses = list(token_losses(trainer))
    expected = group_means(losses)
    evaluated = trainer.evaluate()
    trainer.train()
    first = logged(trainer)[0]
    for name, value in expected.items():
        for found in (first[name], evaluated[f"eval_{name}"]):  # logged with five digits
            assert found == near(value, terms_of(trainer.core), size=1.0), name
    weights = [0.3, 0.5, 2.0]
    total = sum(weights[group] * loss for group, loss in losses) / sum(weights[group] for group, _ in losses)
    assert first["loss"] == near(total, terms_of(trainer.core))
    assert first["images_seen"] == MIXED.count("d")


def test_accumulated_batches_are_one_batch(make_trainer: Callable[..., UnifiedTrainer]) -> None:
    one = make_trainer(weights=WEIGHTS)
    eight = make_trainer(weights=WEIGHTS, per_device_train_batch_size=1, gradient_accumulation_steps=8)
    plain = make_trainer()
    for trainer in (one, eight, plain):
        trainer.train()
    for name in ("loss", "grad_norm", "text_loss", "image_loss"):
        values = [[entry[name] for entry in logged(trainer)] for trainer in (one, eight)]
        assert values[0] == pytest.approx(values[1], rel=1e-4), name
    assert abs(logged(one)[0]["loss"] - logged(plain)[0]["loss"]) > 1e-3  # the weights do weigh
    expected = dict(eight.core.named_parameters())
    for name, value in one.core.named_parameters():
        torch.testing.assert_close(value, expected[name], rtol=1e-3, atol=2e-5, msg=name)


@pytest.mark.parametrize("train_text_rows", [False, True])
def test_text_rows_stay_bit_for_bit_unless_asked(
    make_trainer: Callable[..., UnifiedTrainer], train_text_rows: bool
) -> None:
    trainer = make_trainer(train_text_rows=train_text_rows, weight_decay=0.1)
    vocabulary = trainer.core.config.vocabulary
    before = trainer.core.lm_head.weight.detach().clone()
    trainer.train()
    changed = (trainer.core.lm_head.weight != before).any(dim=1)
    new = [vocabulary.boi_token_id, vocabulary.eoi_token_id, *vocabulary.image_ids]
    assert changed[new].all()
    old = torch.ones_like(changed)
    old[[*new, vocabulary.image_pad_token_id]] = False
    assert changed[old].all() if train_text_rows else not changed[old].any()


def test_full_tuning_moves_all_but_the_tokenizer(make_trainer: Callable[..., UnifiedTrainer]) -> None:
    trainer = make_trainer(tuning="full")
    before = snapshot(trainer.core)
    trainer.train()
    assert moved(before, trainer.core) == {name for name in before if not name.startswith("model.vq_model.")}


def test_align_trains_only_the_new_modules(make_trainer: Callable[..., UnifiedTrainer]) -> None:
    trainer = make_trainer(tuning="align")
    before, matrix = snapshot(trainer.core), trainer.core.lm_head.weight.detach().clone()
    text_rows = trainer.core.config.boi_token_id
    trainer.train()
    expected = {name for name in before if name.startswith("model.image_embedding.")}
    assert moved(before, trainer.core) == expected | {"model.new_rows.embed_tokens.values"}  # tied: of both matrices
    assert torch.equal(trainer.core.lm_head.weight[:text_rows], matrix[:text_rows])
    assert not torch.equal(trainer.core.lm_head.weight, matrix)


@pytest.mark.parametrize("tuning", ["full", "align"])
def test_a_run_of_whole_matrices_is_resumed(make_trainer: Callable[..., UnifiedTrainer], tuning: str) -> None:
    """As earlier versions trained them: text rows with a gradient of 0."""
    settings = {"save_strategy": "steps", "save_steps": 2, "max_steps": 4, "tuning": tuning}
    expected = make_trainer(**{name: settings[name] for name in ("max_steps", "tuning")})
    expected.train()
    old = make_trainer(**settings | {"tuning": "full", "train_text_rows": True})
    if tuning == "align":
        old.core.requires_grad_(False)
        for module in (old.core.model.image_embedding, old.core.lm_head):
            module.requires_grad_(True)
    text = torch.ones(old.core.config.vocabulary.size, 1).index_fill(0, torch.tensor(new_ids(old)), 0) > 0
    old.core.lm_head.weight.register_hook(lambda gradient: gradient.masked_fill(text, 0))
    old.train()
    checkpoint = Path(old.args.output_dir) / "checkpoint-2"
    resumed = make_trainer(**settings)
    resumed.train(resume_from_checkpoint=str(checkpoint))
    assert [e["loss"] for e in logged(resumed)] == pytest.approx([e["loss"] for e in logged(expected)], rel=1e-5)
    for name, value in resumed.core.named_parameters():
        torch.testing.assert_close(value, dict(expected.core.named_parameters())[name], rtol=1e-3, atol=1e-5, msg=name)


def new_ids(trainer: UnifiedTrainer) -> list[int]:
    vocabulary = trainer.core.config.vocabulary
    return [*vocabulary.special_ids, *vocabulary.image_ids]


def test_lora_trains_only_adapters_and_new_rows(make_trainer: Callable[..., UnifiedTrainer]) -> None:
    trainer = make_trainer(tuning="lora", lora_rank=4, lora_target_modules=["q_proj", "down_proj"])
    before = snapshot(trainer.model)
    trainer.train()
    changed = moved(before, trainer.model)
    adapters = [f"{name}.lora_{half}.default" for name in ("q_proj", "down_proj") for half in "AB"]
    copies = "image_embedding.modules_to_save.default"
    rows = "embed_tokens.token_adapter.trainable_tokens_delta.default"
    assert all(any(part in name for part in (*adapters, copies, rows)) for name in changed), changed
    assert len([name for name in changed if "lora_" in name]) == 2 * 2 * 2  # layers, targets, halves
    assert len([name for name in changed if copies in name]) == len(
        list(trainer.core.model.image_embedding.modules_to_save["default"].parameters())
    )
    assert [name for name in changed if rows in name]


def test_a_saved_adapter_loads_into_the_trained_model(
    make_trainer: Callable[..., UnifiedTrainer], tmp_path: Path
) -> None:
    trainer = make_trainer(tuning="lora", lora_rank=4, learning_rate=1e-2)
    trainer.train()
    trainer.save_model()
    assert (tmp_path / "out" / "adapter_model.safetensors").is_file()
    assert not (tmp_path / "out" / "model.safetensors").exists()
    loaded, _ = load(tmp_path / "out", device="cpu")
    base, _ = load(trainer.core.name_or_path, device="cpu")
    trainer.model.eval()
    batch = trainer.data_collator([trainer.train_dataset[index] for index in range(4)])
    batch = {name: batch[name] for name in ("input_ids", "attention_mask", "document_ids", "image_codes")}
    with torch.no_grad():
        trained, found, untrained = (model(**batch).logits for model in (trainer.model, loaded, base))
    assert_sums_agree(found, trained, terms_of(loaded))
    assert (found - untrained).abs().max() > 0.1


def test_learning_rates_are_those_of_old_and_new_parts(make_trainer: Callable[..., UnifiedTrainer]) -> None:
    trainer = make_trainer(learning_rate=1e-4, new_parts_learning_rate=1e-2, weight_decay=0.1)
    groups = trainer.create_optimizer().param_groups
    assert [(group["lr"], group["weight_decay"]) for group in groups] == [(1e-4, 0.1), (1e-4, 0.0), (1e-2, 0.0)]
    names = {id(parameter): name for name, parameter in trainer.core.named_parameters()}
    spared = {names[id(parameter)] for parameter in groups[1]["params"]}
    assert spared == {name for name in names.values() if "norm" in name and "language_model" in name}
    assert len({id(p) for group in groups for p in group["params"]}) == len(names)
    new = {names[id(parameter)] for parameter in groups[2]["params"]}
    assert new == {name for name in names.values() if "image_embedding" in name or "embed_tokens" in name}


def test_sample_images_are_written_at_every_evaluation(
    make_trainer: Callable[..., UnifiedTrainer], tmp_path: Path
) -> None:
    prompts = ["two cats", "a red apple", "a blue dog"]
    trainer = make_trainer(max_steps=2, eval_strategy="steps", eval_steps=1, sample_prompts=prompts)
    trainer.train()
    sheets = sorted((tmp_path / "out" / "samples").glob("*.png"))
    assert [sheet.name for sheet in sheets] == ["000001.png", "000002.png"]
    with Image.open(sheets[0]) as sheet:
        width, height = sheet.size
    assert width > height > 160
    losses = [entry["loss"] for entry in logged(trainer)]
    assert losses[1] < losses[0]


def test_samples_leave_checkpointing_as_it_was(make_trainer: Callable[..., UnifiedTrainer]) -> None:
    trainer = make_trainer(
        max_steps=1,
        activation_checkpointing=True,
        activation_checkpointing_kwargs={"every_n_layers": 2, "use_reentrant": False},
        sample_prompts=["two cats"],
        eval_strategy="epoch",
    )
    trainer.train()
    layers = trainer.core.model.language_model.layers
    before = [layer.gradient_checkpointing for layer in layers]
    trainer.evaluate()
    assert len(set(before)) == 2 and [layer.gradient_checkpointing for layer in layers] == before


def test_what_hf_would_do_silently_is_refused(make_trainer: Callable[..., UnifiedTrainer]) -> None:
    with pytest.raises(ValueError, match="persistent_workers True keeps the workers' epoch 0"):
        make_trainer(dataloader_persistent_workers=True, dataloader_num_workers=1)
    args = make_trainer().args
    args._n_gpu = 2
    with pytest.raises(ValueError, match="sees 2 GPUs.* --num_processes 2` one process for each"):
        check_launch(args)


def test_each_epoch_draws_anew(make_trainer: Callable[..., UnifiedTrainer]) -> None:
    trainer = make_trainer(per_device_train_batch_size=4, max_steps=5)
    epochs = []
    collate = trainer.data_collator
    trainer.data_collator = lambda items: epochs.append({item["epoch"] for item in items}) or collate(items)
    trainer.train()
    assert epochs[:5] == [{0}, {0}, {1}, {1}, {2}]


def test_free_memory_goes_back_at_every_log_line(
    make_trainer: Callable[..., UnifiedTrainer], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []

    class FakeLibc:
        def malloc_trim(self, pad: int) -> None:
            calls.append(pad)

    trainer = make_trainer(max_steps=4, logging_steps=2)
    (callback,) = [c for c in trainer.callback_handler.callbacks if isinstance(c, TrimMemoryCallback)]
    monkeypatch.setattr(callback, "libc", FakeLibc())
    trainer.train()
    assert calls == [0, 0, 0]  # two lines of losses, one of totals
    monkeypatch.setattr(callback, "libc", None)  # another C library
    callback.on_log(trainer.args, trainer.state, trainer.control)


def test_compiled_layers_are_for_training_only(make_trainer: Callable[..., UnifiedTrainer]) -> None:
    trainer, compiled = make_trainer("dddd"), CompileCounter()
    torch._dynamo.reset()
    compile_layers(trainer.core, backend=compiled)
    trainer.evaluate()
    assert compiled.frame_count == 0
    trainer.train()
    assert compiled.frame_count > 0
    torch._dynamo.reset()


def test_wrong_codes_are_fed_in_training_and_not_in_evaluation(make_trainer: Callable[..., UnifiedTrainer]) -> None:
    losses = {}
    for noise in (0.0, 0.9):
        trainer = make_trainer("dddd", code_noise=noise, learning_rate=0.0, new_parts_learning_rate=0.0)
        trainer.train()
        losses[noise] = {
            "train": [entry["loss"] for entry in logged(trainer)],
            "eval": trainer.evaluate()["eval_loss"],
        }
    assert losses[0.0]["eval"] == losses[0.9]["eval"]
    assert len(set(losses[0.0]["train"])) == 1  # the same batch, and nothing moves
    assert len(set(losses[0.9]["train"])) == 3  # other wrong codes at every step


def test_the_speed_of_training_leaves_evaluations_out(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    monkeypatch.setattr(FiniteTrainer, "evaluate", lambda self: {"eval_loss": now.__setitem__(0, now[0] + 60)})
    trainer: Any = object.__new__(UnifiedTrainer)
    trainer.args, trainer.last_log = SimpleNamespace(sample_prompts=[]), 90.0
    trainer.evaluate()
    assert now[0] - trainer.last_log == 10  # of steps
