"""The box and the model that halo.py and times.py run on several ranks."""

import json
import os
import subprocess
import sys
from pathlib import Path

import ase.build
import race._race
import torch

from race.config import ModelConfig
from race.deploy.export import export_model
from race.model.race import RACE

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import results  # noqa: E402, F401
from provenance import stamp  # noqa: E402, F401

START = f"""
units metal
atom_style atomic
read_data si.data
plugin load {Path(race._race.__file__).parent / "raceplugin.so"}
pair_style race model.race.pt
pair_coeff * * Si
fix nve all nve
"""


def write_data(folder: Path, repeat: tuple[int, int, int]) -> int:
    """Rattled silicon of `repeat` cubic cells of 8 atoms, as si.data. Returns the atoms."""
    atoms = ase.build.bulk("Si", "diamond", a=5.43, cubic=True).repeat(repeat)
    atoms.rattle(0.02, seed=1)
    x, y, z = atoms.cell.lengths()
    rows = "\n".join(
        f"{k + 1} 1 {p[0]:.8f} {p[1]:.8f} {p[2]:.8f}" for k, p in enumerate(atoms.positions)
    )
    (folder / "si.data").write_text(
        f"silicon\n\n{len(atoms)} atoms\n1 atom types\n\n0 {x} xlo xhi\n0 {y} ylo yhi\n0 {z} zlo "
        "zhi\n\nMasses\n\n1 28.0855\n\n"
        f"Atoms # atomic\n\n{rows}\n"
    )
    return len(atoms)


def export(path: Path, members: int, layers: int, dtype: str) -> list[int]:
    """Untrained: 64 channels, l <= 1. Returns the features exchanged per atom before each
    layer but the first.
    """
    torch.manual_seed(0)
    config = ModelConfig(
        elements=["Si"],
        r_max=5.0,
        n_layers=layers,
        irreps_hidden="64x0e+64x1o",
        lmax=2,
        n_features=16,
        n_members=members,
        avg_num_neighbors=28.0,
        head="cholesky" if members > 1 else "point",
    )
    export_model(RACE.untrained(config, getattr(torch, dtype)), path)
    return json.loads(race._race.load(str(path), selftest=False).metadata)["halo_widths"]


def run(folder: Path, ranks: int, driver: str, *arguments: int) -> str:
    """What a Python program prints on `ranks` ranks of one thread in a folder that has the
    data and the model.
    """
    command = [
        str(Path(sys.prefix) / "bin" / "mpirun"),
        "-np",
        str(ranks),
        sys.executable,
        "-c",
        driver,
        *map(str, arguments),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=True
    ).stdout
