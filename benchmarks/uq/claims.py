"""What was to be reached, and whether the committed records reach it.

python benchmarks/uq/claims.py        writes results/claims.md from the JSON files beside it
"""

import argparse
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import phases as matched
from acquisition import ERRORS, NAMES, labels_needed
from result_tables import cell, read

RESULTS = Path(__file__).resolve().parent / "results"
Records = Sequence[Mapping[str, Any]]
SCORES = {"auroc": "F", "auroc_max": "largest F", "auroc_energy": "E", "auroc_bald": "BALD"}
SCORES |= {"auroc_grade": "grade"}
BASELINES = {key: "auroc_trivial" for key in SCORES} | {"auroc_stress": "auroc_trivial"}
BASELINES |= {"auroc_error_f": "auroc_error_f_trivial"}


class Row(NamedTuple):
    """met: None where it is not measured, or how many of how many that stand in `measured`;
    baseline: what a score that knows nothing reaches; floor: what chance alone leaves.
    """

    claim: str
    target: str
    measured: str
    met: bool | tuple[int, int] | None
    seeds: int = 1
    baseline: str = ""
    floor: str = ""


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
    names = ("converged", "phases", "b2o3", "threebpa", "rmd17", "acquisition")
    records = {name: read(folder / f"{name}.json") for name in names}
    rows = [*converged(records["converged"]), *phases(records["phases"])]
    rows += b2o3(records["b2o3"])
    for name, title, points in (
        ("threebpa", "3BPA", ("point", "ensemble")),
        ("rmd17", "rMD17 ethanol", ("RACE", "Ensemble")),
    ):
        rows += accuracy(records[name], title, *points)
    rows += bald(records["acquisition"])
    lines = [
        "±: half the range over seeds, whose mean is judged; a figure without it is of one seed. "
        "In brackets: the range of single seeds. Baseline: the best score that knows nothing; "
        "floor: what chance leaves. Not judged: the figure, or its floor, was not recorded.",
        "",
    ]
    lines += ["| claim | target | measured | seeds | baseline | floor | |", "|---|" + "---|" * 6]
    return lines + [
        f"| {row.claim} | {row.target} | {row.measured} | {row.seeds} | {row.baseline or '-'} | "
        f"{row.floor or '-'} | {verdict(row.met)} |"
        for row in rows
    ]


def verdict(met: bool | tuple[int, int] | None) -> str:
    """In words."""
    if met is None:
        return "not judged"
    reached, among = met if isinstance(met, tuple) else (int(met), 1)
    if reached in (0, among):
        return "met" if reached else "**missed**"
    return f"met by {reached} of {among}"


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
    return Row(
        claim,
        target,
        cell(record, key, form) or "-",
        None if value is None else meets(value),
        record.get("seeds", 1),
        cell(record, BASELINES.get(key, ""), form),
        cell(record, f"{key.removesuffix('_recal')}_floor", ".4f" if "ce" in key else form),
    )


def within_floors(claim: str, record: Mapping[str, Any], key: str) -> Row:
    """A calibration error, to which chance gives `floor`."""
    floor = record.get(f"{key}_floor")
    row = judged(claim, "<= 2 floors", record, key, lambda ce: ce <= 2 * (floor or 0), ".4f")
    return row if floor is not None else row._replace(met=None)


def converged(records: Records) -> list[Row]:
    """The committed models: one row for all posteriors, met by so many of them."""
    rows: list[Row] = []
    for name, split in dict.fromkeys((r["set"], r["split"]) for r in records):
        of = [r for r in records if (r["set"], r["split"]) == (name, split)]
        title = f"{name}, {split}, a converged model"
        if of[0]["ood"]:
            rows.append(detected(f"{title}: AUROC by the best score of each posterior", of))
        else:
            for key, what in (("coverage90_e", "energies"), ("coverage90_f", "force components")):
                claim = f"{title}: {what} in the 90 % interval"
                rows += twice(claim, "0.88 - 0.92", of, key, lambda r, x: 0.88 <= x <= 0.92)
            claim = f"{title}: KS of the Mahalanobis PIT"
            rows += twice(claim, "<= 0.03", of, "pit_ks", lambda r, x: x <= 0.03)
            for key, what in (("ce_e", "energies"), ("ce_f", "force components")):

                def calibrated(record: Mapping[str, Any], ce: float, key: str = key) -> bool:
                    return ce <= 2 * record[f"{key}_floor"]

                rows += twice(f"{title}: CE of {what}", "<= 2 floors", of, key, calibrated)
        claim = f"{title}: AUROC of large force errors, atom by atom"
        rows.append(each(claim, ">= 0.9", of, "auroc_error_f", lambda r, x: x >= 0.9))
        by = {record["posterior"]: record for record in of}
        if {"distill", "ensemble"} <= by.keys():
            rows += distilled(title, by["distill"], by["ensemble"])
    return rows


