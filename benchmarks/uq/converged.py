"""Converged models: the committed ensembles of an hour (benchmarks/accuracy/models), and what is
fitted to them or to one of their members.

    python benchmarks/uq/converged.py --data DATA        continues where it stopped; writes
                                                         results/converged.json and .md

A fit reads some of the model's training frames, and calibration frames in distribution that
neither trained the model nor chose its epoch: these decide alpha, zeta, the factors on noise
and spread and the maps of recalibration. The test frames decide nothing. The three are drawn
at random, once, by the options. What is judged is the exported artifact, which carries the
grade. The Gaussian mixture that may stand for its Mahalanobis distance is of the trunk alone:
that of one member is the score of all posteriors that are fitted to it.

The seeds are members of the committed ensemble: what is fitted to one member is fitted to each
of these by itself, and its records are means over them. The ensemble and its distilled member
are one each.
"""

import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
import yaml
from result_tables import FORMS, averaged, table, write
from study import HERE, METRICS, Study, arguments, say, seconds

from race.data import read_frames
from race.data.statistics import summary
from race.deploy.command_export import training_set
from race.deploy.export import export_model
from race.errors import RaceError
from race.posterior.protocol import Run
from race.train.run import read_summary

ACCURACY = HERE.parent / "accuracy"
sys.path.insert(0, str(ACCURACY))
import sets  # noqa: E402

MODELS = ACCURACY / "models"
SINGLE = "one member"
ERRORS = (
    *("n_members", "rmse_e", "rmse_f", "nll_e", "nll_f"),
    *("auroc_error_f", "auroc_error_f_ideal", "auroc_error_f_grade", "auroc_error_f_gmm"),
    *("auroc_error_f_by_forces", "auroc_error_f_by_nearest", "fit_s", "md_cost"),
)
CALIBRATION = (
    *("coverage90_e", "coverage90_e_recal", "coverage90_f", "coverage90_f_recal"),
    *("ce_e", "ce_e_recal", "ce_e_floor", "ce_f", "ce_f_recal", "ce_f_floor"),
    *("pit_ks", "pit_ks_recal", "pit_ks_floor"),
)
DETECTION = (
    *("auroc", "auroc_ideal", "auroc_max", "auroc_energy", "auroc_bald", "auroc_grade"),
    *("auroc_gmm", "auroc_by_energy", "auroc_by_forces", "auroc_by_nearest"),
)
OF_GMM = ("auroc_error_f", "auroc")  # of the grade, by the mixture
KEYS = (*METRICS, *(f"{name}_gmm" for name in OF_GMM), "fit_s", "md_cost", "md_cost_mean")
FORMS.update({f"{name}_gmm": ("by mixture", ".3f") for name in OF_GMM})


def main() -> None:
    args, options = arguments("converged", __doc__)
    records: list[dict[str, Any]] = []
    for name, about in options["sets"].items():
        if about is None:
            continue
        study = Study(args.out / about["model"], options["bootstrap"], options["timing"])
        files = prepare(args.data, name, about, study.out / "data", options["seed"])
        if options["verify"]:
            trained_on = read_summary(MODELS / about["model"])["training"]
            verify(study.out / "data" / "set" / "train.xyz", trained_on)
        model = Model(name, MODELS / about["model"], study, files, about["known"], [*about["ood"]])
        for title, fit in options["fits"].items():
            if fit is None:
                continue
            alone = title == SINGLE or "of" in fit
            seeds = options["seeds"] if alone else options["seeds"][:1]
            of_seeds = [model.judged(title, fit, seed) for seed in seeds]
            records += [averaged(same, KEYS) for same in zip(*of_seeds, strict=True)]
            write(args.results, "converged", records, draw)
    say(f"done: {args.results / 'converged.md'}")


@dataclass
class Model:
    """A committed ensemble and its fits.

    files: of `prepare`; known, ood: the splits; runs: of the fits, by title and seed; mixtures:
    what is judged with the mixture of a trunk for the grade, by the same.
    """

    name: str
    path: Path
    study: Study
    files: Mapping[str, Path]
    known: str
    ood: Sequence[str]
    runs: dict[tuple[str, int], Path] = field(default_factory=dict)
    mixtures: dict[tuple[str, int], dict[str, Any]] = field(default_factory=dict)

    def judged(self, title: str, fit: Mapping[str, Any], seed: int) -> list[dict[str, Any]]:
        """The records of a fit. seed: the member that it takes, itself or by its source."""
        study, calibration = self.study, self.files["calibration"]
        source = self.runs[fit["of"], seed] if "of" in fit else self.path
        if "of" not in fit or "frames" in fit:
            frames = {"drawn": self.files["fit"], "all": study.out / "data" / "set" / "train.xyz"}
            train = fit.get("frames", "drawn")
            source = copied(source, frames[train], calibration, study.out / "runs" / train)
        changes = fit.get("options", {}) | ({"take": seed} if title == SINGLE else {})
        run = f"{title}-{seed}" if seed else title
        fitted = study.fit(run.replace(" ", "-"), fit.get("posterior", title), [source], **changes)
        self.runs[title, seed] = fitted
        splits = {split: [self.files[split]] for split in (self.known, *self.ood)}
        trunk = fit.get("of", title), seed
        if trunk not in self.mixtures:
            self.mixtures[trunk] = by_mixture(study, self.runs[trunk], splits, self.ood)
        own = {"set": self.name, "posterior": title, "fit_s": seconds(fitted, own=True)}
        frame = read_frames(self.files["fit"])[0]
        own |= study.cost(fitted.name, fitted, self.runs[SINGLE, seed], frame)
        found = study.evaluate(fitted.name, study.export(fitted), splits, self.ood, [calibration])
        return [with_mixture(record | own, self.mixtures[trunk]) for record in found]


