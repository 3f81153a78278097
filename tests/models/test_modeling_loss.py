"""The model's loss against PyTorch's on the logits, and that layout, packing and dropping leave it alone."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tolerances import error_of
from torch import Tensor
from toy_models import BACKBONES, input_image, output_image, random_codes, toy_model

from unified import UnifiedForCausalLM
from unified.image_tokenizer.scales import scale_spans
from unified.models.modeling import UnifiedOutput

SAME = error_of(3000)  # a toy's passes, forward and backward over its batch


def example(model: UnifiedForCausalLM, number: int) -> tuple[list[int], list[int]]:
    """Ids and labels of one example: a prompt of its own length, an answer with an image, or one without."""
    codes = random_codes(model, 1, seed=number)[0]
    prompt = list(range(5, 6 + number % 4))
    answer = (
        [20 + number, *output_image(codes), 40 + number] if number % 3 else [20 + number, 30 + number, 40 + number]
    )
    return prompt + answer, [-100] * len(prompt) + answer


def batch_of(model: UnifiedForCausalLM, numbers: range) -> dict[str, Tensor]:
    """Examples padded on the right."""
    rows = [example(model, number) for number in numbers]
    width = max(len(ids) for ids, _ in rows)
    return {
        "input_ids": torch.tensor([ids + [0] * (width - len(ids)) for ids, _ in rows]),
        "labels": torch.tensor([labels + [-100] * (width - len(labels)) for _, labels in rows]),
        "attention_mask": torch.tensor([[1] * len(ids) + [0] * (width - len(ids)) for ids, _ in rows]),
    }


def packed(model: UnifiedForCausalLM, numbers: range) -> dict[str, Tensor]:
    """The same examples in one row."""
    rows = [example(model, number) for number in numbers]
    return {
        "input_ids": torch.tensor([sum((ids for ids, _ in rows), [])]),
        "labels": torch.tensor([sum((labels for _, labels in rows), [])]),
        "document_ids": torch.tensor([[i for i, (ids, _) in enumerate(rows) for _ in ids]]),
    }


def gradients(model: UnifiedForCausalLM, *batches: dict[str, Tensor]) -> list[Tensor]:
    """Summed loss of the batches, then every parameter's gradient of it."""
    model.zero_grad()
    loss = torch.stack([model(**batch).loss for batch in batches]).sum()
    loss.backward()
    trained = [p for p in model.parameters() if p.requires_grad]
    return [loss.detach(), *(torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in trained)]


def assert_same(found: list[Tensor], expected: list[Tensor]) -> None:
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, atol=SAME, rtol=10 * SAME)


def weights_by_hand(model: UnifiedForCausalLM, labels: Tensor, text: float, scales: list[float]) -> Tensor:
    """Loss weight of every label, image by image."""
    weights = torch.where(labels == -100, 0.0, text)
    spans = scale_spans(model.config.patch_nums)
    for row in range(len(labels)):
        positions = (labels[row] >= model.config.image_token_offset).nonzero().flatten()
        for image in positions.view(-1, model.config.image_length):
            for (start, stop), weight in zip(spans, scales, strict=True):
                weights[row, image[start:stop]] = weight
    return weights


