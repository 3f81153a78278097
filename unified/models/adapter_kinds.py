"""The kinds of PEFT that train text and images here; others are refused by name."""

from collections.abc import Mapping
from typing import Any

# tried in tests/training/test_peft_kinds.py; `forward` refuses prompts and prefixes, as image positions come from ids
TRAINED = frozenset(
    "ADALORA ADAMSS BEFT BOFT C3A DEFT DELORA FOURIERFT FROD GLORA GRALORA HIRA HRA IA3 LILY LN_TUNING LOHA LOKR LORA "
    "MISS OFT OSF PEANUT POLY PSOFT PVERA RANDLORA ROAD SHIRA SUPERTUNING TINYLORA TRAINABLE_TOKENS UNILORA VBLORA "
    "VERA WAVEFT XLORA".split()
)


def check_kinds(configs: Mapping[str, Any]) -> None:
    """Raise ValueError for PEFT configs, by adapter's name, of a kind that is not `TRAINED`."""
    for config in configs.values():
        kind = str(config.peft_type).removeprefix("PeftType.")
        if kind not in TRAINED:
            raise ValueError(
                f"PEFT's {kind} has not been tried on models with images; load the model again, and use one of "
                f"{', '.join(sorted(TRAINED))}"
            )
