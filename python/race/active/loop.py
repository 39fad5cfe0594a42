"""The loop: select, label, train, test, again. Every stage ends in one file that appears
whole; what has its file is not done again.

out/config.json                          what the comparison is
out/labels/HASH.json                     every label that the oracle gave, by structure
out/data/                                initial.extxyz, test-NAME.extxyz
out/seed-S/initial/                      round 0, common to all strategies
out/seed-S/STRATEGY/round-K/             explored-*.extxyz, selected.extxyz, labelled.extxyz,
                                         failed-labelled.json (labels that failed, and why),
                                         validation.extxyz, train.extxyz,
                                         run/ (as race train makes it), metrics.json
out/report.json, report.md, errors_vs_labels.png
"""

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ase
import numpy as np

from race.active import results
from race.active.calculators import Label, Oracle
from race.active.config import EXECUTION, ActiveConfig, Replay
from race.active.explore import export_run, walk
from race.active.labelling import failed_list, label_frames
from race.active.oracle import (
    FileOracle,
    is_labelled,
    label_of,
    labelled,
    make_oracle,
)
from race.active.pool import Candidate, read_pool
from race.active.scores import open_scorer
from race.active.strategies import Selector, describe
from race.config import FROM_FRAMES, Config, DataConfig
from race.data import read_frames, split_indices, validation_split
from race.data.io import write_frames
from race.data.weights import WEIGHT
from race.errors import RaceError
from race.evaluate.evaluated import evaluated_run
from race.evaluate.records import make_records
from race.files import make_folder, write_json
from race.options import read_options
from race.train.files import sha256
from race.train.training import train

logger = logging.getLogger(__name__)

EXTENDABLE = {"rounds", "strategies", "seeds"}  # what may change when a comparison is continued


DIGESTS = "files.json"  # sha256 by path, of the files that config.json names


def read_digests(out: Path) -> dict[str, str]:
    """The sha256 by path of the files that config.json of the folder names."""
    path = out / DIGESTS
    return dict(json.loads(path.read_text())) if path.exists() else {}


def with_digests(value: Any, digests: Mapping[str, str]) -> Any:
    """Options with the sha256 of a file in place of its path, where it is known."""
    if isinstance(value, list):
        return [with_digests(item, digests) for item in value]
    if isinstance(value, dict):
        return {key: with_digests(item, digests) for key, item in value.items()}
    return digests.get(value, value) if isinstance(value, str) else value


@dataclass(frozen=True)
class Round:
    """One training and what it is trained on. Number 0: the initial set, of no strategy."""

    folder: Path
    strategy: str
    seed: int
    number: int

    @property
    def run(self) -> Path:
        """The folder of the trained model."""
        return self.folder / "run"

    @property
    def draw_seed(self) -> int:
        """The seed of whatever this round draws at random."""
        return 1000 * self.seed + self.number

    def __str__(self) -> str:
        return f"{self.strategy}, seed {self.seed}, round {self.number}"


