"""Settings that count only where another one is on: given without it they are refused by name, not ignored."""

from collections.abc import Callable, Collection, Iterable
from dataclasses import MISSING, Field, dataclass, fields
from typing import Any, ClassVar


@dataclass(frozen=True)
class Needs:
    """Fields, by names with spaces between, that count only where `on(settings)`, which reads the fields `switches`.

    `remedy` ends the error.
    """

    names: str
    on: Callable[[Any], object]
    remedy: str
    switches: str


class WithNeeds:
    """A dataclass whose fields have rules, which `parse` checks."""

    NEEDS: ClassVar[tuple[Needs, ...]] = ()


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


def switched_off(settings: Any, rules: Iterable[Needs], held: Collection[str], flags: Collection[str]) -> list[str]:
    """Those of the fields that a file has `held` which would have no effect, as one of the `flags` is their switch."""
    return [
        name
        for rule in rules
        if {*flags} & {*rule.switches.split()}
        for name in rule.names.split()
        if name in held and name not in flags and not rule.on(settings)
    ]
