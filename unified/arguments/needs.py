"""Settings that count only where another one is on: given without it they are refused by name, not ignored."""

from collections.abc import Callable, Iterable
from dataclasses import MISSING, Field, dataclass, fields
from typing import Any


@dataclass(frozen=True)
class Needs:
    """Fields, by names with spaces between, that count only where `on(settings)`; `remedy` ends the error."""

    names: str
    on: Callable[[Any], object]
    remedy: str


def is_given(settings: Any, known: Field[Any]) -> bool:
    """Whether a field has another value than by default."""
    default = known.default if known.default_factory is MISSING else known.default_factory()
    return bool(vars(settings)[known.name] != default)


def check_needs(settings: Any, rules: Iterable[Needs]) -> None:
    """Raise ValueError for the first given field of a dataclass that would have no effect."""
    known = {one.name: one for one in fields(settings)}
    for rule in rules:
        for name in rule.names.split():
            if name in known and is_given(settings, known[name]) and not rule.on(settings):
                raise ValueError(f"{name} {vars(settings)[name]} would have no effect: {rule.remedy}, or leave it out")