class Loop:
    """A comparison of strategies in the folder `out`; `run` does what is left of it.

    Raises:
        RaceError: `out` holds another comparison, data or an oracle that cannot be used,
            test structures in the initial set.
    """

    def __init__(self, config: ActiveConfig, out: Path):
        self.config, self.out = config, out.absolute()  # runs keep paths of it
        make_folder(out / "data")
        self._claim()
        self.keys = config.label_keys()
        self.pool = {group: read_pool(paths) for group, paths in config.pool.items()}
        files = [path for paths in config.pool.values() for path in paths]
        self.oracle = make_oracle(config.oracle, files, self.keys, out / "labels")
        self.initial = self._labelled_set(out / "data" / "initial.extxyz", config.initial)
        self.test = {
            name: self._labelled_set(out / "data" / f"test-{name}.extxyz", [path])
            for name, path in config.test.items()
        }
        self.held_out = {
            c.fingerprint: name for name, path in self.test.items() for c in read_pool([path])
        }
        for candidate in read_pool([self.initial]):
            self._refuse_held_out(candidate)

    def run(self) -> None:
        """Runs every round that is not done yet, for every seed and strategy."""
        for seed in self.config.seeds:
            base = Round(self.out / f"seed-{seed}" / "initial", "initial", seed, 0)
            self._first(base)
            last = dict.fromkeys(self.config.names, base)
            for number in range(1, self.config.rounds + 1):
                for name, strategy in zip(self.config.names, self.config.strategies, strict=True):
                    this = Round(
                        self.out / f"seed-{seed}" / name.replace("/", "_") / f"round-{number}",
                        name,
                        seed,
                        number,
                    )
                    self._round(this, last[name], base, strategy)
                    last[name] = this
                    results.write(self.out, self.config)
        results.write(self.out, self.config)
        self._say(
            f"{self.oracle.computed} labels computed in this call, {self.oracle.calls} asked for; "
            f"report: {self.out / 'report.md'}"
        )

    # ---- what is asked for, and what is there already --------------------------------------------

    def _claim(self) -> None:
        """Writes out/config.json, or refuses a folder that holds another comparison. Files are
        known by their content: config, data and folder may be copied elsewhere.
        """
        path, given = self.out / "config.json", self.config.model_dump(mode="json")
        digests = {str(file): sha256(file) for file in self.config.files() if file.is_file()}
        kept, known = None, None
        if path.exists():
            # Options that have come since: at their defaults
            kept = read_options(path, ActiveConfig).model_dump(mode="json")
            known = read_digests(self.out)
            # A comparison that began before digests were kept names files by path
            mine = digests if known else {}
            for key in given.keys() - EXTENDABLE:
                old, new = with_digests(kept.get(key), known), with_digests(given[key], mine)
                if key == "oracle":  # labels may be computed elsewhere from now on
                    old, new = (
                        {name: x for name, x in side.items() if name not in EXECUTION}
                        for side in (old, new)
                    )
                if new != old:
                    remedy = "restore it, or start another comparison with another --out"
                    if given[key] == kept.get(key):
                        raise RaceError(
                            "the data has changed since the comparison began",
                            where=f"{path}, {key}",
                            got=given[key],
                            remedy=remedy,
                        )
                    raise RaceError(
                        "differs from the comparison that is there",
                        where=f"{path}, {key}",
                        expected=kept.get(key),
                        got=given[key],
                        remedy=remedy,
                    )
        if digests != known:
            write_json(self.out / DIGESTS, digests)
        if given != kept:
            write_json(path, given)

    def _labelled_set(self, path: Path, sources: Sequence[Path]) -> Path:
        """The frames of `sources` with labels, the oracle's where they have none."""

        def make(path: Path) -> None:
            frames = [
                atoms
                for source in sources
                for atoms in read_frames(source, require=(), **self.keys)
            ]
            write_frames(path, self._label(frames, self.oracle, path))

        self._stage(path, make)
        return path

    def _stage(self, path: Path, make: Callable[[Path], None]) -> None:
        """`make` writes `path` in one step, unless that was done before."""
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            make(path)

    def _refuse_held_out(self, candidate: Candidate) -> None:
        if (name := self.held_out.get(candidate.fingerprint)) is not None:
            remedy = "test on structures that no training set has"
            raise RaceError(
                f"this structure is in the test set {name}", where=candidate.where, remedy=remedy
            )

    def _say(self, text: str) -> None:
        logger.info(text)

    # ---- rounds ----------------------------------------------------------------------------------

    def _first(self, this: Round) -> None:
        frames = read_frames(self.initial, weight_key=WEIGHT)
        self._stage(
            this.folder / "train.extxyz",
            lambda _: self._write_sets(
                this, *validation_split(frames, self.config.validation_fraction, this.seed)
            ),
        )
        self._train(this, None)

    def _round(self, this: Round, last: Round, base: Round, strategy: str | Replay) -> None:
        oracle: Oracle
        folder, sets, oracle = this.folder, last, self.oracle
        if isinstance(strategy, Replay):
            sets, oracle = base, FileOracle(self._replay_files(strategy, this.number), self.keys)
        self._stage(
            folder / "selected.extxyz",
            lambda path: write_frames(path, self._select(this, last, strategy)),
        )
        self._stage(
            folder / "labelled.extxyz",
            lambda path: write_frames(
                path, self._label(read_frames(folder / "selected.extxyz", require=()), oracle, path)
            ),
        )
        self._stage(folder / "train.extxyz", lambda _: self._grow(this, sets))
        self._train(this, last if self.config.warm_start else None)

    def _grow(self, this: Round, last: Round) -> None:
        """The sets of `last` and, divided between them once and for all, the new labels."""
        new = read_frames(this.folder / "labelled.extxyz", weight_key=WEIGHT)
        n_validation = round(self.config.validation_fraction * len(new))
        parts = split_indices(len(new), [len(new) - n_validation, n_validation], this.draw_seed)
        old = [
            read_frames(last.folder / f"{name}.extxyz", weight_key=WEIGHT)
            for name in ("train", "validation")
        ]
        self._write_sets(
            this, *(have + [new[k] for k in part] for have, part in zip(old, parts, strict=True))
        )

    def _write_sets(
        self, this: Round, training: Sequence[ase.Atoms], validation: Sequence[ase.Atoms]
    ) -> None:
        """train.extxyz comes last: where it is, both are."""
        for name, frames in (("validation", validation), ("train", training)):
            write_frames(
                this.folder / f"{name}.extxyz",
                [labelled(atoms, label_of(atoms)) for atoms in frames],
            )

    # ---- choosing and labelling ------------------------------------------------------------------

    def _select(self, this: Round, last: Round, strategy: str | Replay) -> list[ase.Atoms]:
        """Structures to label, with info keys that say why."""
        if isinstance(strategy, Replay):
            return self._replayed(this, strategy)
        known = read_pool([last.folder / "train.extxyz", last.folder / "validation.extxyz"])
        failed = self._failed(this)
        model = open_scorer(last.run, self.config.train.batch_size, self.config.train.device)
        out: list[ase.Atoms] = []
        for group, frames in (
            self._explore(this, last) if self.config.explore else self.pool
        ).items():
            candidates = [
                candidate
                for candidate in frames
                if candidate.fingerprint not in self.held_out | failed.keys()
            ]
            budget = self.config.budget_of(this.number)
            if self.config.explore:  # a trajectory may have ended early
                budget = min(budget, len(candidates))
            left_out = len(frames) - len(candidates)
            self._say(
                f"{this}: choosing {budget} of {len(candidates)} frames of {group}"
                + f" ({left_out} left out: of test sets, or without a label before)"
                * bool(left_out)
            )
            selector = Selector(
                strategy, budget, this.draw_seed, self.config.min_distance, self.config.features
            )
            choices = selector.select(candidates, model, known)
            if not choices:
                raise RaceError(
                    "no new frame to label",
                    where=f"{this}, {group}",
                    remedy="use fewer rounds or a larger pool",
                )
            for choice in choices:
                candidate = candidates[choice.index]
                atoms, temperature = candidate.bare, candidate.atoms.info.get("temperature")
                atoms.info = describe(choice, candidate, strategy) | (
                    {} if temperature is None else {"temperature": temperature}
                )
                out.append(atoms)
                known.append(candidate)
        return out

    def _replay_files(self, strategy: Replay, number: int) -> list[Path]:
        files = strategy.replay[number - 1]
        return files if isinstance(files, list) else [files]

    def _replayed(self, this: Round, strategy: Replay) -> list[ase.Atoms]:
        """The frames of this round's files that the initial set does not have."""
        seen = {candidate.fingerprint for candidate in read_pool([self.initial])}
        out = []
        for candidate in read_pool(self._replay_files(strategy, this.number)):
            if candidate.fingerprint in seen:
                continue
            self._refuse_held_out(candidate)
            seen.add(candidate.fingerprint)
            atoms = candidate.bare
            atoms.info = {
                "race_strategy": strategy.name,
                "race_source": candidate.source.name,
                "race_frame": candidate.index,
            }
            out.append(atoms)
        if not out:
            raise RaceError("its files have no frame that the initial set lacks", where=str(this))
        self._say(f"{this}: {len(out)} frames replayed")
        return out

    def _explore(self, this: Round, last: Round) -> dict[str, list[Candidate]]:
        """Frames of dynamics with the last round's model, one file per trajectory."""
        explore = self.config.explore
        assert explore is not None
        this.folder.mkdir(parents=True, exist_ok=True)
        starts = read_frames(last.folder / "train.extxyz")
        order = np.random.RandomState(this.draw_seed).permutation(len(starts))
        artifact = export_run(last.run, this.folder / "model.race.pt")
        paths = [this.folder / f"explored-{k}.extxyz" for k in range(explore.n_walkers)]
        for k, path in enumerate(paths):
            if not path.exists():
                self._say(f"{this}: dynamics {k + 1} of {len(paths)} at {explore.temperature:g} K")
                write_frames(
                    path,
                    walk(
                        starts[order[k % len(starts)]], artifact, explore, 1000 * this.draw_seed + k
                    ),
                )
        walked = [path for path in paths if path.stat().st_size]
        if not walked:
            raise RaceError(
                "no trajectory gave a frame",
                where=str(this),
                remedy="lower explore.temperature, timestep or every",
            )
        return {"dynamics": read_pool(walked)}

    def _label(self, frames: Sequence[ase.Atoms], oracle: Oracle, path: Path) -> list[ase.Atoms]:
        """As `label_frames`; frames that have labels keep them, unless another oracle is asked."""

        def own(atoms: ase.Atoms) -> Label | None:
            return label_of(atoms) if is_labelled(atoms) and oracle is self.oracle else None

        return label_frames(frames, oracle, self.config.oracle, path, own)

    def _failed(self, this: Round) -> dict[str, str]:
        """Structures whose label failed in earlier rounds of the strategy: fingerprint ->
        reason. They are not chosen again.
        """
        earlier = [this.folder.parent / f"round-{k}" for k in range(1, this.number)]
        lists = [failed_list(folder / "labelled.extxyz") for folder in earlier]
        return {
            entry["fingerprint"]: entry["reason"]
            for path in lists
            if path.exists()
            for entry in json.loads(path.read_text())
        }

    # ---- training and judging --------------------------------------------------------------------

    def _train(self, this: Round, warm: Round | None) -> None:
        """Trains and judges on the test sets; metrics.json is the last file of a round."""
        if (this.folder / "metrics.json").exists():
            return
        options = self.config.train if this.number == 0 else self.config.retrained()
        training, validation = (this.folder / f"{name}.extxyz" for name in ("train", "validation"))
        # Weights go on with the E0 that they were trained with, unless the user names others.
        own = warm is None or "atomic_energies" in self.config.data
        energies = {"atomic_energies": self._atomic_energies()} if own else {}
        kept = {key: x for key, x in self.config.data.items() if key in ("accept", "baseline")}
        given = {"weight_key": WEIGHT} | kept | energies
        config = Config(
            data=DataConfig(train=[training], validation=[validation], **given),
            model=self.config.model,
            train=options.model_copy(
                update={
                    "seed": options.seed + this.seed * self.config.model.n_members,
                    "warm_start": warm.run if warm else options.warm_start,
                }
            ),
        )
        self._say(f"{this}: training" + " from the last round's weights" * bool(warm))
        train(config, this.run, resume=True)
        source = evaluated_run(this.run, options.batch_size, options.device)
        splits = []
        for name, path in self.test.items():
            frames = source.read(path)
            splits.append(source.split(name, frames, name in self.config.ood))
        n_train, n_validation = (len(read_pool([path])) for path in (training, validation))
        content = {
            "strategy": this.strategy,
            "seed": this.seed,
            "round": this.number,
            "n_labels": n_train + n_validation,
            "n_train": n_train,
            "records": make_records(source, splits, {}, None, self.config.bootstrap),
        }
        write_json(this.folder / "metrics.json", content)

    def _atomic_energies(self) -> Any:
        """As `race train` takes them, a file being read with the keys of the user's files:
        the loop's own have ASE's.
        """
        given = self.config.data.get("atomic_energies", "least_squares")
        if isinstance(given, dict) or given in FROM_FRAMES:
            return given
        keys = {key: value for key, value in self.keys.items() if key in ("energy_key", "units")}
        return {
            atoms.get_chemical_symbols()[0]: atoms.info["energy"]
            for atoms in read_frames(given, require=("energy",), **keys)
        }
