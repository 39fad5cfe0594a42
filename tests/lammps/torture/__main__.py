"""`make torture`: everything, with a line for each block and a total. Status 0 only when
nothing crashed, hung, or was silently wrong.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

import race._race

from race.deploy.export import export_model

from ..conftest import ELEMENTS, small_model
from ..harness import Lammps, write_data
from ..systems import boron_nitride
from . import commands, data_sets, faults, interruptions, invariants, model_files, parity, physics
from .conftest import SMALL, TRAINING
from .runner import Tally, run_block
from .subjects import subjects


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--mutants", type=int, default=500)
    options = parser.parse_args()
    plugin = Path(race._race.__file__).parent / "raceplugin.so"
    total = Tally("total")
    with tempfile.TemporaryDirectory(prefix="race-torture-") as name:
        folder = Path(name)
        small, other = folder / "small.race.pt", folder / "other.race.pt"
        export_model(
            small_model(**SMALL),
            small,
            calibration={"force_std_scale": 1.3},
            summary={"training": TRAINING},
        )
        export_model(small_model(**{**SMALL, "scale": [0.1, 0.2, 0.3]}), other)
        atoms = boron_nitride((1, 1, 1))
        write_data(folder / "bn.data", atoms, ELEMENTS)
        bench = commands.Bench(small, plugin, atoms)

        def report(tally: Tally, since: float) -> None:
            nonlocal total
            print(
                f"{tally}   ({time.monotonic() - since:.0f} s)",
                *tally.trouble,
                sep="\n  ",
                flush=True,
            )
            total = total + tally

        start = time.monotonic()
        tally = run_block(
            "model files", model_files.cases(small, folder, plugin, options.seed), folder
        )
        if (folder / model_files.MARKER).exists():
            tally.wrong += 1
            tally.trouble.append("code in a model file was executed")
        report(tally, start)
        start = time.monotonic()
        report(run_block("commands by hand", commands.by_hand(bench), folder), start)
        start = time.monotonic()
        report(
            run_block(
                "commands generated",
                commands.generated(bench, options.mutants, options.seed),
                folder,
            ),
            start,
        )
        start = time.monotonic()
        report(faults.run(faults.Bench(Lammps(plugin, folder), small, other)), start)
        start = time.monotonic()
        (folder / "interruptions").mkdir()
        report(interruptions.run(folder / "interruptions", options.seed), start)
        start = time.monotonic()
        deep = folder / "deep.race.pt"
        export_model(small_model(), deep)
        made = {1: deep}
        for nu in parity.CORRELATIONS[1:]:
            made[nu] = folder / f"products-{nu}.race.pt"
            export_model(small_model(correlation=nu, gate=True), made[nu])
        report(parity.run(parity.Bench(Lammps(plugin, folder), made)), start)
        start = time.monotonic()
        report(physics.run(Lammps(plugin, folder), subjects(folder), small), start)
        start = time.monotonic()
        report(data_sets.run(folder), start)
        start = time.monotonic()
        report(invariants.run(invariants.predictors(folder), options.seed), start)
    print(total)
    return 0 if total.good == total.tried else 1


if __name__ == "__main__":
    sys.exit(main())
