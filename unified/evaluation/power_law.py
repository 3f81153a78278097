"""Power laws through learning curves: `y = floor + scale * x^-exponent`, and where they reach a goal.

The floor is searched on a grid, the rest is a line in logarithms, by least squares of relative errors.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

GRID = 200


@dataclass(frozen=True)
class PowerLaw:
    """`y = floor + scale * x^-exponent`; `error` is the typical relative error of the points it was fitted to."""

    floor: float
    scale: float
    exponent: float
    error: float

    def at(self, x: float) -> float:
        """The y it gives for x."""
        return self.floor + self.scale * x**-self.exponent

    def reaches(self, goal: float) -> float | None:
        """The x at which y has fallen to `goal`; None where it never does."""
        if self.exponent <= 0 or goal <= self.floor:
            return None
        return float((self.scale / (goal - self.floor)) ** (1 / self.exponent))


def fit_power_law(x: Sequence[float], y: Sequence[float], floor: float | None = None) -> PowerLaw:
    """The law through points of positive x and y, with this floor or the one that fits best.

    Raises ValueError for fewer points than it has unknowns (2, or 3 with an unknown floor), or for ones not positive.
    """
    xs, ys = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    needed = 2 if floor is not None else 3
    if len(set(xs.tolist())) < needed or len(xs) != len(ys):
        raise ValueError(f"{len(xs)} points are too few for a power law; give at least {needed} of different x")
    if xs.min() <= 0 or ys.min() <= (floor or 0.0):
        raise ValueError("a power law needs x above 0 and y above its floor; leave the other points out")
    floors = [floor] if floor is not None else np.linspace(0, ys.min(), GRID, endpoint=False)
    return min((_line(xs, ys, float(given)) for given in floors), key=lambda law: law.error)


def _line(x: np.ndarray, y: np.ndarray, floor: float) -> PowerLaw:
    weights = (y - floor) / y  # so that relative errors of y count, and not of y - floor
    slope, start = np.polyfit(np.log(x), np.log(y - floor), 1, w=weights)
    law = PowerLaw(floor, float(np.exp(start)), float(-slope), 0.0)
    errors = (floor + law.scale * x**-law.exponent) / y - 1
    return PowerLaw(law.floor, law.scale, law.exponent, float(np.sqrt((errors**2).mean())))
