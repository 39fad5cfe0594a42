r"""Averages of one simulation under each member of an ensemble (Imbalzano et al., J. Chem. Phys.
154, 074102, 2021; arXiv:2011.08828).

The run samples exp(-beta U_0), U_0 the energy that drove it. Under member m an average is

    <O>_m = sum_t w_mt O_t / sum_t w_mt,   w_mt = exp(-beta (U_mt - U_0t))       direct
    <O>_m ~ <O>_0 - beta <(O - <O>_0) (U_m - U_0 - <U_m - U_0>_0)>_0             cumulant

The cumulant expansion is the first order in U_m - U_0; it stays finite where few steps carry
all the weight. The spread of <O>_m over the members is what the potential leaves uncertain
about the average. Beside it stand the error of sampling, and the part of the spread that
sampling alone would make, both by a jackknife over contiguous blocks.

An observable that the potential itself makes, such as its energy, is another one under each
member: then O_mt stands for O_t.
"""

from dataclasses import dataclass

import numpy as np
from scipy.special import logsumexp
from scipy.stats import t as student_t

BLOCKS = 20
LEAST_SHARE = 0.05  # of steps that must count for a direct average to be trusted
LEAST_STEPS = 20.0


@dataclass(frozen=True)
class Average:
    """One observable [...] (a number, or the rows of a profile).

    mean: the ensemble's, <O> over members. sampling_std: its error by the length of the run.
    epistemic_std: standard deviation of a member's average (n - 1). noise_std: of that, what
    sampling alone makes. members [M, ...]: each member's average. effective [M]: steps that
    count, (sum w)^2 / sum w^2. method: "direct" or "cumulant".
    """

    mean: np.ndarray
    sampling_std: np.ndarray
    epistemic_std: np.ndarray
    noise_std: np.ndarray
    members: np.ndarray
    effective: np.ndarray
    method: str

    def half_width(self, level: float) -> np.ndarray:
        """Half width of the interval that holds the true average with probability `level`.

        The true potential is assumed to be one more draw from the members' distribution.
        The width is that of Student's t with M - 1 degrees of freedom, of two terms: the
        noise-free epistemic_std sqrt(1 + 1/M), and the error of sampling.
        """
        M = len(self.members)
        epistemic = np.maximum(self.epistemic_std**2 - self.noise_std**2, 0.0) * (1 + 1 / M)
        quantile = student_t.ppf(0.5 + level / 2, M - 1)
        return quantile * np.sqrt(epistemic + self.sampling_std**2)


def log_weights(members: np.ndarray, driving: np.ndarray, kT: np.ndarray | float) -> np.ndarray:
    """ln w [M, T], the largest of each member 0, from energies [T, M] and [T] in the unit of kT."""
    exponent = -(members - driving[:, None]) / np.reshape(kT, (-1, 1))
    return (exponent - exponent.max(0)).T


def effective_steps(log_w: np.ndarray) -> np.ndarray:
    """(sum w)^2 / sum w^2 of ln w [M, T]: [M]."""
    return np.exp(2 * logsumexp(log_w, axis=1) - logsumexp(2 * log_w, axis=1))


def weighted(w: np.ndarray, o: np.ndarray) -> np.ndarray:
    """sum_t w_mt o_tm [M, K] of w [M, T] and o [T, M, K], or [T, 1, K] for all members."""
    return w @ o[:, 0] if o.shape[1] == 1 else np.einsum("mt,tmk->mk", w, o)


def reweight(
    observable: np.ndarray,
    members: np.ndarray,
    driving: np.ndarray,
    kT: np.ndarray | float,
    method: str = "auto",
    n_blocks: int = BLOCKS,
    own: bool = False,
) -> Average:
    """The average of observable [T, ...] under each member.

    Args:
        observable: its value at each step; or [T, M, ...], each member's own.
        members: [T, M] energies of the members at the same steps.
        driving: [T] the energy whose forces moved the atoms: the mean, or the leading member's.
        kT: in the unit of the energies; a number, or [T] for a run whose temperature changes.
        method: "direct", "cumulant", or "auto": direct where every member's effective number
            of steps is at least LEAST_SHARE of them and LEAST_STEPS.
        n_blocks: of the jackknife.
        own: the observable has an axis of members.
    """
    T, shape = len(observable), observable.shape[1 + own :]
    flat = np.asarray(observable, dtype=np.float64).reshape(T, members.shape[1] if own else 1, -1)
    log_w = log_weights(members, driving, kT)
    effective = effective_steps(log_w)
    if method == "auto":
        enough = effective.min() >= max(LEAST_SHARE * T, LEAST_STEPS)
        method = "direct" if enough else "cumulant"
    delta = (members - driving[:, None]) / np.reshape(kT, (-1, 1))

    def averages(keep: np.ndarray) -> np.ndarray:
        if method == "direct":
            w = np.exp(log_w[:, keep] - logsumexp(log_w[:, keep], axis=1, keepdims=True))
            return weighted(w, flat[keep])
        o, d = flat[keep], delta[keep]
        return o.mean(0) - weighted((d - d.mean(0)).T, o - o.mean(0)) / len(o)

    everything = np.arange(T)
    found = averages(everything)
    blocks = np.array_split(everything, min(n_blocks, T))
    left_out = np.stack([averages(np.delete(everything, block)) for block in blocks])  # [B, M, K]
    factor = (len(blocks) - 1) / len(blocks)
    mean = left_out.mean(1)  # [B, K]
    sampling = factor * ((mean - mean.mean(0)) ** 2).sum(0)
    apart = left_out - mean[:, None]
    noise = factor * ((apart - apart.mean(0)) ** 2).sum(0).sum(0) / (found.shape[0] - 1)
    return Average(
        mean=found.mean(0).reshape(shape),
        sampling_std=np.sqrt(sampling).reshape(shape),
        epistemic_std=found.std(0, ddof=1).reshape(shape),
        noise_std=np.sqrt(noise).reshape(shape),
        members=found.reshape(-1, *shape),
        effective=effective,
        method=method,
    )
