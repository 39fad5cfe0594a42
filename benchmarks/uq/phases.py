"""Matched studies: frames that the model does not know, and known ones of the same energy,
RMS force, density and shortest distance.

    python benchmarks/uq/phases.py        continues where it stopped; writes
                                          results/phases.json and .md

Two materials of classical potentials, a crystal over wide ranges of temperature, density and
strain with its liquid. Of each one ensemble is trained; the other posteriors are fitted to each
of its members by itself. Training, validation (which chooses the epoch), calibration (alpha,
zeta and factors) and judged frames are drawn apart. Pairs are matched by the labels, before
any model has seen them. What is judged is the exported artifact, which carries the grade.
"""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
import yaml
from classical import SCORES, Material, drawn, matched, scores
from result_tables import averaged, cell, table, write
from study import METRICS, Study, arguments, reduced, say

from race.evaluate.bootstrap import ClusteredRows
from race.evaluate.evaluated import EvaluatedModel
from race.evaluate.ood import ood_record
from race.evaluate.ranking import auroc, large_error_auroc
from race.evaluate.report import split_record
from race.evaluate.split import Split, rank_rows
from race.predict.prediction import Estimate, Labels, Prediction

NAMES = dict(zip(SCORES, ("energy", "RMS force", "density", "shortest distance"), strict=True))
KNOWN, BOTH = "known", "known and unseen"
SINGLE = "one member"
OWN = (
    *("auroc_together", "auroc_by_labels", "auroc_defect", "auroc_defect_grade"),
    *("auroc_defect_by_forces", "auroc_defect_by_nearest"),
)
BASELINES = {name: f"auroc_by_{key}" for key, name in NAMES.items()}
BASELINES |= {"all four": "auroc_together", "the best by the labels": "auroc_by_labels"}
FRAME_SCORES = {"auroc": "mean F", "auroc_max": "largest F", "auroc_energy": "E"}
FRAME_SCORES |= {"auroc_bald": "BALD of E", "auroc_grade": "grade"}
DETECTION = (
    *("auroc", "auroc_max", "auroc_energy", "auroc_bald", "auroc_grade", "auroc_trivial"),
    "auroc_observed",
)
ERRORS = (
    *("rmse_f", "auroc_error_f", "auroc_error_f_ideal", "auroc_error_f_grade"),
    *("auroc_error_f_by_forces", "auroc_error_f_by_nearest", "ause_f", "ause_f_ideal"),
    *("nll_f", "coverage90_f", "pit_ks"),
)
DEFECT = OWN[2:]


def main() -> None:
    args, options = arguments("phases", __doc__, reads_data=False)
    records: list[dict[str, Any]] = []
    for name, about in options["materials"].items():
        study = Study(args.out / name, 0, 0.0)  # intervals: of some figures alone, `together`
        files = prepare(name, options, study.out / "data")
        run = calibrated(trained(study, about, options, files), files["calibration"])
        singles = [
            study.fit(f"member-{seed}", "ensemble", [run], take=seed) for seed in options["seeds"]
        ]
        runs = {"ensemble": [study.fit("ensemble-fit", "ensemble", [run])], SINGLE: singles}
        for posterior, about_fit in options["fits"].items():
            if about_fit is not None:
                n_fits, changes = about_fit["seeds"], about_fit.get("options", {})
                runs[posterior] = [
                    study.fit(f"{posterior}-{seed}", posterior, [single], **changes)
                    for seed, single in list(zip(options["seeds"], singles, strict=True))[:n_fits]
                ]
        for title, seeds in runs.items():
            records += judged(study, name, title, seeds, files, options)
            write(args.results, "phases", records, draw)
    say(f"done: {args.results / 'phases.md'}")


