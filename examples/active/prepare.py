"""Unlabelled structures for the example: liquid BN at one state to begin with, a pool that
is mostly that state, tests of all.

python prepare.py [FOLDER]     makes FOLDER/initial, pool, test-known, test-liquid and
test-crystal.extxyz (default: structures)

No frame shares a trajectory with another file: every file's trajectories have their own
seeds and melts.
"""

import sys
from pathlib import Path

from ase import Atoms
from ase.io import write

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "demo"))
from reference import crystal, cubic_bn, liquid  # noqa: E402

KNOWN = (2.3, 5000)  # g/cm^3, K
OTHERS = ((2.0, 8000), (2.6, 5000), (2.6, 8000))


def main() -> None:
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent / "structures"
    folder.mkdir(parents=True, exist_ok=True)
    sets = {
        "initial": liquid(*KNOWN, 12, seed=11),
        "pool": liquid(*KNOWN, 60, seed=21)
        + [atoms for k, state in enumerate(OTHERS) for atoms in liquid(*state, 10, seed=31 + k)]
        + crystal(cubic_bn(2), 2000, 10, seed=41),
        "test-known": liquid(*KNOWN, 12, seed=51),
        "test-liquid": [
            atoms for k, state in enumerate(OTHERS) for atoms in liquid(*state, 6, seed=61 + k)
        ],
        "test-crystal": crystal(cubic_bn(2), 2000, 12, seed=71),
    }
    for name, frames in sets.items():
        write(folder / f"{name}.extxyz", [unlabelled(atoms) for atoms in frames])
        print(f"{folder / name}.extxyz  {len(frames)} x {len(frames[0])} atoms")


def unlabelled(atoms: Atoms) -> Atoms:
    out = atoms.copy()
    out.calc = None
    return out


if __name__ == "__main__":
    main()