def prepare(
    data: Path, name: str, about: Mapping[str, Any], folder: Path, seed: int
) -> dict[str, Path]:
    """Draws the frames that a fit reads, those that calibrate it and those of the judged splits,
    no frame twice; returns their files. folder/set: all frames of the set.
    """
    sets.prepare(data, name, folder / "set")
    known, first = sets.file_of(about["known"]), about["calibration"]
    parts = {
        "fit": ("train.xyz", slice(about["fit"])),
        "calibration": (known, slice(first)),
        about["known"]: (known, slice(first, first + about["test"])),
        **{split: (sets.file_of(split), slice(size)) for split, size in about["ood"].items()},
    }
    paths = {part: folder / f"{part.replace(' ', '')}.xyz" for part in parts}
    for part, (file, taken) in parts.items():
        if not paths[part].exists():
            frames = ase.io.read(folder / "set" / file, index=":")
            order = np.random.default_rng(seed).permutation(len(frames))[taken]
            ase.io.write(paths[part], [frames[k] for k in order])
    return paths


def verify(path: Path, training: Mapping[str, Any]) -> None:
    """Refuses frames that are not those of a model's training, by what its summary says of them.
    (Of one model the files had other names of labels, so that their digests differ.)
    """
    found = summary(read_frames(path), training["cutoff"])
    for key in ("n_frames", "energy_per_atom", "per_element", "min_distance"):
        if not alike(found[key], training[key]):
            raise RaceError(
                "not the frames of the training",
                where=f"{path}, {key}",
                expected=training[key],
                got=found[key],
            )


def alike(a: Any, b: Any) -> bool:
    """Nested figures that are equal but for rounding."""
    if isinstance(a, Mapping):
        return a.keys() == b.keys() and all(alike(a[key], b[key]) for key in a)
    return bool(np.allclose(a, b, rtol=1e-9, atol=0))


def copied(source: Path, train: Path, calibration: Path, folder: Path) -> Path:
    """A copy of a run, with the frames of the fits for its own."""
    run = folder / source.name
    if not (run / "config.yaml").exists():
        shutil.copytree(source, run, dirs_exist_ok=True)
        config = yaml.safe_load((run / "config.yaml").read_text())
        config["data"]["train"] = [str(train)]
        config["data"]["validation"] = [str(calibration)]
        (run / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    return run


def by_mixture(
    study: Study, run: Path, splits: Mapping[str, Sequence[Path]], ood: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """What is judged of the run's artifact with the mixture for its grade, by split."""
    artifact = study.out / "artifacts" / f"{run.name}-gmm.race.pt"
    if not artifact.exists():
        say(f"exporting the mixture of {run.name}")
        artifact.parent.mkdir(parents=True, exist_ok=True)
        source = Run.load(run)
        training = training_set(source)
        export_model(
            source.model, artifact, summary=source.summary, training_set=training, grade="gmm"
        )
    judged = study.evaluate(f"{run.name}-gmm", artifact, splits, ood)
    return {record["split"]: record for record in judged}


def with_mixture(record: dict[str, Any], mixture: Mapping[str, Any]) -> dict[str, Any]:
    """A record with the mixture's scores beside the grade's."""
    other = mixture[record["split"]]
    intervals = dict(record["interval90"])
    for name in OF_GMM:
        record = record | {f"{name}_gmm": other.get(f"{name}_grade")}
        if f"{name}_grade" in other["interval90"]:
            intervals[f"{name}_gmm"] = other["interval90"][f"{name}_grade"]
    return record | {"interval90": intervals}


def draw(records: Sequence[Mapping[str, Any]]) -> list[str]:
    """The tables."""
    lines = ["# Converged models: hour-long training, posteriors fitted afterwards", ""]
    lines += [
        "Errors in meV/atom and meV/A. In brackets: 90 % of resamples of the frames. By chance:",
        "the score of calibrated predictions on so many frames. Error AUROC: the largest tenth of",
        "the force errors, atom by atom, by uncertainty, by the grade, by a Gaussian mixture in",
        "its place and by two scores that know nothing, the predicted force and the nearest atom's",
        "distance. AUROC: the split against the one in distribution, by uncertainty of F (mean",
        "over atoms, or largest), of E, by BALD, by the grade and by the mixture; and by energy,",
        "RMS force and shortest distance, each from its better side. `one member` has no epistemic",
        "part: its scores are of the total. recal.: intervals, and ellipsoids of forces, by the",
        "isotonic map of the calibration frames. What is fitted to one member is a mean over",
        "members that are taken alone, as are the bounds in brackets.",
    ]
    for name, split in dict.fromkeys((record["set"], record["split"]) for record in records):
        of = [r for r in records if (r["set"], r["split"]) == (name, split)]
        kind = ", out of distribution" if of[0]["ood"] else ""
        lines += ["", f"## {name}, {split}: {of[0]['n_frames']} frames{kind}"]
        for keys in (ERRORS, CALIBRATION, DETECTION):
            if any(record.get(key) is not None for record in of for key in keys):
                lines += ["", *table(of, {"posterior": "posterior"}, keys, intervals=True)]
    return lines


if __name__ == "__main__":
    main()
