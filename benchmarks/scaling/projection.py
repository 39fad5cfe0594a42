"""Halo bytes per rank and step, and the share of a step they would take, on paper: python
benchmarks/scaling/projection.py [options]

A cubic domain of n atoms at density rho has n_ghost = rho ((n / rho)^(1/3) + 2 r)^3 - n
ghosts within r = cutoff + skin, and carries 2 (L - 1) n_ghost C dims M size bytes per
step (halo.py finds this to the byte). What a step takes besides is a n + b n_ghost + c:
of times.py where times.json is there (a rank is then a core of that machine), else, or
with --seconds-per-atom, an assumption. Bytes per second of a rank's link are an
assumption always; waiting for slower ranks and overlap are left out.
"""

import argparse
import json
from pathlib import Path

TIMES = Path(__file__).parent / "times.json"


def ghosts(n_atoms: float, density: float, reach: float) -> float:
    """n_atoms in a cube at `density` (1/A^3); copies within `reach` (A) of its faces."""
    return density * ((n_atoms / density) ** (1 / 3) + 2 * reach) ** 3 - n_atoms


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--density", type=float, default=0.05, help="atoms per A^3")
    parser.add_argument("--reach", type=float, default=7.0, help="cutoff and skin, A")
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument(
        "--row-bytes", type=float, default=1024, help="C dims size: of one atom and member"
    )
    parser.add_argument(
        "--seconds-per-atom",
        type=float,
        help="of the model, per member, in place of what times.py measured",
    )
    parser.add_argument(
        "--bandwidth", type=float, default=20e9, help="bytes/s of a rank's link; not measured here"
    )
    options = parser.parse_args()
    if options.seconds_per_atom is None and TIMES.exists():
        found = json.loads(TIMES.read_text())
        per_atom, per_ghost, per_step = (
            found["about"]["fit"][name] for name in ("per_owned_atom", "per_ghost", "per_step")
        )
        source = f"measured on a core of: {found['about']['machine']}"
    else:
        per_atom, per_ghost, per_step = options.seconds_per_atom or 1e-6, 0.0, 0.0
        source = "assumed"
    print(
        f"{1e6 * per_atom:.3g} us per atom, {1e6 * per_ghost:.3g} us per ghost, "
        f"{1e3 * per_step:.3g} ms per step, {source}\n"
    )
    print(
        "| atoms per rank | ghosts | extended halo instead | MiB per step, 1 member | share of a "
        "step |"
    )
    print("|---|---|---|---|---|")
    for n_atoms in (1_000, 2_000, 10_000, 50_000, 200_000):
        n_ghost = ghosts(n_atoms, options.density, options.reach)
        extended = ghosts(n_atoms, options.density, options.layers * options.reach)
        volume = 2 * (options.layers - 1) * n_ghost * options.row_bytes
        comm, work = volume / options.bandwidth, n_atoms * per_atom + n_ghost * per_ghost + per_step
        print(
            f"| {n_atoms:,} | {n_ghost:,.0f} | {extended:,.0f} | {volume / 2**20:.1f} | "
            f"{comm / (comm + work):.0%} |"
        )


if __name__ == "__main__":
    main()