def prepare(name: str, options: Mapping[str, Any], folder: Path) -> dict[str, Path]:
    """The frames of a material: train, validation, calibration, and of each study STUDY-known
    and STUDY-unseen.
    """
    about = options["materials"][name]
    material = Material(**about["potential"])
    folder.mkdir(parents=True, exist_ok=True)
    paths: dict[str, Path] = {}

    def frames(file: str, *draws: tuple[Mapping[str, Any], int]) -> Path:
        """Drawn anew only where the file is not there; its name is part of the seed."""
        path = folder / f"{file}.xyz"
        if not path.exists():
            say(f"drawing {name} {file}")
            made = []
            for k, (state, size) in enumerate(draws):
                state = {"repeat": options["repeat"]} | dict(state)
                made += drawn(material, state, size, [options["seed"], k, *path.stem.encode()])
            ase.io.write(path, made)
        return path

    for part, (n_crystal, n_liquid) in options["frames"].items():
        paths[part] = frames(part, (about["crystal"], n_crystal), (about["liquid"], n_liquid))
    for title, study in studies(name, options).items():
        repeat = study.get("repeat", options["repeat"])
        known, unseen = study["pools"]
        pools = [
            frames(
                f"crystal-{'x'.join(map(str, repeat))}-{known}",
                (about["crystal"] | {"repeat": repeat}, known),
            ),
            frames(f"{title}-{unseen}", ({"repeat": repeat} | study["unseen"], unseen)),
        ]
        paths |= pair(title, study, pools, folder)
    return paths


