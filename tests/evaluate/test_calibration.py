"""Each recalibration mends a planted miscalibration on data it has not seen, and survives
its own serialisation.
"""

import json

import numpy as np
import pytest
from scipy.special import ndtr
from scipy.stats import norm
from sklearn.isotonic import IsotonicRegression

from race.errors import RaceError
from race.evaluate.calibration import (
    METHODS,
    IntervalTable,
    Isotonic,
    SplitConformal,
    VarianceScaling,
    recalibration_from_dict,
)
from race.evaluate.metrics import LEVELS, calibration_error, coverage


def draws(kind: str, n: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return {
        "wide": 1.5 * rng.standard_normal(n),
        "narrow": 0.3 * rng.standard_normal(n),
        "heavy": 2 * rng.standard_t(3, n),
    }[kind]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", ["wide", "narrow", "heavy"])
def test_mends_unseen_data(method, kind):
    fitted = METHODS[method].fit(draws(kind, 4000, 0), symmetric=True)
    z = draws(kind, 20000, 1)
    before = calibration_error(z)
    assert before > 3e-3
    if (method, kind) == ("scaling", "heavy"):
        assert calibration_error(z, fitted.bounds) > 3e-3  # a factor cannot mend a shape
        return
    assert calibration_error(z, fitted.bounds) < before / 20
    assert coverage(z, 0.9, fitted.bounds) == pytest.approx(0.9, abs=0.012)


@pytest.mark.parametrize("method", METHODS)
def test_dictionary_round_trip(method):
    fitted = METHODS[method].fit(draws("heavy", 3000, 2))
    again = recalibration_from_dict(json.loads(json.dumps(fitted.to_dict())))
    np.testing.assert_array_equal(again.bounds(LEVELS), fitted.bounds(LEVELS))
    assert len(json.dumps(fitted.to_dict())) < 60_000


def test_isotonic_is_kuleshovs_map():
    z = draws("wide", 300, 3) + 0.4
    fitted = Isotonic.fit(z)
    predicted = np.sort(ndtr(z))
    oracle = IsotonicRegression().fit(predicted, np.arange(1, 301) / 301)
    np.testing.assert_allclose(
        np.interp(predicted, ndtr(fitted.z), fitted.cdf), oracle.predict(predicted), atol=1e-12
    )


def test_isotonic_mends_a_bias_with_lopsided_intervals():
    fitted = Isotonic.fit(draws("wide", 4000, 3) + 0.4)
    assert coverage(draws("wide", 20000, 4) + 0.4, 0.9, fitted.bounds) == pytest.approx(
        0.9, abs=0.012
    )
    lower, upper = fitted.bounds(np.array([0.9]))
    assert upper + lower == pytest.approx(0.8, abs=0.15)


def test_isotonic_of_very_small_predicted_sigmas():
    """CDFs of z = 40 are 1 to machine precision; the quantiles must not become infinite."""
    fitted = Isotonic.fit(40 * np.random.default_rng(5).standard_normal(500))
    lower, upper = fitted.bounds(np.array([0.5, 0.9, 0.99999]))
    assert (
        np.isfinite([lower, upper]).all()
        and (np.diff(upper) > 0).all()
        and (np.diff(lower) < 0).all()
    )
    np.testing.assert_allclose(upper[1] / 40, norm.ppf(0.95), rtol=0.1)
    assert upper[2] > fitted.z[-1]


def test_symmetric_maps_have_symmetric_intervals():
    lower, upper = Isotonic.fit(draws("heavy", 2000, 6) + 0.3, symmetric=True).bounds(LEVELS)
    np.testing.assert_allclose(lower, -upper, atol=1e-9)


def test_conformal_guarantee_in_small_samples():
    """Over many small calibration splits the mean coverage is at least the level, and at
    most 1 / (n + 1) above.
    """
    n, level = 19, 0.8
    found = [
        coverage(
            draws("heavy", 2000, 1000 + k), level, SplitConformal.fit(draws("heavy", n, k)).bounds
        )
        for k in range(400)
    ]
    assert level - 0.01 < np.mean(found) < level + 1 / (n + 1) + 0.01
    lower, upper = SplitConformal.fit(draws("wide", n, 0)).bounds(np.array([0.95, 0.96]))
    assert np.isfinite(upper[0]) and np.isinf(upper[1]) and np.isinf(lower[1])


def test_scaling_is_the_maximum_of_the_likelihood():
    z = draws("heavy", 500, 7)
    scale = VarianceScaling.fit(z).scale
    likelihood = [norm.logpdf(z, scale=scale * factor).sum() for factor in (0.99, 1.0, 1.01)]
    assert np.argmax(likelihood) == 1


def test_refusals():
    with pytest.raises(RaceError, match="two or more finite"):
        Isotonic.fit(np.array([1.0, np.inf]))
    with pytest.raises(RaceError, match="unknown recalibration method"):
        recalibration_from_dict({"method": "magic"})


@pytest.mark.parametrize("method", METHODS)
def test_table_holds_its_method(method):
    """At the grid's levels the table is the method's symmetric interval; for a plain factor
    it is exact at any level.
    """
    z = draws("heavy", 3000, 8)
    table, fitted = IntervalTable.fit(z, method=method), METHODS[method].fit(z, symmetric=True)
    reached = table.levels[: len(table.factors)]
    np.testing.assert_allclose(
        [table.factor(p) for p in reached], fitted.bounds(reached)[1], rtol=1e-12
    )
    assert (np.diff(table.factors) >= 0).all() and table.factors[0] > 0
    assert coverage(draws("heavy", 20000, 9), 0.925, table.bounds) == pytest.approx(
        0.925, abs=0.012
    )
    if method == "scaling":
        assert table.factor(0.925) == pytest.approx(fitted.scale * norm.ppf(0.9625), rel=1e-12)
        # Linear in p
        assert np.interp(0.925, table.levels, table.factors) != pytest.approx(
            fitted.scale * norm.ppf(0.9625), rel=1e-4
        )


def test_table_by_hand():
    """Split conformal with n = 9 scores 0.1 .. 0.9: level 0.5 is the 5th of them, and 0.9
    the last level with an interval.
    """
    table = IntervalTable.fit(np.arange(1, 10) / 10, method="conformal")
    assert (
        table.factor(0.5) == pytest.approx(0.5)
        and table.factor(0.9) == pytest.approx(0.9)
        and len(table.factors) == 90
    )
    assert table.factor(0.51) == pytest.approx(0.6)  # rounded up to the next score
    with pytest.raises(RaceError, match="between 0 and 0.9; got 0.91"):
        table.factor(0.91)
    assert table.bounds(np.array([0.91]))[1] == np.inf
    # Scale^2 = 25 / 4
    scaled = IntervalTable.fit(np.array([3.0, -4.0, 0.0, 0.0]), method="scaling")
    assert scaled.factor(0.95) == pytest.approx(2.5 * 1.959963984540054)
