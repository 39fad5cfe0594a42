"""What a potential must be, whatever it was trained on (after OpenKIM's verification checks): the
same judges over models of every kind, and memory that a long run does not take.
"""

from collections.abc import Sequence
from pathlib import Path

from ..conftest import ELEMENTS
from ..harness import Lammps, write_data
from ..systems import boron_nitride
from . import bulk, pairs
from .runner import Outcome, Tally
from .subjects import Kind, Subject

STEPS = 100_000
LEAK = 1.0  # MiB that so many steps may take


def run(lammps: Lammps, models: Sequence[Subject], small: Path, n_steps: int = STEPS) -> Tally:
    """small: a model that runs fast."""
    tally = Tally("physics")
    for model in models:
        found = dict([*pairs.checks(lammps, model), *bulk.checks(lammps, model)])
        assert list(found) == names(model.kind)
        for name, verdict in found.items():
            tally.count(f"{name} of {model.name}", Outcome(energy=0.0), verdict)
    tally.count("memory", Outcome(energy=0.0), memory(lammps, small, n_steps))
    return tally


def names(kind: Kind) -> list[str]:
    return [*pairs.names(kind), *bulk.names(kind)]


# Resident memory in MiB after each tenth of a run.
LONG = """
import json, sys
from lammps import lammps
lmp = lammps(cmdargs=["-log", "none", "-screen", "none", "-nocite"])
lmp.commands_string(sys.argv[1])
resident = []
for _ in range(10):
    lmp.command(f"run {int(sys.argv[2]) // 10}")
    resident.append(int(open("/proc/self/statm").read().split()[1]) * 4096 / 2**20)
print("ROWS", json.dumps(resident), flush=True)
"""


def memory(lammps: Lammps, model: Path, n_steps: int) -> str:
    """Dynamics with uncertainties on every tenth step takes no more memory at its end than
    after a tenth of it.
    """
    write_data(lammps.folder / "long.data", boron_nitride((1, 1, 1)), ELEMENTS)
    head = pairs.HEAD.format(boundary="p p p", data="long.data", plugin=lammps.plugin, pair=model)
    head += (
        "compute u all race/atom force/cov\ncompute s all reduce max c_u[1]\nthermo_style "
        "custom step pe c_s\nthermo 10\n"
    )
    head += "velocity all create 50 3\ntimestep 0.0001\nfix n all nvt temp 50 50 0.01\n"
    (resident,) = pairs.rows_of(lammps, LONG, head, str(n_steps), timeout=900.0)
    taken = resident[-1] - resident[0]
    return "" if taken < LEAK else f"{taken:.2f} MiB in {n_steps * 9 // 10} steps: {resident}"
