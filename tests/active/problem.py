"""A shrunken copy of examples/active: cells of eight atoms, a tiny model, two rounds."""

from pathlib import Path
from typing import Any

import ase.io
import yaml

from .conftest import boron_nitride

EXAMPLE = Path(__file__).parents[2] / "examples" / "active" / "config.yaml"


def write_problem(folder: Path, **changes: Any) -> Path:
    """config.yaml and its structures; `changes` replace whole options."""
    folder.mkdir(parents=True, exist_ok=True)
    first = 0
    for name, n, amplitude in (
        ("initial", 6, 0.05),
        ("pool", 14, 0.12),
        ("known", 3, 0.05),
        ("hot", 3, 0.15),
    ):
        ase.io.write(
            folder / f"{name}.extxyz", [boron_nitride(first + k, amplitude) for k in range(n)]
        )
        first += n
    config = yaml.safe_load(EXAMPLE.read_text())
    config |= {
        "initial": ["initial.extxyz"],
        "pool": ["pool.extxyz"],
        "test": {"known": "known.extxyz", "hot": "hot.extxyz"},
        "ood": ["hot"],
    }
    config |= {
        "strategies": ["random", "bald-joint"],
        "rounds": 2,
        "budget": 3,
        "seeds": [0],
        "bootstrap": 4,
    }
    config["model"] |= {
        "irreps_hidden": "2x0e+2x1o+2x2e",
        "n_features": 2,
        "radial_mlp": [4],
        "readout_hidden": 4,
        "n_members": 2,
    }
    config["train"] |= {"epochs": 2, "batch_size": 2, "dtype": "float64", "checkpoint_minutes": 0}
    config["retrain"] = {"epochs": 1}
    (folder / "config.yaml").write_text(yaml.safe_dump(config | changes, sort_keys=False))
    return folder / "config.yaml"
