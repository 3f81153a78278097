"""eval/sampling_speed.py on toys: every way is timed, operations are counted, the result is one like all others."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from unified import UnifiedConfig

SCRIPT = "eval/sampling_speed.py"
FIGURES = {"scales", "scales_guided", "raster", "faster_than_raster", "products", "times_products", "kernels"}
TINY = ["--layers", 1, "--hidden_size", 32, "--intermediate_size", 32, "--heads", 4, "--key_heads", 2]


def check(found: dict[str, Any]) -> None:
    """The figures of one batch size fit together."""
    assert min(found.values()) > 0
    assert found["times_products"] == pytest.approx(found["scales"] / found["products"], rel=0.05)
    assert found["kernels"] > 100 and 0 < found["host_waits"] < 100


def test_every_way_is_timed(
    run_script: Callable[..., int], toy_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--model", toy_checkpoint, "--batch_sizes", 1, 2, "--repeats", 1, "--out", tmp_path / "speed.json"]
    assert run_script(SCRIPT, *flags) == 0
    result = json.loads(capsys.readouterr().out)
    assert result == json.loads((tmp_path / "speed.json").read_text())
    assert (result["metric"], result["n"], result["model"]) == ("seconds_per_image", 1, str(toy_checkpoint))
    one, two = result["codes_5"]["batch_1"], result["codes_5"]["batch_2"]
    assert result["value"] == one["scales"] and set(one) == set(two) == FIGURES | {"host_waits"}
    check(one)
    assert one["raster"] / one["scales"] == pytest.approx(one["faster_than_raster"], rel=0.05)
    for name in ("kernels", "host_waits"):  # of a batch, whatever its size; HF looks at the padding of several rows
        assert one[name] <= two[name] < 1.1 * one[name]
    assert result["tokenizer"] == UnifiedConfig.from_pretrained(toy_checkpoint).vq_fingerprint
    assert "layers" not in result["config"]


def test_an_adapter_has_a_twin_of_its_base(
    run_script: Callable[..., int], image_adapter: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_script(SCRIPT, "--model", image_adapter, "--batch_sizes", 1, "--repeats", 2, "--raster_repeats", 2) == 0
    check(json.loads(capsys.readouterr().out)["codes_5"]["batch_1"])


def test_random_weights_of_a_number_of_codes(
    run_script: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--codes", 85, 680, *TINY, "--batch_sizes", 1, "--repeats", 1, "--raster_repeats", 0]
    assert run_script(SCRIPT, *flags) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["model"] == "random" and result["tokenizer"] is None and result["config"]["layers"] == 1
    few, many = result["codes_85"]["batch_1"], result["codes_680"]["batch_1"]
    for found in (few, many):
        check(found)
        assert "raster" not in found
    assert few["host_waits"] == many["host_waits"] and few["kernels"] < many["kernels"]  # 4 scales and 10


@pytest.mark.parametrize("flag", ["--repeats", "--batch_sizes"])
def test_nothing_to_time_is_refused(
    run_script: Callable[..., int], flag: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_script(SCRIPT, flag, 0) == 2
    assert f"{flag} 0; give at least 1" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--codes", 86], "--codes 86: scales are known of 85, 680, 2240 codes"),
        (["--layers", 2], "layers 2 would have no effect"),
        (["--codes", 85, "--prompt", "a cat"], "prompt a cat would have no effect"),
        (["--codes", 85, "--heads", 7], "--heads 7"),
    ],
)
def test_settings_that_do_not_go_together(
    run_script: Callable[..., int], flags: list[object], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_script(SCRIPT, *flags) == 2
    assert said in capsys.readouterr().err