def phases(records: Records) -> list[Row]:
    """The matched studies: what each posterior reaches in each, and what one and the same score of
    one posterior reaches in all.
    """
    names = list(dict.fromkeys(record["study"] for record in records))
    posteriors = list(dict.fromkeys(record["posterior"] for record in records))
    seeds = max((record.get("seeds", 1) for record in records), default=1)
    rows: list[Row] = []
    of = {
        (posterior, name): matched.merged_record(records, posterior, name)
        for posterior in posteriors
        for name in names
    }
    for name in names:
        hardest = [
            record | {"auroc_trivial": matched.hardest(record)}
            for record in (of[posterior, name] for posterior in posteriors)
            if record
        ]
        claim = f"Matched frames, {name}: AUROC by the best score of each posterior"
        rows.append(detected(claim, hardest)._replace(seeds=seeds))
        together = [r for r in records if (r["study"], r["split"]) == (name, matched.BOTH)]
        claim = f"Matched frames, {name}: AUROC of large force errors, atom by atom"
        row = each(claim, ">= 0.9", together, "auroc_error_f", lambda r, x: x >= 0.9)
        rows.append(row._replace(seeds=seeds))
    # Of those above in as many, the one that is above by the most where it is least above
    won: dict[tuple[str, str], tuple[int, float]] = {}
    for posterior, key in ((posterior, key) for posterior in posteriors for key in SCORES):
        found = [of[posterior, name] for name in names]
        if all(record.get(key) is not None for record in found):
            margin = min(record[key] - matched.hardest(record) for record in found)
            won[posterior, key] = sum(matched.beats(record, key) for record in found), margin
    if won:
        (posterior, key), (count, _) = max(won.items(), key=lambda item: item[1])
        text = f"{posterior} by {SCORES[key]}: {count} of {len(names)}"
        claim = "Matched frames: studies in which one and the same score is the best"
        target = "4 of 5 above every trivial score"
        rows.append(Row(claim, target, text, count >= 0.8 * len(names), seeds))
    return rows


def each(
    claim: str,
    target: str,
    records: Records,
    key: str,
    meets: Callable[[Mapping[str, Any], float], bool],
) -> Row:
    """What each posterior reaches. Baseline and floor are those of the first: they hardly
    depend on the posterior.
    """
    form = ".4f" if key.startswith("ce") else ".3f"
    first = judged(claim, target, records[0], key, lambda value: True, form)
    known = [record for record in records if record.get(key) is not None]
    return first._replace(
        measured="; ".join(f"{r['posterior']} {cell(r, key, form)}" for r in known),
        met=(sum(meets(r, r[key]) for r in known), len(known)) if known else None,
    )


def twice(
    claim: str,
    target: str,
    records: Records,
    key: str,
    meets: Callable[[Mapping[str, Any], float], bool],
) -> list[Row]:
    """As predicted, and recalibrated on other frames."""
    return [
        each(f"{claim}, {how}", target, records, name, meets)
        for name, how in ((key, "as predicted"), (f"{key}_recal", "recalibrated"))
        if any(record.get(name) is not None for record in records)
    ]


def detected(claim: str, records: Records) -> Row:
    """OOD detection by the best score of each posterior, against the best trivial one."""
    best = [max(SCORES, key=lambda key, r=record: r.get(key) or 0.0) for record in records]
    pairs = list(zip(records, best, strict=True))
    return Row(
        claim,
        "above every trivial score",
        "; ".join(f"{r['posterior']} {r[key]:.3f} ({SCORES[key]})" for r, key in pairs),
        (sum(r[key] > r["auroc_trivial"] for r, key in pairs), len(pairs)),
        max(record.get("seeds", 1) for record in records),
        baseline=cell(records[0], "auroc_trivial", ".3f"),
    )


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
        ("pit_ks_recal", "recalibrated"),
    ):
        rows.append(
            judged(
                f"the same: KS of the Mahalanobis PIT, {what}",
                "<= 0.03",
                liquid,
                key,
                lambda ks: ks <= 0.03,
            )
        )
    for key, what in (("ce_e", "energies"), ("ce_f", "force components")):
        rows.append(within_floors(f"the same: CE of {what}", liquid, key))
    claim = "the same: AUROC of large force errors, atom by atom"
    rows.append(judged(claim, ">= 0.9", liquid, "auroc_error_f", lambda found: found >= 0.9))
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
    if student := of(records, "distill", "liquid"):
        rows += distilled("B2O3, liquid", student, liquid)
    return rows


def distilled(title: str, student: Mapping[str, Any], teacher: Mapping[str, Any]) -> list[Row]:
    """What a distilled member loses against its ensemble, and what its step costs."""
    rows: list[Row] = []
    losses = {
        "nll_f": ("force NLL", lambda own, other: (own - other) / abs(other), ".2f"),
        "auroc_error_f": ("error AUROC", lambda own, other: (other - own) / other, ".3f"),
    }
    for key, (what, lost, form) in losses.items():
        own, other = student.get(key), teacher.get(key)
        if own is not None and other is not None:
            loss = lost(own, other)
            text = f"{own:{form}} against {other:{form}} ({100 * loss:.1f} % lost), at "
            text += f"{student['md_cost']:.2f} of a member's step"
            claim = f"{title}, distilled: {what} against the ensemble's, at one member's cost"
            rows.append(Row(claim, "within 10 %", text, loss <= 0.1, student.get("seeds", 1)))
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
                Row(
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
            n_seeds = max(len(reached["rmse_f"][n].seeds) for n in sizes)
            rows.append(Row(claim, "half", text, met, n_seeds, f"N of {NAMES[plain]}"))
    return rows


if __name__ == "__main__":
    main()
