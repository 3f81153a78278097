"""How pictures become square goes from the encoded rows into the model that is trained on them, and into its use."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from unified import UnifiedProcessor
from unified.checkpoints.loading import load, load_processor, weights_digest
from unified.checkpoints.publishing import publish
from unified.data.rows import read_encoded_rows
from unified.data.shard_metadata import adopt_fit, shared_fit
from unified.inference.chat import Chat
from unified.models.image_processing import UnifiedImageProcessor

CONFIG = Path(__file__).parents[2] / "recipes/configs/tiny.yaml"
Encode = Callable[..., Path]


def noise(size: tuple[int, int]) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels)


WIDE = noise((48, 16))


@pytest.fixture
def encode(toy_checkpoint: Path, tmp_path: Path, run_script: Callable[..., int]) -> Encode:
    """`encode("pad", image)`: the shard of a row that shows the image, encoded with --fit pad."""

    def run(fit: str, image: Image.Image = WIDE) -> Path:
        out = tmp_path / f"{fit}{image.width}"
        image.save(tmp_path / f"{image.width}.png")
        question = [{"type": "image"}, {"type": "text", "text": "How many?"}]
        chat = [{"role": "user", "content": question}, {"role": "assistant", "content": "2 cats"}]
        row = {"messages": chat, "images": [f"{image.width}.png"]}
        (tmp_path / f"{image.width}.jsonl").write_text(2 * (json.dumps(row) + "\n"), encoding="utf-8")
        arguments = ["--vq", toy_checkpoint.parent / "vq", "--inputs", tmp_path / f"{image.width}.jsonl"]
        assert run_script("data_prep/encode_images.py", *arguments, "--out", out, "--fit", fit) == 0
        return out / "00000.parquet"

    return run


@pytest.mark.parametrize("tuning", ["full", "lora"])
def test_a_model_opens_pictures_as_those_it_was_trained_on(
    tuning: str, encode: Encode, toy_checkpoint: Path, tmp_path: Path, run_script, monkeypatch, capsys
) -> None:
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    padded, cropped = encode("pad"), encode("crop")
    codes = read_encoded_rows(padded)[0]["codes"][0]
    assert codes != read_encoded_rows(cropped)[0]["codes"][0]
    sft = ["recipes/sft.py", "--config", CONFIG, "--model", toy_checkpoint, "--max_steps", 1, "--tuning", tuning]
    assert run_script(*sft, "--output_dir", tmp_path / "mixed", "--train_files", padded, cropped) == 2
    assert "was encoded with --fit crop" in capsys.readouterr().err.splitlines()[-1]
    measured = ["--train_files", padded, "--eval_files", cropped, "--eval_strategy", "epoch"]
    assert run_script(*sft, "--output_dir", tmp_path / "mixed", *measured) == 2
    assert "was encoded with --fit crop" in capsys.readouterr().err.splitlines()[-1]
    assert run_script(*sft, "--output_dir", tmp_path / "out", "--train_files", padded, "--learning_rate", 0.1) == 0
    assert "padded with white in use, too" in capsys.readouterr().err
    publish(
        tmp_path / "out", tmp_path / "published", torch.float32, base=str(toy_checkpoint) if tuning == "lora" else None
    )
    for folder in (tmp_path / "out", tmp_path / "published"):
        model, processor = load(folder, device="cpu")
        chat = Chat(model, processor)
        chat.show(WIDE)
        assert chat.pending_images[0].tolist() == codes
        with torch.no_grad():
            assert model.model.vq_model.encode(processor(images=WIDE)["pixel_values"])[0].tolist() == codes
    assert UnifiedImageProcessor.from_pretrained(tmp_path / "published").fit == "pad"


def test_squares_say_nothing_and_older_folders_crop(encode: Encode, toy_checkpoint: Path, tmp_path: Path) -> None:
    square, padded = encode("pad", noise((20, 20))), encode("pad")
    assert shared_fit([square]) is None and shared_fit([square, padded, tmp_path / "text.jsonl"]) == "pad"
    processor = UnifiedProcessor.from_pretrained(toy_checkpoint)
    with pytest.raises(ValueError, match="eval_files were encoded with --fit pad, and the model .* with crop; encode"):
        adopt_fit(processor, [square], [padded])
    adopt_fit(processor, [padded], [square, padded])
    adopt_fit(processor, [square])  # goes on as it was
    processor.save_pretrained(tmp_path / "new")
    assert UnifiedProcessor.from_pretrained(tmp_path / "new").fit == "pad"
    for name in ("processor_config.json", "preprocessor_config.json"):
        stored = json.loads((tmp_path / "new" / name).read_text())
        assert stored.pop("fit") == "pad"
        (tmp_path / "new" / name).write_text(json.dumps(stored))
    assert load_processor(tmp_path / "new", tmp_path / "new").fit == "crop"
    assert UnifiedImageProcessor.from_pretrained(tmp_path / "new").fit == "crop"
    with pytest.raises(ValueError, match="fit 'refuse' of a processor; choose from crop, pad"):
        processor.set_fit("refuse")


def test_another_fit_is_another_model_for_evaluations(toy_checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "copy").mkdir()
    for path in toy_checkpoint.iterdir():
        (tmp_path / "copy" / path.name).write_bytes(path.read_bytes())
    assert weights_digest(tmp_path / "copy") == weights_digest(toy_checkpoint)
    processor = UnifiedProcessor.from_pretrained(toy_checkpoint)
    processor.set_fit("pad")
    processor.save_pretrained(tmp_path / "copy")
    assert weights_digest(tmp_path / "copy") != weights_digest(toy_checkpoint)
