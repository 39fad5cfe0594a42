"""Strong and weak scaling of pair_style race on one and two ranks, and a fit of what a step
takes: for idle cores, minutes.

    python benchmarks/scaling/times.py            # writes times.json, which projection.py
                                                  reads, and the table in README.md
    python benchmarks/scaling/times.py --quick    # tries it on small boxes: prints, writes nothing

Silicon and model as in silicon.py, one member, float32, one thread per rank; NVE at 300 K
with LAMMPS's own rebuilding of neighbor lists. Of several rounds the fastest counts.
Communication is what LAMMPS says of its own (`Comm` of its timing breakdown: positions
and forces of ghosts) and what the exchanges of features inside `Pair` take by the pair
style's clock, averaged over ranks; waiting for a slower rank is in both. Step times are
fitted, to least relative squares and with no coefficient below 0, by

    seconds per step = a n_owned + b n_ghost + c,   of the fullest rank.
"""

import json
import re
import sys
import tempfile
from pathlib import Path

import numpy as np
from scipy.optimize import nnls
from silicon import START, export, results, run, stamp, write_data

import arguments  # isort: skip
from pages import fill  # isort: skip

HERE = Path(__file__).parent
# Copies of the cubic cell of 8 atoms along x, y, z, and ranks.
CASES = [
    ((3, 3, 3), 1),
    ((4, 4, 4), 1),
    ((6, 5, 4), 1),
    ((6, 6, 6), 1),
    ((4, 4, 4), 2),
    ((8, 4, 4), 2),
    ((6, 6, 6), 2),
    ((12, 6, 6), 2),
]
QUICK = [((2, 2, 2), 1), ((3, 3, 3), 1), ((4, 3, 3), 1), ((4, 3, 3), 2), ((6, 3, 3), 2)]
DYNAMICS = """
velocity all create 300 7 loop geom
timestep 0.001
thermo 1000000
"""
DRIVER = """
import json, sys
from lammps import lammps
steps, rounds = int(sys.argv[1]), int(sys.argv[2])
lmp = lammps(cmdargs=["-log", "none", "-nocite"])
lmp.commands_string(open("in.times").read())
lmp.command("run 5")
halo = []
for _ in range(rounds):
    before = lmp.extract_pair("halo_seconds")
    lmp.command(f"run {steps}")
    halo.append((lmp.extract_pair("halo_seconds") - before) / steps)
found = {
    "halo": halo,
    "n_owned": lmp.extract_setting("nlocal"),
    "n_ghost": lmp.extract_setting("nghost"),
}
open(f"rank.{lmp.extract_setting('world_rank')}.json", "w").write(json.dumps(found))
"""


def breakdowns(output: str) -> list[dict[str, float]]:
    """Seconds per step of each run: `step`, and `Pair`, `Comm` and so on of LAMMPS's timing
    breakdown, averages over ranks.
    """
    found = []
    for block in output.split("Loop time of ")[1:]:
        words = block.split()
        steps = int(words[words.index("steps") - 1])
        rows = re.findall(
            r"^(Pair|Neigh|Comm|Output|Modify|Other) +\| *[\d.e+-]* *\| *([\d.e+-]+)",
            block,
            flags=re.M,
        )
        found.append(
            {
                "step": float(words[0]) / steps,
                **{name: float(seconds) / steps for name, seconds in rows},
            }
        )
    return found


