"""Images for the tokenizer's training: read, cropped, cached, split and ordered."""

import pytest
import torch
from PIL import Image

from unified.image_tokenizer.image_dataset import PixelDataset, StepSampler, held_out_split, open_images, stack


@pytest.mark.parametrize("cache_gb", [0.0, 1.0])
def test_images_are_cropped_in_the_middle_cached_or_not(tmp_path, cache_gb):
    wide = Image.new("RGB", (32, 16), "red")
    wide.paste("blue", (8, 0, 24, 16))
    wide.save(tmp_path / "b.png")
    Image.new("L", (8, 8), 7).save(tmp_path / "a.png")
    dataset = PixelDataset(open_images(str(tmp_path)), image_size=8, cache_gb=cache_gb)
    batch = stack(dataset.__getitems__([1, 0]))
    assert batch.shape == (2, 8, 8, 3) and batch.dtype == torch.uint8
    assert batch[0, 4, 4].tolist() == [0, 0, 255] and batch[1].eq(7).all()
    assert torch.equal(dataset[1], batch[0])


def test_folders_without_images_are_refused(tmp_path):
    with pytest.raises(ValueError, match="holds no images"):
        open_images(str(tmp_path))
    with pytest.raises(ValueError, match="is not a folder"):
        open_images(str(tmp_path / "none"))


@pytest.mark.parametrize("cache_gb", [0.0, 1.0])
def test_a_broken_image_is_named(tmp_path, cache_gb):
    for name in "ab":
        Image.effect_noise((16, 16), 60).save(tmp_path / f"{name}.png")
    broken = tmp_path / "b.png"
    broken.write_bytes(broken.read_bytes().replace(b"IDAT", b"\xff\xfe\x00\x01"))
    with pytest.raises(ValueError, match=f"^{broken} cannot be read .*; give a complete PNG"):
        PixelDataset(open_images(str(tmp_path)), image_size=8, cache_gb=cache_gb)[1]


def test_every_epoch_sees_every_image_once_and_resuming_changes_nothing():
    rows = torch.arange(100, 112)
    batches = list(StepSampler(rows, 3, range(0, 8), seed=1))
    first, second = sum(batches[:4], []), sum(batches[4:], [])
    assert sorted(first) == sorted(second) == rows.tolist() and first != second
    assert list(StepSampler(rows, 3, range(5, 8), seed=1)) == batches[5:]


def test_processes_split_the_global_batch():
    rows = torch.arange(12)
    all_batches = list(StepSampler(rows, 4, range(3), seed=0))
    halves = [list(StepSampler(rows, 2, range(3), seed=0, rank=rank, world_size=2)) for rank in range(2)]
    assert [a + b for a, b in zip(*halves, strict=True)] == all_batches


def test_held_out_images_are_apart_and_too_many_are_refused():
    train, held_out = held_out_split(10, 3, seed=0)
    assert sorted([*train.tolist(), *held_out.tolist()]) == list(range(10)) and len(held_out) == 3
    with pytest.raises(ValueError, match="hold out at least 1"):
        held_out_split(4, 4, seed=0)
