"""diversity.py by hand-made codes and pictures; eval/diversity.py on folders of equal and of different pictures."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from unified import VQModel
from unified.evaluation.diversity import image_statistics, pair_differences

SCRIPT = "eval/diversity.py"
ASKED = {"tag": "single_object", "include": [{"class": "cat", "count": 1}], "prompt": "a photo of a cat"}


def test_every_two_pictures_are_compared_once() -> None:
    codes = torch.tensor([[1, 2, 3], [1, 2, 4], [5, 2, 3]])
    expected = [[False, False, True], [True, False, False], [True, False, True]]
    assert pair_differences(codes).tolist() == expected
    assert pair_differences(codes[:1]).shape == (0, 3)


def test_statistics_tell_looks_apart() -> None:
    grey, white = torch.zeros(3, 8, 8), torch.ones(3, 8, 8)
    half = white.clone()
    half[:, :, :4] = -1
    red = torch.stack([torch.ones(8, 8), -torch.ones(8, 8), -torch.ones(8, 8)])
    found = image_statistics(torch.stack([grey, white, half, red]))
    torch.testing.assert_close(found["brightness"], torch.tensor([0.5, 1.0, 0.5, 0.299]))
    torch.testing.assert_close(found["contrast"], torch.tensor([0.0, 0.0, 0.5, 0.0]))
    torch.testing.assert_close(found["sharpness"], torch.tensor([0.0, 0.0, 1 / 7 / 2, 0.0]))
    assert found["colourfulness"][:3].abs().max() == 0 and found["colourfulness"][3] > 0.3


@pytest.fixture
def measure(
    tiny_vq: VQModel, tmp_path: Path, run_script: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> Callable:
    """What the script prints about two prompts with these pictures each, or the line it fails with."""
    torch.nn.init.normal_(tiny_vq.quantizer.embedding.weight)
    tiny_vq.save_pretrained(tmp_path / "vq")

    def run(pictures: list[np.ndarray]) -> dict | str:
        for number in range(2):
            folder = tmp_path / "drawn" / f"{number:05d}"
            (folder / "samples").mkdir(parents=True)
            (folder / "metadata.jsonl").write_text(json.dumps(ASKED))
            for index, pixels in enumerate(pictures):
                Image.fromarray(pixels).save(folder / "samples" / f"{index:04d}.png")
        flags = ["--images", tmp_path / "drawn", "--vq", tmp_path / "vq", "--out", tmp_path / "found.json"]
        status = run_script(SCRIPT, *flags, "--batch_size", 3)
        printed = capsys.readouterr()
        return json.loads(printed.out.splitlines()[-1]) if status == 0 else printed.err.splitlines()[-1]

    return run


def noise(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (16, 16, 3), dtype=np.uint8)


@pytest.mark.parametrize("with_set", [True, False])
def test_prompts_need_not_be_geneval_s(
    with_set: bool, measure: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Any captions: what eval/generate_images.py draws of a plain JSONL, with or without its copy of the set."""
    expected = measure([noise(0), noise(1)])
    plain = {"prompt": "an old harbour at dawn", "source": "mine"}
    monkeypatch.setitem(globals(), "ASKED", plain)
    shutil.rmtree(tmp_path / "drawn")
    (tmp_path / "drawn").mkdir()
    if with_set:
        (tmp_path / "drawn/prompts.jsonl").write_text(f"{json.dumps(plain)}\n" * 2)
    found = measure([noise(0), noise(1)])
    assert found["value"] == expected["value"] and found["n"] == 4
    assert found["prompts_sha256"] != expected["prompts_sha256"]


@pytest.mark.parametrize("metadata", [{}, {"prompt": ""}, {"prompt": 3}, {"caption": "a harbour"}])
def test_a_folder_without_a_prompt_is_refused(
    metadata: dict, measure: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(globals(), "ASKED", metadata)
    assert "metadata.jsonl: no `prompt`" in measure([noise(0), noise(1)])


def test_equal_pictures_have_no_diversity(measure: Callable, tmp_path: Path) -> None:
    record = measure([noise(0)] * 3)
    assert record["value"] == record["stderr"] == record["rms"] == 0 and record["n"] == 6
    assert record == json.loads((tmp_path / "found.json").read_text())


def test_the_numbers_are_the_pictures(measure: Callable, tiny_vq: VQModel) -> None:
    pictures = [noise(seed) for seed in (1, 2, 3)]
    record = measure(pictures)
    pixels = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2) / 127.5 - 1
    codes = tiny_vq.encode(pixels)
    pairs = [(0, 1), (0, 2), (1, 2)]
    assert record["value"] == pytest.approx(float(np.mean([(codes[a] != codes[b]).float().mean() for a, b in pairs])))
    rms = np.mean([float((pixels[a] - pixels[b]).square().mean().sqrt()) / 2 for a, b in pairs])
    assert record["rms"] == pytest.approx(rms, abs=1e-3) and record["rms"] > 0.2
    assert len(record["by_scale"]) == len(record["usage_by_scale"]) == len(tiny_vq.config.patch_nums)
    assert record["brightness"] == pytest.approx(0.5, abs=0.05)


def test_one_picture_a_prompt_is_refused(measure: Callable) -> None:
    assert "has one picture; draw with --samples 2 or more" in measure([noise(0)])
