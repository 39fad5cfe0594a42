"""Thermal conductivity by Green and Kubo's formula, with the error bar that an ensemble knows.

    python conductivity.py members.dat state.dat --timestep 0.001 --correlation 10

kappa = 1 / (3 V k_B T^2) integral_0^t <J(0) . J(t')> dt', J the heat flux times the volume, for
each member's flux along the run that their mean drives. The run is cut into segments: their
scatter is the error of sampling. The spread of the members, less what sampling makes of it, is
the error of the potential.
"""

import argparse
from pathlib import Path

import numpy as np
from scipy.fft import irfft, next_fast_len, rfft
from scipy.stats import t as student_t

from race.data.series import read_series

BOLTZMANN = 8.617333262e-5  # eV/K
WATT = 1602.176634  # W/(m K) of 1 eV/(ps Angstrom K)


def running_integral(flux: np.ndarray, spacing: float, n_lags: int) -> np.ndarray:
    """integral_0^t <J(0) . J(t')> dt' [n_lags, M] of flux [T, M, 3]; trapezia of `spacing`."""
    n = len(flux)
    transform = rfft(flux, next_fast_len(2 * n), axis=0)
    products = irfft(np.abs(transform) ** 2, next_fast_len(2 * n), axis=0)[:n_lags].sum(2)
    correlation = products / np.arange(n, n - n_lags, -1)[:, None]
    steps = 0.5 * spacing * (correlation[1:] + correlation[:-1])
    return np.concatenate([np.zeros_like(correlation[:1]), np.cumsum(steps, axis=0)])


def conductivities(
    flux: np.ndarray,
    spacing: float,
    correlation: float,
    volume: float,
    kelvin: float,
    n_segments: int,
) -> np.ndarray:
    """kappa [n_segments, M], W/(m K).

    Args:
        flux: [T, M, 3] eV Angstrom/ps.
        spacing: time between samples, ps.
        correlation: upper limit of the integral, ps.
        volume: Angstrom^3.
        kelvin: temperature.
        n_segments: contiguous parts of the run.
    """
    n_lags = round(correlation / spacing) + 1
    segments = np.array_split(flux, n_segments)
    if 2 * n_lags > min(map(len, segments)):
        raise SystemExit(
            f"segments of {min(map(len, segments))} samples are too short for correlations over "
            f"{n_lags}: a longer run, or fewer --segments, or a smaller --correlation"
        )
    factor = WATT / (3 * volume * BOLTZMANN * kelvin**2)
    return factor * np.stack([running_integral(s, spacing, n_lags)[-1] for s in segments])


def summary(kappa: np.ndarray, level: float) -> dict[str, float]:
    """Of kappa [S, M]: mean, standard deviations by sampling and of the potential, and the half
    width of the interval at `level`. The truth is taken for one more draw from the members.
    """
    S, M = kappa.shape
    members = kappa.mean(0)
    sampling = kappa.mean(1).std(ddof=1) / np.sqrt(S)
    apart = kappa - kappa.mean(1, keepdims=True)
    noise = apart.var(0, ddof=1).sum() / (S * (M - 1))
    potential = np.sqrt(max(members.var(ddof=1) - noise, 0.0))
    half = student_t.ppf(0.5 + level / 2, min(S, M) - 1) * np.hypot(
        sampling, potential * np.sqrt(1 + 1 / M)
    )
    return {
        "kappa": float(members.mean()),
        "sampling_std": float(sampling),
        "potential_std": float(potential),
        "half_width": float(half),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("members", type=Path, help="fix ave/time of c_J[*], mode vector")
    parser.add_argument("state", type=Path, help="fix ave/time of temperature and volume")
    parser.add_argument("--timestep", type=float, required=True, help="of the run, ps")
    parser.add_argument("--correlation", type=float, default=10.0, help="ps")
    parser.add_argument("--segments", type=int, default=10)
    parser.add_argument("--level", type=float, default=0.9)
    args = parser.parse_args()
    series, state = read_series(args.members), read_series(args.state)
    flux = np.stack([series[f"c_J[{k}]"] for k in (1, 2, 3)], axis=2)  # [T, M, 3]
    spacing = args.timestep * float(np.diff(series.step)[0])
    kappa = conductivities(
        flux,
        spacing,
        args.correlation,
        float(state["v_volume"].mean()),
        float(state["v_kelvin"].mean()),
        args.segments,
    )
    found = summary(kappa, args.level)
    for m, value in enumerate(kappa.mean(0), 1):
        print(f"member {m}: {value:.3g} W/(m K)")
    print(
        f"kappa = {found['kappa']:.3g} +- {found['half_width']:.2g} W/(m K) ({args.level:.0%}); "
        f"one standard deviation of sampling {found['sampling_std']:.2g}, of the potential "
        f"{found['potential_std']:.2g}"
    )


if __name__ == "__main__":
    main()
