"""Recalibration: a map from the predicted Gaussian to central intervals that hold what
they promise.

Each method is fitted to the standardised errors z = (reference - mean) / std of a
calibration split. It gives the bounds of the central interval of any level in units of
std: reference in [mean + std * lower, mean + std * upper]. A calibration split must be
disjoint from the training set, and from the data on which the result is evaluated.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np
from scipy.special import ndtri

from race.errors import RaceError
from race.evaluate.metrics import LEVELS, gaussian_bounds

MAX_KNOTS = 999  # of a fitted map, so that an artifact stays small
# Levels of the interval table that an artifact carries
TABLE_LEVELS = np.append(LEVELS, [0.995, 0.998, 0.999, 0.9999])


class Recalibration(Protocol):
    """A fitted map; `to_dict` is what an artifact stores and `recalibration_from_dict` reads."""

    method: ClassVar[str]

    @classmethod
    def fit(cls, z: np.ndarray, symmetric: bool = False) -> "Recalibration":
        """Fits z [n]. symmetric: errors of either sign are alike (force components, whose
        sign a rotation changes).
        """
        ...

    def bounds(self, levels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Lower and upper bounds, each [n_levels], of central intervals at levels in (0, 1)."""
        ...

    def to_dict(self) -> dict[str, Any]:
        """As JSON keeps it."""