def studies(material: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Those of a material."""
    return {
        title: study
        for title, study in options["studies"].items()
        if study is not None and study["material"] == material
    }


def pair(
    title: str, study: Mapping[str, Any], pools: Sequence[Path], folder: Path
) -> dict[str, Path]:
    """Writes the pairs of a study: STUDY-known and STUDY-unseen."""
    paths = {f"{title}-{part}": folder / f"{title}-{part}.xyz" for part in (KNOWN, "unseen")}
    if not all(path.exists() for path in paths.values()):
        frames = [ase.io.read(path, index=":") for path in pools]
        known, unseen = (scores(pool) for pool in frames)
        rows = matched(known, unseen, study["tolerances"], study["pairs"])
        say(f"{title}: {len(rows)} pairs")
        for path, pool, taken in zip(paths.values(), frames, rows.T, strict=True):
            ase.io.write(path, [pool[k] for k in taken])
    return paths


def trained(
    study: Study, about: Mapping[str, Any], options: Mapping[str, Any], files: Mapping[str, Path]
) -> Path:
    """The ensemble of a material."""
    config = {
        "data": {"train": [str(files["train"])], "validation": [str(files["validation"])]},
        "model": options["model"] | about["model"] | {"n_members": options["members"]},
        "train": options["train"],
    }
    return study.train("ensemble", config)


def calibrated(run: Path, calibration: Path) -> Path:
    """A copy of the run whose fits read the calibration frames."""
    copy = run.with_name("calibrated")
    if not (copy / "config.yaml").exists():
        shutil.copytree(run, copy, dirs_exist_ok=True)
        config = yaml.safe_load((run / "config.yaml").read_text())
        config["data"]["validation"] = [str(calibration)]
        (copy / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    return copy


def judged(
    study: Study,
    material: str,
    title: str,
    runs: Sequence[Path],
    files: Mapping[str, Path],
    options: Mapping[str, Any],
) -> list[dict[str, Any]]:
    """Records of a posterior: of every study three, means over the runs."""
    records: list[dict[str, Any]] = []
    for name in studies(material, options):
        parts = {part: [files[f"{name}-{part}"]] for part in (KNOWN, "unseen")}
        each = [
            study.evaluate(
                f"{name}-{run.name}",
                study.export(run),
                parts,
                ["unseen"],
                further=partial(together, parts["unseen"][0], options["bootstrap"]),
            )
            for run in runs
        ]
        for same in zip(*each, strict=True):
            record = averaged(same, (*METRICS, *OWN))
            about = {"material": material, "study": name, "posterior": title}
            records.append(record | about)
    return records


def together(
    unseen: Path,
    n_resamples: int,
    source: EvaluatedModel,
    splits: Sequence[Split],
    records: list[dict[str, Any]],
) -> list[dict[str, Any]]:
    """The records of the known and the unseen frames, and one of both as one set: errors of atoms
    among all of them, and what `race evaluate` does not tell. unseen: the file of the frames.
    """
    known, other = splits
    found = ood_record([known], other, n_resamples)["interval90"]
    records[1]["interval90"] = {key: found[key] for key in FRAME_SCORES if key in found}
    both = joined(BOTH, splits)
    about = {"posterior": source.posterior, "ood": False} | source.extra
    record = reduced(about | split_record(both, {}, None, 0))
    record["interval90"] = of_errors(both, n_resamples)
    positive = np.repeat([False, True], [known.n_frames, other.n_frames])
    by_prediction, by_label = (np.stack(found, 1) for found in simple_scores(both))
    record["auroc_together"] = max(combined(each, positive) for each in (by_prediction, by_label))
    record["auroc_by_labels"] = max(side(score, positive) for score in by_label.T)
    frames = ase.io.read(unseen, index=":")
    if "defect" in frames[0].arrays:
        defect = np.concatenate([atoms.arrays["defect"] for atoms in frames]) > 0
        record |= of_defects(other, defect, record["interval90"], n_resamples)
    return [*records, record]


def of_errors(split: Split, n_resamples: int) -> dict[str, Any]:
    """Intervals of the error AUROC, by the total uncertainty and by the grade."""
    forces = split.residual("forces")
    assert forces is not None
    std, error = rank_rows(forces)
    scores = {"auroc_error_f": std}
    if split.prediction.grade is not None:
        scores["auroc_error_f_grade"] = split.prediction.grade[forces.kept]
    return {
        key: forces.frames().interval(
            lambda rows, score=score: large_error_auroc(score[rows], error[rows]),
            n_resamples=n_resamples,
        )
        for key, score in scores.items()
    }


def joined(name: str, splits: Sequence[Split]) -> Split:
    """The frames of all splits as one."""

    def cat(parts: Sequence[Any]) -> Any:
        return None if any(part is None for part in parts) else np.concatenate(parts)

    def estimate(quantity: str) -> Estimate:
        found = [getattr(split.prediction, quantity) for split in splits]
        parts = ("mean", "aleatoric", "epistemic")
        return Estimate(*(cat([getattr(each, part) for each in found]) for part in parts))

    grade = cat([split.prediction.grade for split in splits])
    labels = {
        field.name: cat([getattr(split.labels, field.name) for split in splits])
        for field in fields(Labels)
    }
    n_frames = np.cumsum([0, *(split.n_frames for split in splits)])
    labels["frame"] = cat(
        [split.labels.frame + first for split, first in zip(splits, n_frames, strict=False)]
    )
    return Split(
        name,
        Prediction(estimate("energy"), estimate("forces"), grade=grade),
        Labels(**labels),
        trivial={key: np.concatenate([s.trivial[key] for s in splits]) for key in SCORES},
        trivial_atoms={
            key: np.concatenate([s.trivial_atoms[key] for s in splits])
            for key in splits[0].trivial_atoms
        },
    )


def simple_scores(split: Split) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """SCORES of the predictions and of the labels; density and distance are the same."""
    labels, found = split.labels, [split.trivial[name] for name in SCORES]
    assert labels.forces is not None
    square = np.bincount(labels.frame, (labels.forces**2).sum(1)) / (3 * labels.n_atoms)
    return found, [labels.energy / labels.n_atoms, np.sqrt(square), *found[2:]]


def side(score: np.ndarray, positive: np.ndarray) -> float:
    """AUROC from the better side."""
    area = auroc(score, positive)
    return max(area, 1 - area)


def combined(values: np.ndarray, positive: np.ndarray, n_folds: int = 5) -> float:
    """AUROC of the best quadratic of several scores [n, k] by least squares, each frame by a fit to
    the other folds. Below one half where there is nothing to find.
    """
    scaled = (values - values.mean(0)) / np.maximum(values.std(0), 1e-12)
    i, j = np.triu_indices(values.shape[1])
    rows = np.concatenate([np.ones_like(scaled[:, :1]), scaled, scaled[:, i] * scaled[:, j]], 1)
    # Pairs stand in the same place of both halves, and stay in one fold
    fold = np.concatenate([np.arange(n) % n_folds for n in (np.sum(~positive), positive.sum())])
    found = np.zeros(len(rows))
    for k in range(n_folds):
        fitted = rows[fold != k]
        weights = np.linalg.solve(
            fitted.T @ fitted + 0.1 * np.eye(rows.shape[1]),
            fitted.T @ (2.0 * positive[fold != k] - 1),
        )
        found[fold == k] = rows[fold == k] @ weights
    return auroc(found, positive)


def of_defects(
    split: Split, defect: np.ndarray, interval: dict[str, Any], n_resamples: int
) -> dict[str, Any]:
    """AUROC of the atoms of a defect among all atoms of its frames."""
    forces, scores = split.prediction.forces, {}
    assert forces is not None
    source = "epistemic" if forces.epistemic.any() else "total"
    scores["auroc_defect"] = np.trace(getattr(forces, source), axis1=1, axis2=2)
    if split.prediction.grade is not None:
        scores["auroc_defect_grade"] = split.prediction.grade
    rows = ClusteredRows(split.labels.frame, split.n_frames)
    for key, score in scores.items():
        interval[key] = rows.interval(
            lambda drawn, score=score: auroc(score[drawn], defect[drawn]), n_resamples=n_resamples
        )
    return {key: auroc(score, defect) for key, score in scores.items()} | {
        f"auroc_defect_by_{name}": side(score, defect)
        for name, score in split.trivial_atoms.items()
    }


def draw(records: Sequence[Mapping[str, Any]]) -> list[str]:
    """The tables."""
    names = list(dict.fromkeys(record["study"] for record in records))
    posteriors = list(dict.fromkeys(record["posterior"] for record in records))
    lines = ["# Matched studies: unseen frames of known energy, force, density and distance", ""]
    lines += [
        "AUROC of the unseen frames against the known ones. Simple scores are those of the",
        "predictions, from their better side. All four: a quadratic of them, fitted to the other",
        "four fifths of the pairs, or of the labels where that finds more. By the labels: the best",
        "of the four scores that the pairs were matched by.",
        "±: half the range over the members that a posterior is fitted to. In bold: above every",
        "simple score and all four together.",
        "",
        "| score | " + " | ".join(names) + " | above |",
        "|---|" + "---|" * (len(names) + 1),
    ]
    for title, key in BASELINES.items():
        found = [merged_record(records, posteriors[0], name) for name in names]
        cells = [cell(record, key, ".3f") for record in found]
        lines.append(f"| {title} | " + " | ".join(cells) + " | |")
    for posterior in posteriors:
        found = [merged_record(records, posterior, name) for name in names]
        for key, what in FRAME_SCORES.items():
            if all(record.get(key) is None for record in found):
                continue
            above = [beats(record, key) for record in found]
            cells = [
                f"**{cell(record, key, '.3f')}**" if won else cell(record, key, ".3f")
                for record, won in zip(found, above, strict=True)
            ]
            lines.append(
                f"| {posterior}, {what} | "
                + " | ".join(cells)
                + f" | {sum(above)} of {len(above)} |"
            )
    lines += [""]
    lines += [
        "Below, errors in meV/atom and meV/A; in brackets: 90 % of resamples of the frames, the",
        "mean of the bounds over members. Error AUROC: the largest tenth of the force errors, atom",
        "by atom, known and unseen frames together, by the total uncertainty, by the grade, by the",
        "predicted force and by the nearest atom's distance. Defect AUROC: atoms of the defect",
        "among all atoms of the unseen frames, by the epistemic part, and by the same scores. By",
        "error: the AUROC that the actual RMS force error of a frame reaches.",
    ]
    for name in names:
        of = [record for record in records if record["study"] == name]
        parts = {split: [r for r in of if r["split"] == split] for split in (KNOWN, "unseen", BOTH)}
        first = of[0]
        lines += ["", f"## {name} ({first['material']}): {first['n_frames']} pairs"]
        for split, keys in (
            (KNOWN, ("rmse_e", "rmse_f", "coverage90_e", "coverage90_f")),
            ("unseen", ("rmse_e", "rmse_f", "coverage90_e", "coverage90_f")),
            ("unseen", DETECTION),
            (BOTH, ERRORS),
            (BOTH, DEFECT),
        ):
            if any(record.get(key) is not None for record in parts[split] for key in keys):
                what = {KNOWN: "known", "unseen": "unseen", BOTH: "all"}[split]
                body = table(parts[split], {what: "posterior"}, keys, intervals=True)
                lines += ["", *body]
    return lines


def merged_record(
    records: Sequence[Mapping[str, Any]], posterior: str, name: str
) -> dict[str, Any]:
    """What stands of a study in the record of the unseen frames, and in that of both."""
    out: dict[str, Any] = {}
    for split in (BOTH, "unseen"):
        for record in records:
            if (record["posterior"], record["study"], record["split"]) == (posterior, name, split):
                known = {key: value for key, value in record.items() if value is not None}
                spread = out.get("spread", {}) | record.get("spread", {})
                out |= known | {"spread": spread}
    return out


def beats(record: Mapping[str, Any], key: str) -> bool:
    """Whether a score is above every simple one, and above all of them together; not where it has
    yet to be judged.
    """
    if record.get(key) is None:
        return False
    return record[key] > hardest(record)


def hardest(record: Mapping[str, Any]) -> float:
    """The best of the simple scores and of all of them together."""
    return max(record["auroc_trivial"], record["auroc_together"])


if __name__ == "__main__":
    main()
