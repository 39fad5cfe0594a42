"""3BPA, how far two ensembles agree on what to label: rankings of the pools of
acquisition.py by the members of its initial models.

    python benchmarks/uq/ranking.py --data DATA        after acquisition.py; writes
                                                       results/ranking.json and .md

Two disjoint sets of M members, drawn from all that were trained on the initial frames,
score the same pool. What one says and the other does not confirm is scatter of the
members, not what the frames would teach; no label is needed to see it.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from acquisition import HOT, prepare
from result_tables import write
from scipy.stats import spearmanr
from study import arguments, say

from race.active.pool import read_pool
from race.predict.moments import bald, log_determinant, total_variance
from race.predict.predictor import ModelPredictor
from race.train.run import load_run

SIZES = (2, 3, 4, 6)
TOP = 10  # frames that the first round of acquisition.py labels
KEYS = {"bald-energy": "BALD of energies", "bald-force": "BALD of forces"}
# Energies and variances [n, M], forces [n_atoms, M, 3] and covariances [n_atoms, M, 3, 3]
Moments = tuple[np.ndarray, ...]


def main() -> None:
    args, options = arguments("acquisition", __doc__)
    _, pool = prepare(args.data / "3bpa", args.out / "data", options["stride"])
    # Of the first loop alone: models of another number of members began from the same weights.
    runs = sorted((args.out / next(iter(options["loops"]))).glob("seed-*/initial/run"))
    records = []
    for split in HOT:
        say(f"ranking {split}")
        parts = [moments(run, pool[split]) for run in runs]
        members = tuple(np.concatenate(columns, axis=1) for columns in zip(*parts, strict=True))
        records += agreement(members, split, options["ranking_draws"])
    write(args.results, "ranking", records, draw)
    say(f"done: {args.results / 'ranking.md'}")


def moments(run: Path, pool: Sequence[str]) -> Moments:
    """Of every frame of the pool by every member of a run."""
    predictor = ModelPredictor(load_run(run)[0])
    frames = [candidate.bare for candidate in read_pool([Path(path) for path in pool])]
    parts = []
    for batch in predictor.dataset(frames).batches(predictor.batch_size):
        out = predictor.model(batch)
        with torch.no_grad():
            parts.append(
                [
                    out.energy,
                    out.energy_var,
                    out.forces,
                    predictor.model.forces_cov(out.raw),
                ]
            )
    return tuple(torch.cat(column).detach().double().numpy() for column in zip(*parts, strict=True))


def scores(members: Moments, chosen: Sequence[int]) -> dict[str, np.ndarray]:
    """[n] of each of KEYS, by the members that are chosen; all frames have as many atoms."""
    energy, var, forces, cov = (torch.from_numpy(column[:, chosen]) for column in members)
    of_energy = bald(total_variance(energy, var.mean(1)).total, var.log().mean(1))
    of_forces = bald(total_variance(forces, cov.mean(1)).total, log_determinant(cov).mean(1))
    return {
        "bald-energy": of_energy.numpy(),
        "bald-force": of_forces.view(len(energy), -1).mean(1).numpy(),
    }


def agreement(members: Moments, split: str, draws: int) -> list[dict[str, Any]]:
    """One record for each score and number of members M: over `draws` pairs of disjoint sets
    of M, Spearman's rho of their scores and how many of the TOP frames of one are among
    the TOP of the other; means and standard deviations.
    """
    records, n = [], members[0].shape[1]
    for size in (size for size in SIZES if 2 * size <= n):
        random = np.random.RandomState(size)
        rows: dict[str, list[tuple[float, int]]] = {key: [] for key in KEYS}
        for _ in range(draws):
            order = random.permutation(n)
            one, other = scores(members, order[:size]), scores(members, order[size : 2 * size])
            for key in KEYS:
                best = [set(np.argsort(-score[key], kind="stable")[:TOP]) for score in (one, other)]
                rows[key].append(
                    (float(spearmanr(one[key], other[key]).statistic), len(best[0] & best[1]))
                )
        for key, values in rows.items():
            (rho, shared), (rho_std, _) = (
                np.mean(values, axis=0).tolist(),
                np.std(values, axis=0).tolist(),
            )
            about = {
                "split": split,
                "score": key,
                "n_members": size,
                "of_members": n,
                "n_frames": len(members[0]),
                "draws": draws,
            }
            records.append(
                about | {"spearman": rho, "spearman_std": rho_std, "top": TOP, "top_shared": shared}
            )
    return records


def draw(records: Sequence[Mapping[str, Any]]) -> list[str]:
    """One row for each temperature and score."""
    sizes = sorted({record["n_members"] for record in records})
    lines = ["# 3BPA: agreement of two ensembles on what to label", ""]
    lines += [
        "Spearman's rho of two disjoint ensembles' scores of one pool, ± standard deviation over "
        f"draws; in brackets how many of the {TOP}"
    ]
    lines += [
        f"frames that one ranks first the other ranks among its own {TOP}. Members: those of all "
        "initial models.",
        "",
    ]
    lines += [
        "| pool | score | " + " | ".join(f"{n} members" for n in sizes) + " |",
        "|" + "---|" * (2 + len(sizes)),
    ]
    for split in HOT:
        for key, name in KEYS.items():
            row = {
                record["n_members"]: record
                for record in records
                if record["split"] == split and record["score"] == key
            }
            cells = [
                f"{row[n]['spearman']:.2f} ± {row[n]['spearman_std']:.2f} "
                f"({row[n]['top_shared']:.1f})"
                for n in sizes
            ]
            lines.append(f"| {split} | {name} | " + " | ".join(cells) + " |")
    return lines


if __name__ == "__main__":
    main()
