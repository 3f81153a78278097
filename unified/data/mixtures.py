"""Lists and weighted mixtures in one flag: "cat, dog" and "draw:0.8,ask:0.2"."""

import difflib
import math
from collections.abc import Sequence


def read_names(text: str) -> list[str]:
    """ "cat, dog" -> ["cat", "dog"], without duplicates."""
    return list(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))


def read_weights(kind: str, text: str, known: Sequence[str]) -> dict[str, float]:
    """ "draw:0.6,ask:0.3" -> {"draw": 0.667, "ask": 0.333}; a name without a weight has weight 1.

    Raises ValueError for names that are not `known`, and for invalid weights; `kind` describes a name in error
    messages.
    """
    weights = {}
    for entry in read_names(text):
        name, _, weight = entry.partition(":")
        if name not in known:
            all_known = difflib.get_close_matches(name, known, n=len(known), cutoff=0)
            raise ValueError(f"unknown {kind} {name!r} in {text!r}; nearest: {', '.join(all_known)}")
        try:
            weights[name] = float(weight or 1)
        except ValueError:
            raise ValueError(f"{kind} {entry!r}: {weight!r} is not a number; write {name}:0.5") from None
    total = sum(weights.values())
    if not 0 < total < math.inf or min(weights.values()) < 0:
        raise ValueError(f"{kind} weights {text!r} must be >= 0, neither missing nor all 0; write {known[0]}:1")
    return {name: weight / total for name, weight in weights.items()}
