"""Images for the tokenizer's training: read, cropped, cached, split and ordered."""

import pyarrow as pa
import pyarrow.parquet as pq
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


@pytest.mark.parametrize("fit", ["crop", "refuse"])
def test_what_is_left_out_moves_no_other_image_between_training_and_evaluation(tmp_path, fit):
    for number in range(10):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(tmp_path / f"{number}.png")

    def parts():
        dataset = PixelDataset(open_images(str(tmp_path)), image_size=8, cache_gb=1, fit=fit, max_bad=9)
        return [[int(dataset[row][0, 0, 0]) for row in part.tolist()] for part in dataset.held_out_split(4, seed=0)]

    train, held_out = parts()
    assert [train, held_out] == [part.tolist() for part in held_out_split(10, 4, seed=0)]
    for number in (train[0], held_out[1]):
        if fit == "refuse":
            Image.new("RGB", (9, 8)).save(tmp_path / f"{number}.png")
        else:
            (tmp_path / f"{number}.png").write_bytes(b"damaged")
    assert parts() == [train[1:], [*held_out[:1], *held_out[2:]]]
    for number in held_out:
        (tmp_path / f"{number}.png").write_bytes(b"damaged")
    with pytest.raises(ValueError, match="not one image to hold out .eval_images 4. can be read; mend some"):
        parts()


def test_links_to_folders_are_followed_and_circles_end(tmp_path):
    (tmp_path / "store" / "deep").mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(tmp_path / "store" / "deep" / "b.png")
    photos = tmp_path / "photos"
    photos.mkdir()
    Image.new("RGB", (8, 8)).save(photos / "a.png")
    for name in ("cat", "dog"):
        (photos / name).symlink_to(tmp_path / "store")
    (photos / "self").symlink_to(photos)
    (tmp_path / "store" / "deep" / "up").symlink_to("..")
    images = open_images(str(photos))
    assert [images.name(row) for row in range(len(images))] == [
        str(photos / name) for name in ("a.png", "cat/deep/b.png", "dog/deep/b.png")
    ]


def test_every_format_is_read_and_the_rest_is_counted_on_the_screen(tmp_path, capsys):
    formats = {"a.gif": "GIF", "b.bmp": "BMP", "c.tif": "TIFF", "d.avif": "AVIF", "e.jfif": "JPEG", "F.JPG": "JPEG"}
    for name, form in formats.items():
        Image.new("RGB", (8, 8), "red").save(tmp_path / name, form)
    (tmp_path / "folder.png").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "folder.png" / "inner.png")
    for name in ("._a.gif", "a.txt", "metadata.jsonl", "other.txt", "film.mp4", "note"):  # two of them hold captions
        (tmp_path / name).write_bytes(b"x")
    assert len(open_images(str(tmp_path))) == 7
    said = capsys.readouterr().err
    assert "4 files are passed over (" in said
    assert all(part in said for part in ("1 .txt", "1 .mp4", "1 hidden", "1 no suffix"))


def test_shards_beside_files_hide_no_image(tmp_path, capsys):
    image = tmp_path / "0.png"
    Image.new("RGB", (8, 8), (1, 2, 3)).save(image)
    table = pa.table({"images": [[{"bytes": image.read_bytes(), "path": "x"}], [], None]})
    pq.write_table(table, tmp_path / "00000.parquet")
    captions = pa.table({"image": [{"bytes": image.read_bytes(), "path": None}, None], "text": ["a cat", "none"]})
    pq.write_table(captions, tmp_path / "captions.parquet")  # as `datasets` writes an Image feature
    pq.write_table(pa.table({"codes": [[[1]]]}), tmp_path / "other.parquet")
    images = open_images(str(tmp_path))
    assert len({images.read(index) for index in range(3)}) == 1 and len(images) == 3
    assert images.name(0) != images.name(1)
    assert "1 file is passed over (1 .parquet)" in capsys.readouterr().err
    assert PixelDataset(images, image_size=8, cache_gb=1)[1][0, 0].tolist() == [1, 2, 3]


def test_a_damaged_parquet_is_named(tmp_path):
    noise = torch.randint(0, 256, (4096,), dtype=torch.uint8).numpy().tobytes()
    for name in "ab":
        table = pa.table({"image": [{"bytes": noise, "path": None}] * 4})
        pq.write_table(table, tmp_path / f"{name}.parquet", compression="zstd")
    whole = (tmp_path / "b.parquet").read_bytes()
    for harm in (b"", whole[:9], whole[:4] + bytes(len(whole) - 1500) + whole[len(whole) - 1496 :]):
        (tmp_path / "b.parquet").write_bytes(harm)
        with pytest.raises(ValueError, match=r"^[^\n]*b\.parquet cannot be read as parquet [^\n]*; copy or write"):
            open_images(str(tmp_path))


@pytest.mark.parametrize("cache_gb", [0.0, 1.0])
def test_damage_is_named_and_counted_before_the_first_batch(tmp_path, cache_gb, capsys):
    for number in range(8):
        Image.effect_noise((64, 64), 60).convert("RGB").save(tmp_path / f"{number}.jpg", quality=95)
    whole = (tmp_path / "0.jpg").read_bytes()
    for number in range(1, 6):  # zeros where the end should be
        (tmp_path / f"{number}.jpg").write_bytes(whole[:-700] + bytes(700))
    source = open_images(str(tmp_path))
    with pytest.raises(ValueError, match=r"1\.jpg cannot .*3\.jpg .*and 2 more: 5 of 8 images, more than --max_bad 4"):
        PixelDataset(source, image_size=8, cache_gb=cache_gb, max_bad=4)
    dataset = PixelDataset(source, image_size=8, cache_gb=cache_gb, max_bad=5)
    assert "left out 5 of 8 images: " in capsys.readouterr().err
    assert [dataset.name(index)[-5:] for index in range(len(dataset))] == ["0.jpg", "6.jpg", "7.jpg"]
    assert dataset.__getitems__([0, 1, 2]).shape == (3, 8, 8, 3) and dataset.digest().startswith("3 images")


@pytest.mark.parametrize("cache_gb", [0.0, 1.0])
def test_what_the_square_leaves_out_is_counted_padded_or_refused(tmp_path, cache_gb, capsys):
    Image.new("RGB", (40, 30), "red").save(tmp_path / "a.png")
    Image.new("RGB", (30, 30), "red").save(tmp_path / "b.png")
    source = open_images(str(tmp_path))
    PixelDataset(source, image_size=8, cache_gb=cache_gb)
    assert (
        f"1 of 2 images are not square and lose 25% of their pixels, {tmp_path / 'a.png'} 25%"
        in capsys.readouterr().err
    )
    padded = PixelDataset(source, image_size=8, cache_gb=cache_gb, fit="pad")[0]
    assert padded[0, 0].tolist() == [255, 255, 255] and padded[4, 0].tolist() == [255, 0, 0]
    with pytest.raises(ValueError, match="a.png is 40 x 30, not square; .*: 1 of 2 images, more than --max_bad 0"):
        PixelDataset(source, image_size=8, cache_gb=cache_gb, fit="refuse")
