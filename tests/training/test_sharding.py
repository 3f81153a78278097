"""Launches by FSDP that cannot be honoured are refused by name."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from toy_adapters import adapted
from toy_models import toy_model

from unified.training.sharding import check_fsdp, gathered


def launch(**settings: Any) -> Any:
    """What `check_fsdp` reads of an Accelerator, launched as fsdp2.yaml says but for `settings`."""
    said = {"fsdp_version": 2, "cpu_ram_efficient_loading": False, "state_dict_type": "FULL_STATE_DICT"}
    plugin = SimpleNamespace(**said | settings)
    return SimpleNamespace(distributed_type="FSDP", state=SimpleNamespace(fsdp_plugin=plugin))


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"fsdp_version": 1}, "fsdp_version 1 flattens .* set it to 2"),
        ({"cpu_ram_efficient_loading": True}, "fsdp_cpu_ram_efficient_loading true takes .* set it to false"),
        ({"state_dict_type": "SHARDED_STATE_DICT"}, "SHARDED_STATE_DICT leaves no checkpoint .* FULL_STATE_DICT"),
    ],
)
def test_settings_that_lose_or_break_are_refused(settings: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        check_fsdp(launch(**settings), toy_model())
    check_fsdp(launch(), toy_model())


@pytest.mark.parametrize("tied", [True, False])
def test_models_that_would_train_wrongly_are_refused(tied: bool) -> None:
    core = adapted(toy_model(tied=tied)).get_base_model()
    reason = "embedding and output layer share" if tied else "TRL reads together with their matrix"
    with pytest.raises(ValueError, match=f"token rows, which {reason}.* launch with zero2.yaml"):
        check_fsdp(launch(), core, reads_matrix=not tied)
    if not tied:
        check_fsdp(launch(), core)
    whole = toy_model(tied=tied)
    check_fsdp(launch(), whole)
    if tied:
        check_fsdp(launch(), whole, reads_matrix=True)
    else:
        with pytest.raises(ValueError, match="train_text_rows True does not work with FSDP2 here"):
            check_fsdp(launch(), whole, reads_matrix=True)
    whole.separate_new_rows()
    check_fsdp(launch(), whole, reads_matrix=True)


def test_other_engines_are_not_asked() -> None:
    accelerator = SimpleNamespace(distributed_type="MULTI_GPU", state=SimpleNamespace(fsdp_plugin=None))
    check_fsdp(accelerator, toy_model(), reads_matrix=True)
    with gathered(torch.nn.Linear(2, 2)):
        pass
