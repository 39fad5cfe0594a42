"""B2O3, liquid -> crystals: every posterior, trained on the liquid alone, judged on it, on
the glass and on three crystals.

    python benchmarks/uq/b2o3.py --data DATA        continues where it stopped; writes
                                                    results/b2o3.json and .md

One ensemble is trained for each seed. The first member of the first is what swag, ivon,
laplace, llpr and shallow are fitted to, distill is fitted to that ensemble, `single` is
the first member of each, and `stacked` has the members of all. The evidential model is
trained on its own. Recalibration is fitted on every second held-out liquid frame and
judged on the others.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
from result_tables import pooled, table, write
from study import METRICS, Study, arguments, say, seconds

CRYSTALS = {"alpha": "crystal_alpha", "beta": "crystal_beta", "40 GPa": "crystal_highP_40GPa"}
SINGLE = "single"
ERRORS = (
    *("rmse_e", "rmse_f", "rmse_s", "nll_f", "auroc_error_f", "auroc_error_f_ideal"),
    *("auroc_error_f_trivial", "ause_f", "train_s", "md_cost", "md_cost_mean"),
)
CALIBRATION = (
    *("ce_e", "ce_e_floor", "ce_e_recal", "ce_f", "ce_f_floor", "ce_f_recal"),
    *("coverage90_e", "coverage90_e_recal", "coverage90_f", "coverage90_f_recal"),
    *("coverage90_p", "coverage90_s", "pit_ks", "pit_ks_floor", "pit_ks_recal"),
)
DETECTION = (
    *("auroc", "auroc_ideal", "auroc_energy", "auroc_bald", "auroc_stress"),
    *("auroc_trivial", "auroc_by_energy", "auroc_by_density", "auroc_by_nearest"),
)


def main() -> None:
    args, options = arguments("b2o3", __doc__)
    study = Study(args.out, options["bootstrap"], options["timing"])
    data = prepare(args.data / "b2o3", args.out / "data", options)
    splits = {"liquid": [data["liquid"]], "glass": [data["glass"]]}
    splits |= {name: [data[name]] for name in CRYSTALS} | {
        "crystals": [data[name] for name in CRYSTALS]
    }
    step = ase.io.read(data["liquid"], index=0)
    records: list[dict[str, Any]] = []

    def judge(name: str, runs: Sequence[Path], train_s: float) -> None:
        cost = study.cost(name, runs[0], single, step)
        judged = [
            study.evaluate(
                run.name, run, splits, ["glass", *CRYSTALS, "crystals"], [data["calibration"]]
            )
            for run in runs
        ]
        for same in zip(*judged, strict=True):
            record = pooled(same, METRICS) if len(runs) > 1 else same[0]
            records.append(record | cost | {"posterior": name, "train_s": train_s})
        write(args.results, "b2o3", records, draw)

    config = {key: options[key] for key in ("data", "model", "train")} | {
        "data": options["data"] | {"train": [str(data["train"])]}
    }
    members, (first, *others) = options["members"], options["seeds"]
    model = config["model"] | {"n_members": members}
    ensembles = [
        study.train(
            "ensemble" + f"-seed-{seed}" * (seed != first),
            config | {"model": model, "train": config["train"] | {"seed": seed}},
        )
        for seed in (first, *others)
    ]
    singles = [
        study.fit(run.name.replace("ensemble", SINGLE), "ensemble", [run], take=0)
        for run in ensembles
    ]
    ensemble, single = ensembles[0], singles[0]
    share = seconds(ensemble) / members  # members are trained together: the single model's part
    judge(SINGLE, singles, share)
    judge("ensemble", ensembles, seconds(ensemble))
    if others:
        stacked = study.fit("stacked", "ensemble", ensembles)
        judge("stacked", [stacked], seconds(stacked))
    student = study.fit("distill", "distill", [ensemble], **options["distill"])
    judge("distill", [student], seconds(student))
    for name, changes in options["fits"].items():
        run = study.fit(name, name, [single], **changes)
        judge(name, [run], share + seconds(run, own=True))
    evidential = {
        "model": config["model"] | {"head": "evidential"},
        "train": config["train"] | options["evidential"],
    }
    own = study.train("evidential-run", config | evidential)
    judge("evidential", [study.fit("evidential", "evidential", [own])], seconds(own))
    say(f"done: {args.results / 'b2o3.md'}")


def prepare(source: Path, folder: Path, options: Mapping[str, Any]) -> dict[str, Path]:
    """Writes the sets: train, calibration and liquid (the two halves of the held-out
    liquid), glass and the crystals.
    """
    folder.mkdir(parents=True, exist_ok=True)
    liquid, stride = {"train": [], "val": []}, options["stride"]
    for kelvin, n_frames in options["frames"].items():
        for part in liquid:
            frames = ase.io.read(source / f"B2O3_liquid_{kelvin}K_{part}.extxyz", index=":")
            if part == "train":
                frames = [
                    frames[k] for k in np.linspace(0, len(frames) - 1, n_frames).round().astype(int)
                ]
            liquid[part] += frames
    sets = {
        "train": liquid["train"],
        "calibration": liquid["val"][:: 2 * stride],
        "liquid": liquid["val"][1 :: 2 * stride],
    }
    for name, file in {"glass": "glass_300K", **CRYSTALS}.items():
        sets[name] = ase.io.read(source / f"B2O3_{file}_val.extxyz", index=f"::{stride}")
    paths = {name: folder / f"{name.replace(' ', '')}.extxyz" for name in sets}
    for name, path in paths.items():
        if not path.exists():
            ase.io.write(path, sets[name])
    return paths


def draw(records: Sequence[Mapping[str, Any]]) -> list[str]:
    """The tables."""

    def of(*splits: str) -> list[Mapping[str, Any]]:
        return [record for split in splits for record in records if record["split"] == split]

    lines = ["# B2O3, liquid -> crystals", ""]
    lines += [
        "Errors in meV/atom, meV/A and meV/A^3; an MD step in those of one member without "
        "uncertainty. `single` is one member of the"
    ]
    lines += [
        "ensemble; ±: half the range over seeds; recalibrated: isotonic, scaled: the whole "
        "covariance by one factor, both fitted on"
    ]
    lines += ["other liquid frames; stacked: the members of all seeds.", ""]
    lines += [
        "## In distribution: held-out liquid",
        "",
        *table(of("liquid"), {"posterior": "posterior"}, ERRORS),
        "",
    ]
    lines += [*table(of("liquid"), {"posterior": "posterior"}, CALIBRATION), ""]
    lines += ["## All crystals against the liquid", ""]
    lines += [
        *table(
            of("crystals"),
            {"posterior": "posterior"},
            ("rmse_e", "rmse_f", "rmse_s", "nll_f", *DETECTION),
        )
    ]
    lines += ["", *table(of("crystals"), {"posterior": "posterior"}, CALIBRATION), ""]
    lines += ["## Each split out of distribution", ""]
    keys = ("rmse_e", "rmse_f", "coverage90_f", "coverage90_f_recal", "nll_f", *DETECTION)
    lines += table(of("glass", *CRYSTALS), {"split": "split", "posterior": "posterior"}, keys)
    return lines


if __name__ == "__main__":
    main()
