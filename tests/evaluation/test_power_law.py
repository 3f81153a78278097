"""Power laws: made ones are found again, with and without floor and noise; what they say of goals."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unified.evaluation.power_law import PowerLaw, fit_power_law

X = np.geomspace(100, 20000, 60)


@settings(deadline=None)
@given(st.floats(0, 2), st.floats(5, 50), st.floats(0.2, 0.8))
def test_a_law_is_found_again(floor: float, scale: float, exponent: float) -> None:
    y = floor + scale * X**-exponent
    law = fit_power_law(X, y)
    assert law.at(10_000) == pytest.approx(floor + scale * 10_000**-exponent, rel=0.02) and law.error < 0.02
    given_floor = fit_power_law(X, y, floor=floor)
    assert (given_floor.scale, given_floor.exponent) == pytest.approx((scale, exponent), rel=1e-6)


def test_noise_is_averaged_and_reported() -> None:
    noise = np.exp(0.05 * np.random.default_rng(0).standard_normal(len(X)))
    law = fit_power_law(X, (0.3 + 30 * X**-0.4) * noise)
    assert law.error == pytest.approx(0.05, rel=0.3)
    assert law.at(40_000) == pytest.approx(0.3 + 30 * 40_000**-0.4, rel=0.1)


def test_goals() -> None:
    law = PowerLaw(floor=0.5, scale=10, exponent=0.5, error=0.0)
    assert law.reaches(1.5) == pytest.approx(100) and law.at(100) == pytest.approx(1.5)
    assert law.reaches(0.5) is None and law.reaches(0.1) is None
    assert PowerLaw(0.0, 1.0, -0.1, 0.0).reaches(0.5) is None  # it rises


@pytest.mark.parametrize(
    ("x", "y", "words"),
    [([], [], "0 points are too few"), ([1, 1, 1], [3, 2, 1], "too few"), ([0, 1, 2], [1, 1, 1], "above 0")],
)
def test_what_has_no_law_is_refused(x: list[float], y: list[float], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        fit_power_law(x, y)
