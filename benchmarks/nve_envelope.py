"""Which polynomial cutoff conserves energy best on trained models? Trains one small model
per order p on the same frames, and runs NVE.

    python benchmarks/nve_envelope.py FRAMES.xyz [--e0 ISOLATED.xyz] [--orders 2 5 6]
    [--seeds 0] [--out envelope]

Same seed, same frames and same start for every order. Validation errors tell whether the
order costs accuracy. NVE is velocity Verlet from validation frames, in float64, at two
time steps:
    drift        slope of the total energy, mean of its size over starts, meV/atom/ps
    fluctuation  standard deviation of the total energy about that line, meV/atom
What falls as dt^2 (ratio 4) is the integrator's; a roughness of the energy surface falls
slower, or drifts. Bond vibrations make most of the first whatever the envelope;
`crossings` counts the pairs that entered or left the cutoff. Models stay in --out for a
second run.
"""

import argparse
from pathlib import Path

import ase.io
import numpy as np
from ase import units
from ase.md.velocitydistribution import MaxwellBoltzmannDistribution, Stationary
from ase.md.verlet import VelocityVerlet

import race
from race.config import Config
from race.data.graph import neighbors
from race.deploy.export import export_model
from race.train.run import load_run
from race.train.training import train

# A cutoff so short that pairs cross it all the time.
MODEL = dict(
    r_max=4.5,
    n_layers=2,
    irreps_hidden="16x0e+16x1o+16x2e",
    n_features=16,
    radial_mlp=[32],
    readout_hidden=32,
)


def trained(order: int, seed: int, args: argparse.Namespace) -> tuple[Path, dict[str, float]]:
    """The artifact in float64, and the validation metrics."""
    run = args.out / f"p{order}-seed{seed}"
    config = Config.model_validate(
        {
            "data": {"train": [args.out / "train.xyz"], "validation": [args.out / "validation.xyz"]}
            | ({"atomic_energies": args.e0} if args.e0 else {}),
            "model": MODEL | {"envelope_p": order},
            "train": {"epochs": args.epochs, "batch_size": 5, "seed": seed, "n_threads": 1},
        }
    )
    if not (run / "done").exists():
        train(config, run, resume=True)
        (run / "done").touch()
    model, _, summary = load_run(run)
    path = run / "float64.race.pt"
    export_model(model, path, dtype="float64", summary=summary)
    return path, summary["validation"]


def nve(
    path: Path, start: ase.Atoms, seed: int, dt: float, args: argparse.Namespace
) -> tuple[float, float, int]:
    """Drift (meV/atom/ps), fluctuation (meV/atom), and how often a pair crossed the cutoff."""
    atoms = start.copy()
    atoms.calc = race.Calculator(path)
    MaxwellBoltzmannDistribution(
        atoms, temperature_K=args.temperature, rng=np.random.default_rng(seed)
    )
    Stationary(atoms)
    energies, counts = [], []

    def note():
        energies.append(1e3 * atoms.get_total_energy() / len(atoms))
        counts.append(
            len(neighbors(atoms.positions, atoms.cell.array, atoms.pbc, MODEL["r_max"])[0]) // 2
        )

    dynamics = VelocityVerlet(atoms, timestep=dt * units.fs)
    dynamics.attach(note, interval=max(1, round(1.0 / dt)))
    dynamics.run(round(1000 * args.ps / dt))
    time = np.linspace(0, args.ps, len(energies))
    slope, level = np.polyfit(time, energies, 1)
    return (
        abs(slope),
        float(np.std(energies - slope * time - level)),
        int(np.abs(np.diff(counts)).sum()),
    )


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("frames", type=Path)
    parser.add_argument("--e0", type=Path, help="isolated atoms")
    parser.add_argument("--orders", type=int, nargs="+", default=[2, 5, 6])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--n-train", type=int, default=100)
    parser.add_argument("--n-validation", type=int, default=50)
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--starts", type=int, default=2)
    parser.add_argument("--ps", type=float, default=2.0)
    parser.add_argument("--temperature", type=float, default=300.0, help="K")
    parser.add_argument("--timesteps", type=float, nargs=2, default=[0.5, 0.25], help="fs")
    parser.add_argument("--out", type=Path, default=Path("envelope"))
    args = parser.parse_args()
    args.out = args.out.resolve()
    args.out.mkdir(parents=True, exist_ok=True)
    frames = ase.io.read(args.frames, f":{args.n_train + args.n_validation}")
    ase.io.write(args.out / "train.xyz", frames[: args.n_train])
    ase.io.write(args.out / "validation.xyz", frames[args.n_train :])
    starts = frames[args.n_train : args.n_train + args.starts]

    print(
        f"{'p':>3}{'seed':>5}{'E meV/atom':>12}{'F meV/A':>9}{'dt fs':>7}"
        f"{'drift':>10}{'fluctuation':>13}{'crossings':>11}"
    )
    for seed in args.seeds:
        for order in args.orders:
            path, metrics = trained(order, seed, args)
            errors = (
                f"{metrics['validation/energy_rmse']:12.3f}{metrics['validation/forces_rmse']:9.2f}"
            )
            for dt in args.timesteps:
                runs = np.array([nve(path, atoms, k, dt, args) for k, atoms in enumerate(starts)])
                drift, fluctuation, crossings = runs.mean(0)
                print(
                    f"{order:3}{seed:5}{errors}{dt:7.2f}{drift:10.5f}{fluctuation:13.5f}{crossings:11.0f}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
