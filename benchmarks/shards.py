"""Time of a training step whose batch comes from shards, against one from memory.

    python benchmarks/shards.py [--model small] [--frames 24] [--rounds 5] [--threads 1]

Rattled copper of 32 atoms with EMT's labels, four frames a step. Epochs from memory and from disk
take turns; medians of the processor's seconds, so that other work on the machine does not count.
The shards are in the system's cache of files, as those of a training are after its first epoch
where memory allows: a slow disk is not measured.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import ase.build
import ase.io
import torch
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator

from race.config import Config
from race.presets import preset
from race.train.members import initial_model
from race.train.prepare import prepare
from race.train.reading import DTYPES
from race.train.shards import build
from race.train.trainer import Trainer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="small", help="size: small, medium or large")
    parser.add_argument("--frames", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        ase.io.write(folder / "a.xyz", [labelled(seed) for seed in range(options.frames)])
        trainers = {kind: trainer(folder, kind, options.model) for kind in ("memory", "shards")}
        seconds: dict[str, list[float]] = {kind: [] for kind in trainers}
        for k in range(options.rounds + 1):
            for kind, of in trainers.items():
                plan = of.train_set.plan(4, 0, k)
                start = time.process_time()
                for indices in plan:
                    of.step(of.train_set.batch(indices))
                if k:  # the first builds graphs, and warms the machine up
                    seconds[kind].append((time.process_time() - start) / len(plan))
    memory, shards = (statistics.median(seconds[kind]) for kind in ("memory", "shards"))
    print(
        f"{options.model}: {1e3 * memory:.1f} ms a step from memory, {1e3 * shards:.1f} from "
        f"shards, {100 * (shards / memory - 1):+.1f} %"
    )


def labelled(seed: int) -> ase.Atoms:
    atoms = ase.build.bulk("Cu", cubic=True) * 2
    atoms.rattle(0.1, seed=seed)
    atoms.calc = EMT()
    energy, forces = atoms.get_potential_energy(), atoms.get_forces()
    atoms.calc = SinglePointCalculator(atoms, energy=energy, forces=forces)
    return atoms


def trainer(folder: Path, kind: str, size: str) -> Trainer:
    data = {"train": [folder / "a.xyz"]} | ({"shards": folder / "s"} if kind == "shards" else {})
    given = {"data": data, "model": preset(size), "train": {"epochs": 1000}}
    config = Config.model_validate(given)
    if kind == "shards":
        build(config)
    prepared = prepare(config)
    resolved = prepared.config
    model = initial_model(resolved.model, resolved.constants, 0, DTYPES[resolved.train.dtype])
    (folder / kind).mkdir()
    return Trainer(resolved, model, prepared.train, prepared.validation, folder / kind)


if __name__ == "__main__":
    main()
