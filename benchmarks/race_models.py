"""The RACE models that are timed, with random weights, and their artifacts. Speed does not
depend on the weights.
"""

from pathlib import Path

import torch
from systems import ELEMENTS

from race.config import ModelConfig
from race.deploy.export import alone, export_model
from race.model.race import RACE
from race.presets import preset

SMALL = {
    "elements": ELEMENTS,
    "r_max": 5.0,
    "n_features": 64,
    "radial_mlp": [64, 64],
    "avg_num_neighbors": 28.0,
    "readout_hidden": 64,
}
SIZES = {
    "small": {**SMALL, "n_layers": 2, "irreps_hidden": "64x0e+64x1o", "lmax": 1},
    "l2": {**SMALL, "n_layers": 2, "irreps_hidden": "64x0e+64x1o+64x2e", "lmax": 2},
    # Not to be timed: for the dry run of gpu.py
    "tiny": {
        "elements": ELEMENTS,
        "r_max": 3.0,
        "n_features": 8,
        "radial_mlp": [8],
        "avg_num_neighbors": 4.0,
        "readout_hidden": 8,
        "n_layers": 2,
        "irreps_hidden": "8x0e+8x1o",
        "lmax": 1,
    },
}


def config(size: str, members: int = 1, head: str = "point") -> ModelConfig:
    """A name of SIZES, or a preset of the paper."""
    # Whose H C N O are the first of ELEMENTS
    options = SIZES[size] if size in SIZES else preset(size)
    return ModelConfig(**options | {"n_members": members, "head": head})


def build(size: str, members: int = 1, head: str = "point", dtype: str = "float32") -> RACE:
    torch.manual_seed(0)
    return RACE.untrained(config(size, members, head), getattr(torch, dtype))


def artifact(
    folder: Path,
    size: str,
    members: int = 1,
    head: str = "point",
    dtype: str = "float32",
    leaders: bool = False,
) -> Path:
    """Exports a model; always anew, so that it is one of the code as it is. leaders: the
    artifact carries each member by itself, too.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{size}-{members}-{head}-{dtype}{'-leaders' * leaders}.race.pt"
    model = build(size, members, head, dtype)
    export_model(model, path, leaders=alone(model) if leaders else None)
    return path


def describe(size: str) -> str:
    c = config(size)
    return (
        f"{c.n_layers} layers, {c.irreps_hidden}, lmax {c.lmax}, r_max {c.r_max:g}, radial MLP "
        f"{' '.join(map(str, c.radial_mlp))}"
    )
