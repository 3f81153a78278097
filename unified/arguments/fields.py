"""Dataclass fields with a help text and bounds, for YAML keys and flags."""

import copy
import math
from collections.abc import Iterator
from dataclasses import MISSING, dataclass, field, fields
from typing import Any

# in a field's metadata; a label is a name for a result, and nothing to open; a rule says what to give in place of
# what is no value
BOUNDS, LABEL, RULE = "bounds", "label", "rule"


@dataclass(frozen=True)
class Bounds:
    """What a number, or every number of a list, may be; `besides` are values allowed outside. Infinite is never."""

    at_least: float | None = None
    above: float | None = None
    at_most: float | None = None
    below: float | None = None
    besides: tuple[float, ...] = ()

    def allow(self, value: float) -> bool:
        """Whether `value` may be; nan may not."""
        if value in self.besides:
            return True
        lower = self.at_least is None or value >= self.at_least
        upper = self.at_most is None or value <= self.at_most
        inside = (self.above is None or value > self.above) and (self.below is None or value < self.below)
        return math.isfinite(value) and lower and upper and inside

    def rule(self) -> str:
        """The remedy of an error."""
        words = {"at least": self.at_least, "above": self.above, "at most": self.at_most, "below": self.below}
        given = [f"{word} {bound:g}" for word, bound in words.items() if bound is not None]
        besides = [f"{value:g}" for value in self.besides]
        return f"give {' or '.join([*besides, ' and '.join(given) or 'a finite number'])}"

    def interval(self) -> str:
        """An interval of two ends, in brackets; empty for another."""
        low, high = (self.above, self.at_least), (self.below, self.at_most)
        if low == (None, None) or high == (None, None):
            return ""
        left = f"[{self.at_least:g}" if self.at_least is not None else f"({self.above:g}"
        return f"{left}, {self.at_most:g}]" if self.at_most is not None else f"{left}, {self.below:g})"

    def check(self, name: str, value: Any) -> None:
        """Raise ValueError for a value that is not allowed."""
        for number in numbers(value):
            if not self.allow(number):
                outside = f" is not in {self.interval()}" if self.interval() else ""
                raise ValueError(f"{name} {number:g}{outside}; {self.rule()}")


FINITE = Bounds()
SHARE = Bounds(at_least=0, at_most=1)


def arg(
    default: Any,
    help: str,  # noqa: A002 - argparse's word
    bounds: Bounds | None = None,
    rule: str | None = None,
) -> Any:
    """A field with its help, its bounds, and what to give (`rule`) in place of a value that cannot be read.

    A default that is a list or a dict is copied for every instance.
    """
    metadata: dict[str, Any] = {"help": help} | ({} if bounds is None else {BOUNDS: bounds})
    metadata |= {} if rule is None else {RULE: rule}
    if isinstance(default, list | dict):
        return field(metadata=metadata, default_factory=lambda: copy.copy(default))
    return field(metadata=metadata, default=default)


def arg_of(kind: type, name: str, default: Any = MISSING, prefix: str = "") -> Any:
    """A field with help, behind `prefix`, and bounds of `kind`'s field `name`, and its default or another."""
    known = kind.__dataclass_fields__[name]  # type: ignore[attr-defined]
    given = known.default if default is MISSING else default
    return arg(given, prefix + known.metadata["help"], known.metadata.get(BOUNDS))


def at_least(minimum: float, *besides: float) -> Bounds:
    """The bounds of a count, a weight or a rate."""
    return Bounds(at_least=minimum, besides=besides)


def above(minimum: float) -> Bounds:
    """The bounds of what must be more."""
    return Bounds(above=minimum)


def numbers(value: Any) -> Iterator[float]:
    """The numbers of a field's value."""
    if isinstance(value, list | tuple):
        for item in value:
            yield from numbers(item)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield value


def check_fields(settings: Any, inherited: dict[str, Bounds] | None = None) -> None:
    """Raise ValueError, by name, for the first number of a dataclass outside its field's bounds, or not finite.

    `inherited` are the bounds of fields that another library declares.
    """
    for known in fields(settings):
        bounds = known.metadata.get(BOUNDS) or (inherited or {}).get(known.name, FINITE)
        bounds.check(known.name, vars(settings).get(known.name))


class CheckedArguments:
    """A dataclass whose numbers are checked against their fields' bounds as it is made."""

    def __post_init__(self) -> None:
        check_fields(self)
