"""What an energy without forces costs, as trial moves of Monte Carlo ask for it: in librace, and
in LAMMPS under fix atom/swap.

    python benchmarks/energy_only.py [--quick]
"""

import tempfile
from functools import partial
from pathlib import Path

import arguments
import in_lammps
import race._race
import race_models
import systems
import torch
from race_worker import Graph
from timer import seconds_per_call

QUICK = (("small", 1),)
MODELS = (*QUICK, ("l2", 1), ("l2", 8))
Both = tuple[float, float]
TRIALS = 9  # moves of a step; with the energy before them, ten evaluations


def in_librace(folder: Path, size: str, members: int, system: str, seconds: float) -> Both:
    """Microseconds per atom: energy and forces, energy alone."""
    model = race._race.load(str(race_models.artifact(folder, size, members)))
    graph = Graph(str(systems.write(folder / f"{system}.npz", system)))
    arguments = (graph.species, graph.edge_vector(graph.positions), graph.sender, graph.row_ptr)

    def us_per_atom(forces: bool) -> float:
        call = partial(model.predict, *arguments, forces=forces)
        return 1e6 * seconds_per_call(call, seconds) / graph.n_atoms

    return us_per_atom(True), us_per_atom(False)


def in_simulation(folder: Path, size: str, members: int, system: str, steps: int) -> Both:
    """The same of pair style and messages in LAMMPS: a step of NVE, and one evaluation of ten
    that fix atom/swap adds to it.
    """
    artifact, atoms = race_models.artifact(folder, size, members), systems.structure(system)
    plain, swaps = (
        in_lammps.simulate(folder, atoms, artifact, steps, trials=trials)["Loop"]
        for trials in (0, TRIALS)
    )
    unit = 1e6 / steps / len(atoms)
    return plain * unit, (swaps - plain) / (TRIALS + 1) * unit


def main() -> None:
    quick = arguments.quick(__doc__)
    torch.set_num_threads(1)
    system = "Si-64" if quick else "Si-512"
    print("us/atom, one thread, float32       with forces   energy alone   ratio")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for size, members in QUICK if quick else MODELS:
            for where, both in (
                ("librace", in_librace(folder, size, members, system, 0.1 if quick else 10)),
                ("LAMMPS", in_simulation(folder, size, members, system, 3 if quick else 50)),
            ):
                full, alone = both
                print(
                    f"{system} {size:5} {members} member(s) {where:8} {full:13.1f} {alone:14.1f} "
                    f"{alone / full:7.2f}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