@pytest.mark.parametrize("backbone", BACKBONES)
def test_the_loss_is_cross_entropy_on_the_logits(backbone: str) -> None:
    model = toy_model(backbone)
    batch = batch_of(model, range(4))
    with torch.no_grad():
        output = model(**batch)
        logits = model(batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    assert output.logits is None
    expected = F.cross_entropy(logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten())
    torch.testing.assert_close(output.loss, expected)
    torch.testing.assert_close(output.group_losses.sum() / output.group_counts.sum(), expected)


def test_weights_count_as_the_formula_says() -> None:
    text, scales = 0.5, [4.0, 0.0, 1.5]
    model = toy_model(text_loss_weight=text, scale_loss_weights=scales)
    batch = batch_of(model, range(4))
    weights = weights_by_hand(model, batch["labels"], text, scales)[:, 1:]
    with torch.no_grad():
        output = model(**batch)
        logits = model(batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        losses = F.cross_entropy(logits[:, :-1].transpose(1, 2), batch["labels"][:, 1:], reduction="none")
    torch.testing.assert_close(output.loss, (losses * weights).sum() / weights.sum())
    torch.testing.assert_close(model.loss_divisor(batch["labels"]), weights.sum())
    images = 2
    assert output.group_counts.tolist() == [3 + 3 + 4 + 4, images, 4 * images, 16 * images]
    by_group = [(losses * (weights == w)).sum() for w in (text, *scales)]
    torch.testing.assert_close(output.group_losses[[0, 1, 3]], torch.stack(by_group)[[0, 1, 3]])
    model.config.scale_loss_weights = None
    assert not torch.isclose(model(**batch).loss, output.loss)


def test_a_weight_of_zero_gives_no_gradient() -> None:
    model = toy_model(text_loss_weight=0.0, scale_loss_weights=[0.0, 0.0, 0.0])
    batch = batch_of(model, range(1, 3))
    assert not any(g.any() for g in gradients(model, batch | {"num_items_in_batch": 5}))


@pytest.mark.parametrize("given", [{}, {"num_items_in_batch": torch.tensor(0.0)}, {"num_items_in_batch": 0}])
def test_a_batch_without_any_weight_has_a_loss_and_gradients_of_zero(given: dict[str, Any]) -> None:
    """An all-text batch under text_loss_weight 0: 0 / 0 would turn every weight into NaN."""
    model = toy_model(text_loss_weight=0.0)
    ids = torch.tensor([[5, 6, 7, 8]])
    batch = {"input_ids": ids, "labels": ids, **given}
    assert model(**batch).loss == 0
    assert all(torch.equal(g, torch.zeros_like(g)) for g in gradients(model, batch))


def test_one_batch_of_eight_is_eight_batches_of_one() -> None:
    model = toy_model(scale_loss_weights=[2.0, 1.0, 0.5])
    whole = batch_of(model, range(8))
    divisor = model.loss_divisor(whole["labels"])
    singles = [batch_of(model, range(i, i + 1)) | {"num_items_in_batch": divisor} for i in range(8)]
    assert_same(gradients(model, *singles), gradients(model, whole))


@pytest.mark.parametrize("image_order", ["scales", "raster"])
@pytest.mark.parametrize("backbone", ["llama", "gemma2"])
def test_packed_is_unpacked(backbone: str, image_order: str) -> None:
    model = toy_model(backbone, image_order=image_order)
    assert_same(gradients(model, packed(model, range(5))), gradients(model, batch_of(model, range(5))))


@pytest.mark.parametrize("backbone", ["llama", "gemma2"])
def test_keeping_every_position_is_keeping_none_back(backbone: str) -> None:
    model = toy_model(backbone)
    batch = packed(model, range(5))
    everything = torch.arange(batch["input_ids"].shape[1])[None]
    padded = F.pad(everything, (0, 3), value=-1)
    expected = gradients(model, batch)
    assert_same(gradients(model, batch | {"keep_positions": everything}), expected)
    assert_same(gradients(model, batch | {"keep_positions": padded}), expected)


def test_dropped_positions_are_neither_trained_nor_seen() -> None:
    """Earlier scales do not change, and kept positions do not attend to the codes that were dropped."""
    model = toy_model()
    ids, labels = example(model, 1)
    batch = {"input_ids": torch.tensor([ids]), "labels": torch.tensor([labels])}
    last_scale = range(len(ids) - 2 - 16, len(ids) - 2)
    dropped = [last_scale[2], last_scale[3], last_scale[9]]
    keep = {"keep_positions": torch.tensor([[i for i in range(len(ids)) if i not in dropped]])}
    whole, sparse = losses(model, batch), losses(model, batch | keep)
    assert sparse.group_counts.tolist() == [4, 1, 4, 13]
    torch.testing.assert_close(sparse.group_losses[1:3], whole.group_losses[1:3])
    assert model.loss_divisor(batch["labels"], **keep) == 4 + 1 + 4 + 13
    assert not torch.isclose(sparse.group_losses[3] / 13, whole.group_losses[3] / 16)
    other = {name: tensor.clone() for name, tensor in batch.items()}
    for tensor in other.values():
        tensor[0, dropped] = 64 + (tensor[0, dropped] - 63) % 32
    torch.testing.assert_close(losses(model, other | keep).loss, sparse.loss)


@torch.no_grad()
def losses(model: UnifiedForCausalLM, batch: dict[str, Tensor]) -> UnifiedOutput:
    return model(**batch)


@pytest.mark.parametrize("image_order", ["scales", "raster"])
def test_every_part_gets_a_gradient_whatever_the_batch_holds(image_order: str) -> None:
    """Under DDP and ZeRO-3 a parameter without a gradient on one rank stops the others."""
    model = toy_model(image_order=image_order).train()
    assert not model.model.vq_model.training and not any(p.requires_grad for p in model.model.vq_model.parameters())
    model(**batch_of(model, range(0, 1))).loss.backward()  # text alone
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)


def test_what_an_image_is_made_of_learns() -> None:
    model = toy_model(tied=False).train()
    row, labels = example(model, 1)
    ids, codes = torch.tensor([[5, *input_image(model), *row]]), random_codes(model, 1, seed=9)
    model(ids, labels=torch.tensor([[-100] * 19 + labels]), image_codes=codes).loss.backward()
    assert all(p.grad.any() for p in model.model.image_embedding.parameters())
    assert model.lm_head.weight.grad[64:].any() and not model.get_input_embeddings().weight.grad[64:].any()


def test_gradient_checkpointing_changes_nothing() -> None:
    model = toy_model("qwen3").train()
    batch = packed(model, range(4))
    expected = gradients(model, batch)
    assert not model.is_gradient_checkpointing
    model.activation_checkpointing_enable()
    assert model.is_gradient_checkpointing and model.model.language_model.layers[0].gradient_checkpointing
    assert_same(gradients(model, batch), expected)


def test_the_stride_is_for_training_only() -> None:
    model = toy_model(modality_stride=4)
    batch, exact = batch_of(model, range(8)), toy_model()
    torch.testing.assert_close(model(**batch).loss, exact(**batch).loss)
    strided = model.train()(**batch).loss
    assert not torch.isclose(strided, exact(**batch).loss)
    torch.testing.assert_close(strided, exact(**batch).loss, rtol=0.2, atol=0)