@dataclass(frozen=True)
class VarianceScaling:
    """One factor on every std: the maximum of the Gaussian likelihood, scale^2 = <z^2>.
    Keeps the distribution Gaussian.
    """

    method: ClassVar[str] = "scaling"
    scale: float

    @classmethod
    def fit(cls, z: np.ndarray, symmetric: bool = False) -> "VarianceScaling":
        """Fits to residuals z [n] in units of the predicted deviation."""
        return cls(float(np.sqrt(np.mean(np.square(_checked(z))))))

    def bounds(self, levels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Lower and upper bounds of the central interval of each level, in predicted deviations."""
        lower, upper = gaussian_bounds(levels)
        return self.scale * lower, self.scale * upper

    def to_dict(self) -> dict[str, Any]:
        """As JSON keeps it."""
        return {"method": self.method, "scale": self.scale}


@dataclass(frozen=True)
class Isotonic:
    """Kuleshov, Fenner & Ermon (2018): the one-sided CDF is mapped onto its observed frequency.

    The isotonic regression of the empirical CDF on the predicted one is the empirical CDF
    itself, which is monotone already. It is kept as quantiles z(cdf), not as pairs of
    probabilities: an error of nine sigmas has a predicted CDF of 1 to machine precision.
    Beyond the outermost knot the quantiles go on as those of a Gaussian through that
    knot.
    """

    method: ClassVar[str] = "isotonic"
    z: np.ndarray  # ascending
    cdf: np.ndarray  # in (0, 1), ascending

    @classmethod
    def fit(cls, z: np.ndarray, symmetric: bool = False) -> "Isotonic":
        """Fits to residuals z [n] in units of the predicted deviation."""
        z = _checked(z)
        z = np.sort(np.concatenate([z, -z]) if symmetric else z)
        # P(a further draw lies below the k-th of n) = k / (n + 1)
        cdf = np.arange(1, len(z) + 1) / (len(z) + 1)
        if len(z) > MAX_KNOTS:
            knots = np.linspace(cdf[0], cdf[-1], MAX_KNOTS)
            z, cdf = np.interp(knots, cdf, z), knots
        return cls(z, cdf)

    def quantile(self, probability: np.ndarray) -> np.ndarray:
        """Standardised error below which a fraction `probability` of references lies."""
        inner = np.interp(probability, self.cdf, self.z)
        low, high = ndtri(self.cdf[[0, -1]])
        gauss = ndtri(probability)
        inner = np.where(
            probability < self.cdf[0], self.z[0] + (gauss - low) * max(self.z[0] / low, 0), inner
        )
        return np.where(
            probability > self.cdf[-1],
            self.z[-1] + (gauss - high) * max(self.z[-1] / high, 0),
            inner,
        )

    def bounds(self, levels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Lower and upper bounds of the central interval of each level, in predicted deviations."""
        half = np.asarray(levels) / 2
        return self.quantile(0.5 - half), self.quantile(0.5 + half)

    def to_dict(self) -> dict[str, Any]:
        """As JSON keeps it."""
        return {"method": self.method, "z": self.z.tolist(), "cdf": self.cdf.tolist()}


@dataclass(frozen=True)
class SplitConformal:
    """Split conformal prediction with score |z|: coverage of at least the level for
    exchangeable frames, whatever the distribution.

    radius[k] serves every level up to levels[k]; a level too high for the size of the
    calibration split gets an infinite interval.
    """

    method: ClassVar[str] = "conformal"
    levels: np.ndarray  # ascending
    radius: np.ndarray

    @classmethod
    def fit(cls, z: np.ndarray, symmetric: bool = False) -> "SplitConformal":
        """Fits to residuals z [n] in units of the predicted deviation."""
        scores = np.sort(np.abs(_checked(z)))
        n = len(scores)
        rank = np.unique(np.linspace(1, n, min(n, MAX_KNOTS)).round().astype(int))
        return cls(rank / (n + 1), scores[rank - 1])

    def bounds(self, levels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Lower and upper bounds of the central interval of each level, in predicted deviations."""
        # A level that equals a knot belongs to it, although (n + 1) * level may round
        # just above the integer.
        upper = np.append(self.radius, np.inf)[
            np.searchsorted(self.levels, np.asarray(levels) - 1e-12)
        ]
        return -upper, upper

    def to_dict(self) -> dict[str, Any]:
        """As JSON keeps it."""
        return {
            "method": self.method,
            "levels": self.levels.tolist(),
            "radius": self.radius.tolist(),
        }


@dataclass(frozen=True)
class IntervalTable:
    """The table that an artifact carries: half-widths of symmetric central intervals on a grid of
    levels, in units of std.

    Between levels the half-width is linear in that of the normal distribution. This is exact
    for variance scaling, and within one step of the grid for the others: a conformal
    interval keeps its guarantee at the levels of the grid. `interval_factor` of librace
    does the same.

    levels, factors: both ascending; factors may end before the levels do: a conformal
    interval of a higher level needs more frames.
    """

    method: ClassVar[str] = "table"
    levels: np.ndarray
    factors: np.ndarray

    @classmethod
    def fit(
        cls, z: np.ndarray, symmetric: bool = True, *, method: str = "isotonic"
    ) -> "IntervalTable":
        """From the standardised errors of a calibration split, by a method of METHODS."""
        _, upper = METHODS[method].fit(z, symmetric=True).bounds(TABLE_LEVELS)
        return cls(
            TABLE_LEVELS, np.maximum.accumulate(upper[: np.count_nonzero(np.isfinite(upper))])
        )

    def factor(self, level: float) -> float:
        """Half-width of one level.

        Raises:
            RaceError: beyond the last level that the calibration reaches.
        """
        last = self.levels[len(self.factors) - 1]
        if not 0 < level <= last + 1e-12:
            raise RaceError(
                "no calibrated interval", expected=f"a level between 0 and {last:g}", got=level
            )
        return float(self.bounds(np.array([level]))[1][0])

    def bounds(self, levels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """As `Recalibration.bounds`; infinite beyond the last level."""
        n = len(self.factors)
        gauss = gaussian_bounds(np.append(self.levels[:n], np.atleast_1d(levels)))[1]
        upper = np.interp(gauss[n:], np.append(0.0, gauss[:n]), np.append(0.0, self.factors))
        upper = np.where(gauss[n:] > gauss[n - 1] + 1e-9, np.inf, upper)
        return -upper, upper

    def to_dict(self) -> dict[str, Any]:
        """As JSON keeps it."""
        return {
            "method": self.method,
            "levels": self.levels.tolist(),
            "factors": self.factors.tolist(),
        }


METHODS: dict[str, Any] = {
    kind.method: kind for kind in (Isotonic, VarianceScaling, SplitConformal)
}


def recalibration_from_dict(data: dict[str, Any]) -> Recalibration:
    """The inverse of `to_dict`."""
    data = dict(data)
    method = data.pop("method", None)
    if method not in METHODS:
        raise RaceError("unknown recalibration method", expected=sorted(METHODS), got=method)
    return METHODS[method](
        **{
            key: np.asarray(value) if isinstance(value, list) else value
            for key, value in data.items()
        }
    )


def _checked(z: np.ndarray) -> np.ndarray:
    z = np.ravel(np.asarray(z, dtype=np.float64))
    if len(z) < 2 or not np.isfinite(z).all():
        got = f"{len(z)}, {np.sum(~np.isfinite(z))} of them not finite"
        raise RaceError(
            "cannot fit a recalibration", expected="two or more finite standardised errors", got=got
        )
    return z
