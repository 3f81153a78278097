"""Every kind of picture through every door that opens files: what viewers show, and damage named alike."""

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from picture_doors import SIDE, Doors, adobe_rgb, kinds, picture, stored, suffix
from PIL import Image

from unified.files.images import image_to_uint8

FILES = kinds()
BY_PIL = ("chat, PIL", "detectors, PIL", "processor")  # which get no file, whose damage Pillow alone can see


@pytest.fixture(scope="module")
def doors(tmp_path_factory: pytest.TempPathFactory) -> Doors:
    return Doors(tmp_path_factory.mktemp("doors"))


@pytest.mark.parametrize("kind", FILES)
def test_every_door_sees_what_viewers_show(kind: str, doors: Doors, tmp_path: Path) -> None:
    data, shown = FILES[kind]
    path = tmp_path / f"picture.{suffix(kind)}"
    path.write_bytes(data)
    wanted = image_to_uint8(shown, SIDE).numpy().astype(int)
    off = {name: float(np.abs(see(path).astype(int) - wanted).mean()) for name, see in doors.all.items()}
    assert max(off.values()) < 6, off
    assert len(set(off.values())) == 1, off  # one opener: the same pixels behind every door


def test_a_file_that_is_no_srgb_shows_other_numbers_than_it_holds() -> None:
    held = np.asarray(Image.open(io.BytesIO(FILES["Adobe RGB"][0])).convert("RGB"), int)
    assert np.abs(held - np.asarray(picture(), int)).max() > 30 and len(adobe_rgb()) > 400


def zeroed(data: bytes) -> bytes:
    return data[: len(data) * 3 // 4].ljust(len(data), b"\0")


@pytest.mark.parametrize(
    "harm", [zeroed, lambda data: data[:-20], lambda data: b"", lambda data: b"no picture at all"]
)
@pytest.mark.parametrize("form", ["PNG", "JPEG"])
def test_damage_is_named_at_every_door(
    form: str, harm: Callable[[bytes], bytes], doors: Doors, tmp_path: Path
) -> None:
    noise = Image.merge("RGB", [Image.effect_noise((96, 96), 90) for _ in range(3)])
    path = tmp_path / f"picture.{form.lower()}"
    path.write_bytes(harm(stored(noise, form)))
    for name, see in doors.all.items():
        if name not in BY_PIL:
            with pytest.raises(ValueError, match=r"picture\.|1 rows are .*unreadable"):
                see(path)
