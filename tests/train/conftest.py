import csv

import ase
import ase.build
import ase.io
import pytest
import torch
import yaml
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator

from race.config import Config, read_config
from race.data import Dataset, read_frames
from race.train.prepare import prepare

MODEL = dict(
    r_max=3.5,
    n_layers=2,
    irreps_hidden="4x0e+4x1o+4x2e",
    n_features=4,
    radial_mlp=[8],
    readout_hidden=8,
)


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    torch.set_num_threads(1)


def labelled(seed: int) -> ase.Atoms:
    """A rattled four-atom cell of Cu3Au with EMT's energy, forces and stress."""
    atoms = ase.build.bulk("Cu", cubic=True, a=3.75)
    atoms.symbols[0] = "Au"
    atoms.rattle(0.12, seed=seed)
    atoms.set_cell(atoms.cell * (1 + 0.01 * (seed % 3)), scale_atoms=True)
    atoms.calc = EMT()
    labels = {name: atoms.calc.get_property(name, atoms) for name in ("energy", "forces", "stress")}
    atoms.calc = SinglePointCalculator(atoms, **labels)
    return atoms


@pytest.fixture(scope="session")
def copper(tmp_path_factory):
    """extxyz of 12 rattled four-atom cells of Cu3Au with EMT's energies, forces and stresses."""
    path = tmp_path_factory.mktemp("data") / "cu3au.extxyz"
    ase.io.write(path, [labelled(seed) for seed in range(12)])
    return path


def make_config(path, model=None, train=None, **data) -> Config:
    options = {"epochs": 2, "batch_size": 3, "warmup_epochs": 1, "dtype": "float64", "n_threads": 1}
    return Config.model_validate(
        {
            "data": {"train": [str(path)], "validation_fraction": 0.25, **data},
            "model": {**MODEL, **(model or {})},
            "train": {k: v for k, v in {**options, **(train or {})}.items() if v is not None},
        }
    )


def write_yaml(path, config: Config):
    path.write_text(yaml.safe_dump(config.model_dump(mode="json", exclude_unset=True)))
    return read_config(path)


def resolved(path, **options) -> Config:
    return prepare(make_config(path, **options)).config


def batch_of(path, config: Config, n=4):
    frames = read_frames(path)[:n]
    dtype = getattr(torch, config.train.dtype)
    return Dataset(frames, config.constants.elements, config.model.r_max, dtype).batch(range(n))


def rows_of(run):
    with open(run / "log.csv", newline="") as file:
        return list(csv.DictReader(file))
