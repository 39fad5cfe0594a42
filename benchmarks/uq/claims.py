"""What was to be reached, and whether the committed records reach it.

python benchmarks/uq/claims.py        writes results/claims.md from the JSON files beside it
"""

import argparse
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from acquisition import ERRORS, NAMES, labels_needed
from result_tables import cell, read

RESULTS = Path(__file__).resolve().parent / "results"
Records = Sequence[Mapping[str, Any]]
Row = tuple[str, str, str, bool | None]  # claim, target, measured, met (None: not measured)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--results", type=Path, default=RESULTS)
    folder = parser.parse_args().results
    (folder / "claims.md").write_text("\n".join(page(folder)) + "\n")
    print(folder / "claims.md")


def page(folder: Path) -> list[str]:
    """The table of claims, from the records in `folder`."""
    records = {
        name: read(folder / f"{name}.json") for name in ("b2o3", "threebpa", "rmd17", "acquisition")
    }
    rows = [*b2o3(records["b2o3"])]
    for name, title, points in (
        ("threebpa", "3BPA", ("point", "ensemble")),
        ("rmd17", "rMD17 ethanol", ("RACE", "Ensemble")),
    ):
        rows += accuracy(records[name], title, *points)
    rows += bald(records["acquisition"])
    lines = [
        "±: half the range over seeds, whose mean is judged; in brackets: the range of single "
        "seeds.",
        "",
    ]
    lines += ["| claim | target | measured | |", "|---|---|---|---|"]
    verdict = {True: "met", False: "**missed**", None: "not measured"}
    return lines + [
        f"| {claim} | {target} | {measured} | {verdict[met]} |"
        for claim, target, measured, met in rows
    ]


def of(records: Records, posterior: str, split: str | None = None) -> Mapping[str, Any] | None:
    """The record of a posterior on a split; None: the first split there is."""
    return next(
        (r for r in records if r["posterior"] == posterior and split in (None, r["split"])), None
    )


def judged(
    claim: str,
    target: str,
    record: Mapping[str, Any],
    key: str,
    meets: Callable[[float], bool],
    form: str = ".3f",
) -> Row:
    value = record.get(key)
    return (claim, target, cell(record, key, form) or "-", None if value is None else meets(value))


def b2o3(records: Records) -> list[Row]:
    rows: list[Row] = []
    liquid, crystals = (
        of(records, "ensemble", "liquid") or {},
        of(records, "ensemble", "crystals") or {},
    )
    claim = "B2O3, liquid, ensemble: force components in the recalibrated 90 % interval"
    rows.append(
        judged(
            claim,
            "0.88 - 0.92",
            liquid,
            "coverage90_f_recal",
            lambda inside: 0.88 <= inside <= 0.92,
        )
    )
    for key, what in (
        ("pit_ks", "as predicted"),
        ("pit_ks_recal", "scaled on the calibration set"),
    ):
        rows.append(
            judged(
                f"the same: KS of the Mahalanobis PIT, {what}",
                "<= 0.05",
                liquid,
                key,
                lambda ks: ks <= 0.05,
            )
        )
    for key, what in (
        ("auroc", "forces"),
        ("auroc_energy", "the energy"),
        ("auroc_bald", "the energy over the noise (BALD)"),
        ("auroc_stress", "the stress"),
    ):
        claim = f"the same: AUROC of all crystals by the epistemic uncertainty of {what}"
        rows.append(judged(claim, ">= 0.95", crystals, key, lambda found: found >= 0.95))
    if stacked := of(records, "stacked", "crystals"):
        claim = (
            f"B2O3, ensembles of all seeds stacked ({stacked['n_members']} members): AUROC of "
            "all crystals by the energy"
        )
        rows.append(judged(claim, ">= 0.95", stacked, "auroc_energy", lambda found: found >= 0.95))
    student = of(records, "distill", "liquid")
    if student and liquid:
        loss = (student["nll_f"] - liquid["nll_f"]) / abs(liquid["nll_f"])
        text = (
            f"{100 * loss:+.1f} % ({student['nll_f']:.2f} against {liquid['nll_f']:.2f}), at "
            f"{student['md_cost']:.2f} of a member's step"
        )
        rows.append(
            (
                "B2O3, liquid, distilled: force NLL against the ensemble's, at one member's cost",
                "within 10 %",
                text,
                loss <= 0.1,
            )
        )
    return rows


def accuracy(records: Records, title: str, single: str, ensemble: str) -> list[Row]:
    """Loss of accuracy of NLL_JEF against MSE, in distribution."""
    rows: list[Row] = []
    for mse, jef, what in ((single, "single-jef", "one member"), (ensemble, "DE-JEF", "ensembles")):
        pair = of(records, mse), of(records, jef)
        if pair[0] and pair[1]:
            losses = {key: pair[1][key] / pair[0][key] - 1 for key in ("rmse_e", "rmse_f")}
            text = f"energy {100 * losses['rmse_e']:+.0f} %, force {100 * losses['rmse_f']:+.0f} %"
            rows.append(
                (
                    f"{title}, {what}: RMSE of NLL_JEF over that of MSE",
                    "< +10 %",
                    text,
                    max(losses.values()) < 0.1,
                )
            )
    return rows


def bald(records: Records) -> list[Row]:
    """Labels that BALD needs for the error of random choice at 1200 K, at every N of random
    but the smallest; judged by the mean curves.

    Of the comparison with the fewest members, which has the most seeds.
    """
    rows: list[Row] = []
    same = [
        record
        for record in records
        if record["n_members"] == min(record["n_members"] for record in records)
    ]
    for plain, other in (("rng", "hb_ef"), ("random", "bald-joint")):
        reached = {key: labels_needed(same, plain, other, "1200 K", key) for key in ERRORS}
        if sizes := sorted(reached["rmse_f"])[1:]:
            text = "; ".join(
                f"{what} {', '.join(str(reached[key][n]) for n in sizes)}"
                for key, what in ERRORS.items()
            )
            met = all(
                found[n].mean is not None and found[n].mean <= n / 2
                for found in reached.values()
                for n in sizes
            )
            seeds = " / ".join(str(len(reached["rmse_f"][n].seeds)) for n in sizes)
            claim = (
                f"3BPA at 1200 K: N of {NAMES[other]} with the error of {NAMES[plain]} at N = "
                f"{', '.join(map(str, sizes))} ({seeds} seeds)"
            )
            rows.append((claim, "half", text, met))
    return rows


if __name__ == "__main__":
    main()