def measure(folder: Path, repeat: tuple[int, int, int], ranks: int, work: int, rounds: int) -> dict:
    """One case; `work`: atoms times steps of each rank in a round."""
    n_atoms = write_data(folder, repeat)
    (folder / "in.times").write_text(START + DYNAMICS)
    steps = max(5, work * ranks // n_atoms)
    output = run(folder, ranks, DRIVER, steps, rounds)
    timed = breakdowns(output)[1:]  # after the warm-up
    best = int(np.argmin([run["step"] for run in timed]))
    of_ranks = [json.loads((folder / f"rank.{k}.json").read_text()) for k in range(ranks)]
    exchange = float(np.mean([rank["halo"][best] for rank in of_ranks]))
    return {
        "n_atoms": n_atoms,
        "ranks": ranks,
        "n_owned": max(rank["n_owned"] for rank in of_ranks),
        "n_ghost": max(rank["n_ghost"] for rank in of_ranks),
        "steps": steps,
        "seconds_per_step": timed[best]["step"],
        "rounds": [run["step"] for run in timed],
        "breakdown": timed[best],
        "exchange": exchange,
        "comm_share": (timed[best]["Comm"] + exchange) / timed[best]["step"],
    }


def fit(records: list[dict]) -> dict[str, float]:
    """a, b, c of seconds per step = a n_owned + b n_ghost + c, and the largest relative
    deviation from them.
    """
    terms = np.array([[record["n_owned"], record["n_ghost"], 1.0] for record in records])
    seconds = np.array([record["seconds_per_step"] for record in records])
    size = terms.max(0)  # so that columns are alike
    found = nnls(terms / size / seconds[:, None], np.ones(len(records)))[0] / size
    deviation = float(np.abs(terms @ found / seconds - 1).max())
    return {
        "per_owned_atom": found[0],
        "per_ghost": found[1],
        "per_step": found[2],
        "largest_deviation": deviation,
    }


def efficiency(record: dict, records: list[dict]) -> str:
    """Against one rank: of as many atoms (strong), of as many per rank (weak)."""
    alone = {
        other["n_atoms"]: other["seconds_per_step"] for other in records if other["ranks"] == 1
    }
    n, ranks = record["n_atoms"], record["ranks"]
    said = [f"{alone[n] / ranks / record['seconds_per_step']:.0%} strong"] if n in alone else []
    said += (
        [f"{alone[n // ranks] / record['seconds_per_step']:.0%} weak"]
        if n // ranks in alone
        else []
    )
    return "" if ranks == 1 else ", ".join(said)


def table(records: list[dict], about: dict) -> list[str]:
    rows = [
        "| atoms | ranks | owned | ghosts | ms per step | exchange of features | LAMMPS's Comm | "
        "share of communication | efficiency |"
    ]
    rows.append("|---|---|---|---|---|---|---|---|---|")
    for record in records:
        ms = [
            1e3 * seconds
            for seconds in (
                record["seconds_per_step"],
                record["exchange"],
                record["breakdown"]["Comm"],
            )
        ]
        rows.append(
            f"| {record['n_atoms']:,} | {record['ranks']} | {record['n_owned']:,} | "
            f"{record['n_ghost']:,} | {ms[0]:.1f} | {ms[1]:.2f} | "
            f"{ms[2]:.2f} | {record['comm_share']:.1%} | {efficiency(record, records)} |"
        )
    a, b, c, off = about["fit"].values()
    rows.append("")
    rows.append(
        f"Fit: {1e6 * a:.2f} us per owned atom, {1e6 * b:.3f} us per ghost, {1e3 * c:.3f} ms per "
        "step; no case is further from it than "
        f"{off:.0%}. {results.said(about)} ([times.json](times.json))"
    )
    return rows


def main() -> None:
    quick = arguments.quick(__doc__)
    records = []
    with tempfile.TemporaryDirectory() as name:
        export(Path(name) / "model.race.pt", 1, 3, "float32")
        for repeat, ranks in QUICK if quick else CASES:
            records.append(
                measure(Path(name), repeat, ranks, *((2_000, 2) if quick else (60_000, 3)))
            )
            print(records[-1], file=sys.stderr, flush=True)
    about = stamp() | {"fit": fit(records)}
    page = table(records, about)
    print("\n".join(page))
    if quick:
        return
    results.write(HERE / "times.json", records, about)
    readme = HERE / "README.md"
    readme.write_text(fill(readme.read_text(), {"times.py": page}))


if __name__ == "__main__":
    main()
