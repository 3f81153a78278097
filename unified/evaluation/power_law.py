"""Power laws through learning curves: `y = floor + scale * x^-exponent`, and where they reach a goal.

Fitted by `scipy.optimize.least_squares` of relative errors, from the line in logarithms that has no floor.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

TOLERANCE = 1e-12  # of parameters and errors, at which the search ends


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

    Raises ValueError for fewer points than it has unknowns (2, or 3 with an unknown floor), for ones not positive, and
    without scipy.
    """
    xs, ys = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    needed = 2 if floor is not None else 3
    if len(set(xs.tolist())) < needed or len(xs) != len(ys):
        raise ValueError(f"{len(xs)} points are too few for a power law; give at least {needed} of different x")
    if xs.min() <= 0 or ys.min() <= (floor or 0.0):
        raise ValueError("a power law needs x above 0 and y above its floor; leave the other points out")
    try:
        from scipy.optimize import least_squares  # slow to import
    except ImportError:
        raise ValueError("power laws need scipy; pip install 'unified-ar[eval]'") from None
    base = floor or 0.0
    # weights so that relative errors of y count, and not of y - base
    slope, start = np.polyfit(np.log(xs), np.log(ys - base), 1, w=(ys - base) / ys)
    first, least, most = [start, -slope, base], [-np.inf, -np.inf, 0.0], [np.inf, np.inf, ys.min()]
    free = 3 if floor is None else 2  # unknowns: log(scale), exponent, and the floor

    def errors(unknowns: np.ndarray) -> np.ndarray:
        log_scale, exponent, at_infinity = [*unknowns, base][:3]
        return (at_infinity + np.exp(log_scale - exponent * np.log(xs))) / ys - 1

    found = least_squares(
        errors,
        first[:free],
        bounds=(least[:free], most[:free]),
        x_scale="jac",
        xtol=TOLERANCE,
        ftol=TOLERANCE,
        gtol=TOLERANCE,
    )
    log_scale, exponent, at_infinity = [*map(float, found.x), base][:3]
    return PowerLaw(at_infinity, float(np.exp(log_scale)), exponent, float(np.sqrt((found.fun**2).mean())))
