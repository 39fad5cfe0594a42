"""Predictions and inference time of a trained model, in the environment of its code:

    python worker.py CODE MODEL OUT.npz [--time] FRAMES.xyz ...

Predicts by the code's ASE calculator. OUT.npz has energy_K [frames] in eV, forces_K
[atoms, 3] in eV/Angstrom and, where all is periodic, stress_K [frames, 6] in eV/Angstrom^3
in Voigt order, K counting the files. --time: `us_per_atom` instead, of the first frame of
the first file: median over calls of the processor time of the model alone, with forces, from
positions and a ready neighbour list, on one thread.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

import ase
import ase.io
import numpy as np
import torch

CALLS, SECONDS = 20, 5.0  # at least; the first half of the calls warms up


class Timed:
    """A callable whose calls are timed."""

    def __init__(self, function):
        self.function, self.seconds = function, []

    def __call__(self, *args, **kwargs):
        start = time.process_time()
        out = self.function(*args, **kwargs)
        self.seconds.append(time.process_time() - start)
        return out

    def __getattr__(self, name):
        return getattr(self.function, name)


def calculator(code: str, path: str):
    if code == "RACE":
        import race

        return race.Calculator(path)
    if code == "NequIP":
        from nequip.integrations.ase import NequIPCalculator

        if path.endswith(".pt2"):
            return NequIPCalculator.from_compiled_model(path, device="cpu")
        return NequIPCalculator._from_saved_model(path, device="cpu")
    from mace.calculators import MACECalculator

    return MACECalculator(model_paths=path, device="cpu", default_dtype="float32")


def predict(calc, frames: list[ase.Atoms]) -> dict[str, np.ndarray]:
    """energy, forces and, for periodic frames, stress."""
    periodic = all(atoms.pbc.all() for atoms in frames)
    names = ["energy", "forces", *(["stress"] if periodic else [])]
    results = []
    for atoms in frames:
        bare = ase.Atoms(atoms.numbers, atoms.positions, cell=atoms.cell, pbc=atoms.pbc)
        calc.calculate(bare, names, ["positions"])
        results.append({name: np.array(calc.results[name], dtype=float) for name in names})
    joined = {name: np.stack([one[name] for one in results]) for name in names if name != "forces"}
    return joined | {"forces": np.concatenate([one["forces"] for one in results])}


def predict_mace(model: str, frames: str, out: str) -> dict[str, np.ndarray]:
    """The same by `mace_eval_configs`, which predicts many frames at once."""
    periodic = all(atoms.pbc.all() for atoms in ase.io.iread(frames))
    options = ["--device=cpu", "--default_dtype=float32", "--batch_size=16"]
    options += ["--compute_stress"] if periodic else []
    script = str(Path(sys.executable).with_name("mace_eval_configs"))
    files = [f"--configs={frames}", f"--model={model}", f"--output={out}"]
    subprocess.run([script, *files, *options], check=True)
    done = ase.io.read(out, ":")
    found = {
        "energy": np.array([atoms.info["MACE_energy"] for atoms in done]),
        "forces": np.concatenate([atoms.arrays["MACE_forces"] for atoms in done]),
    }
    if periodic:
        stress = np.array([np.array(atoms.info["MACE_stress"]).reshape(3, 3) for atoms in done])
        found["stress"] = stress[:, [0, 1, 2, 1, 0, 0], [0, 1, 2, 2, 2, 1]]
    return found


def us_per_atom(code: str, calc, atoms: ase.Atoms) -> float:
    """Of the call of the model inside the calculator."""
    if code == "MACE":
        calc.models[0] = timed = Timed(calc.models[0])
    else:
        owner = calc.predictor if code == "RACE" else calc
        owner.model = timed = Timed(owner.model)
        if code == "RACE":
            timed.predict = Timed(timed.function.predict)
            timed = timed.predict
    n_calls, begin = 0, time.perf_counter()
    while n_calls < CALLS or time.perf_counter() - begin < SECONDS:
        calc.calculate(atoms.copy(), ["energy", "forces"], ["positions"])
        n_calls += 1
    assert len(timed.seconds) == n_calls
    return 1e6 * statistics.median(timed.seconds[n_calls // 2 :]) / len(atoms)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("code")
    parser.add_argument("model")
    parser.add_argument("out")
    parser.add_argument("frames", nargs="+")
    parser.add_argument("--time", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.serialization.add_safe_globals([slice])  # constants of e3nn 0.4.4
    if args.code == "MACE" and not args.time:
        arrays = {}
        for k, path in enumerate(args.frames):
            for name, values in predict_mace(args.model, path, f"{args.out}.xyz").items():
                arrays[f"{name}_{k}"] = values
        np.savez(args.out, **arrays)
        return
    calc = calculator(args.code, args.model)
    if args.time:
        found = us_per_atom(args.code, calc, ase.io.read(args.frames[0], 0))
        with open(args.out, "w") as file:
            json.dump({"us_per_atom": found}, file)
        return
    arrays = {}
    for k, path in enumerate(args.frames):
        for name, values in predict(calc, ase.io.read(path, ":")).items():
            arrays[f"{name}_{k}"] = values
    np.savez(args.out, **arrays)


if __name__ == "__main__":
    main()
