"""Every option of a run, in one place: type, default, unit, meaning. `race train
config.yaml` reads a `Config`.
"""

import os
from pathlib import Path
from typing import Literal, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from race.errors import RaceError
from race.presets import preset

Head = Literal["point", "energy", "cholesky", "equivariant", "evidential"]


class Options(BaseModel):
    """A section of a config: an option that it does not have is an error."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())


class ModelConfig(Options):
    """The RACE architecture (paper section 4.3)."""

    elements: list[str] = Field(
        default=[], description="chemical symbols in species order; filled from the data when empty"
    )
    r_max: float = Field(default=5.0, gt=0, description="cutoff radius, Angstrom")
    n_layers: int = Field(
        default=2, ge=1, description="interaction layers L; layer t adds (t+1)-body terms"
    )
    irreps_hidden: str = Field(default="32x0e+32x1o+32x2e", description="node features h_t")
    lmax: int = Field(
        default=2, ge=0, le=3, description="highest degree of the spherical harmonics of edges"
    )
    n_features: int = Field(default=64, ge=1, description="species embedding width F")
    n_radial_basis: int = Field(default=8, ge=1, description="Bessel functions e_n")
    radial_mlp: list[int] = Field(
        default=[64, 64], min_length=1, description="hidden widths of the radial MLP R(x)"
    )
    radial_knots: int = Field(
        default=384,
        ge=0,
        description="knots of the spline R(x), in training and after; 0: the MLP for every edge",
    )
    envelope_p: Literal[2, 5, 6] = Field(default=6, description="polynomial cutoff order p")
    readout_hidden: int = Field(
        default=64, ge=1, description="hidden width of each layer's readout"
    )
    avg_num_neighbors: float = Field(
        default=1.0, gt=0, description="N of the aggregation; filled from the data"
    )
    n_members: int = Field(default=1, ge=1, description="ensemble members M, carried as channels")
    head: Head = Field(
        default="equivariant", description="what each readout predicts beside the energy"
    )
    stress_head: Literal["none", "equivariant"] = Field(
        default="none",
        description="equivariant: noise of the stress, a 6x6 covariance; needs l=2 features and "
        "train.stress_weight > 0",
    )
    energy_aggregation: Literal["extensive", "paper"] = Field(
        default="extensive", description="sigma_E^2 = sum_i var_i, or the paper's exp(mean_i s_i)"
    )
    pooling: Literal["sum", "mean"] = Field(
        default="sum", description="how node values make the frame's target"
    )
    sigma0: float = Field(
        default=0.1,
        gt=0,
        description="force noise scale sigma_0 of the covariance heads, eV/Angstrom; filled from "
        "the data",
    )
    sigma0_energy: float = Field(
        default=0.02,
        gt=0,
        description="energy noise scale per atom: var_i = sigma0_energy^2 exp(s_i), eV",
    )
    energy_noise_factor: float = Field(
        default=1.0,
        gt=0,
        description="on the aleatoric standard deviation of energies; fitted on the validation set "
        "after training",
    )
    forces_noise_factor: float = Field(default=1.0, gt=0, description="the same of forces")
    atomic_energies: list[float] = Field(
        default=[], description="E0 per element, eV; filled from the data"
    )
    scale: list[float] = Field(
        default=[], description="energy scale per element, eV; filled from the data"
    )


class DataConfig(Options):
    """Where structures come from and how they are split."""

    train: list[Path] = Field(min_length=1, description="extxyz, traj or npz files")
    validation: list[Path] = Field(
        default=[], description="empty: split off `validation_fraction` of train"
    )
    validation_fraction: float = Field(default=0.1, gt=0, lt=1)
    split_seed: int = Field(default=0)
    units: Literal["auto", "eV", "kcal/mol"] = Field(
        default="auto", description="auto: eV, but rMD17 npz is kcal/mol"
    )
    energy_key: str = Field(default="energy")
    forces_key: str = Field(default="forces")
    stress_key: str = Field(default="stress")
    atomic_energies: dict[str, float] | Path | Literal["least_squares"] = Field(
        default="least_squares",
        description="E0 in eV by element, a file of isolated atoms, or a fit",
    )


class TrainConfig(Options):
    """Loss, optimiser and schedule (DESIGN sections 4, 5)."""

    loss: Literal["mse", "nll_e", "nll_jef", "evidential"] = "nll_jef"
    energy_weight: float = Field(
        default=1.0, ge=0, description="lambda_E, on the whole energy term"
    )
    forces_weight: float = Field(
        default=10.0, ge=0, description="lambda_F, on the whole force term"
    )
    stress_weight: float = Field(default=0.0, ge=0, description="lambda_S; needs stress labels")
    beta: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="beta-NLL exponent (Seitzer 2022); 0 is the plain likelihood",
    )
    warmup_epochs: int = Field(
        default=5,
        ge=0,
        description="epochs over which beta falls from 1 (MSE gradient for the mean) to `beta`",
    )
    epochs: int = Field(default=100, ge=1)
    batch_size: int = Field(
        default=4, ge=1, description="frames per step, of all processes together"
    )
    balance: bool = Field(
        default=False, description="even out the edges per batch: for frames of very different size"
    )
    optimizer: Literal["amsgrad", "adam"] = "adam"
    learning_rate: float = Field(default=0.02, gt=0)
    schedule: Literal["cosine", "plateau", "constant"] = "cosine"
    patience: int = Field(
        default=25,
        ge=1,
        description="plateau: epochs without a better validation loss before the rate is halved",
    )
    ema_decay: float = Field(default=0.99, ge=0, lt=1)
    clip_norm: float = Field(default=10.0, gt=0, description="gradient norm cap, per member")
    seed: int = Field(
        default=0,
        description="member m starts from the weights of seed + m: runs to be stacked, seeds "
        "n_members apart",
    )
    warm_start: Path | None = Field(
        default=None,
        description="a run whose weights training starts from, and whose model section it takes",
    )
    dtype: Literal["float32", "float64"] = "float32"
    device: str = "cpu"
    checkpoint_minutes: float = Field(
        default=5.0,
        ge=0,
        description="between checkpoints, inside an epoch too; 0 is after every step",
    )
    n_threads: int = Field(
        default=0, ge=0, description="torch threads; 0 leaves torch's own choice"
    )


AnyOptions = TypeVar("AnyOptions", bound=Options)


class Config(Options):
    """What `race train` reads: one YAML file."""

    data: DataConfig
    model: ModelConfig = ModelConfig()
    train: TrainConfig = TrainConfig()

    @model_validator(mode="after")
    def _consistent(self) -> "Config":
        needed = {
            "nll_e": ("energy", "cholesky", "equivariant"),
            "nll_jef": ("cholesky", "equivariant"),
            "evidential": ("evidential",),
        }
        allowed = needed.get(self.train.loss)
        if allowed and self.model.head not in allowed:
            raise ValueError(
                f"train.loss {self.train.loss} needs model.head in {allowed}, got {self.model.head}"
            )
        if self.model.stress_head != "none":
            if self.train.loss == "mse" or self.train.stress_weight == 0:
                got = (
                    f"train.loss {self.train.loss}, train.stress_weight "
                    f"{self.train.stress_weight:g}"
                )
                raise ValueError(
                    "model.stress_head needs a likelihood of stresses: train.loss other than mse "
                    f"and stress_weight > 0, got {got}"
                )
            if self.model.pooling != "sum":
                raise ValueError(
                    f"model.stress_head needs model.pooling sum, got {self.model.pooling}"
                )
        return self


def expand_preset(model: object) -> object:
    """`model: race-3bpa`, or `model: {preset: race-3bpa, n_members: 4}`, as plain options."""
    if isinstance(model, str):
        return preset(model)
    if isinstance(model, dict) and "preset" in model:
        changes = dict(model)
        return preset(changes.pop("preset")) | changes
    return model


def read_options(path: Path, kind: type[AnyOptions]) -> AnyOptions:
    """Reads a YAML file into `kind`, a preset in its section `model` being expanded.

    Raises:
        RaceError: no such file, not YAML, or an option that `kind` refuses, naming its key.
    """
    try:
        raw = yaml.safe_load(path.read_text())
    except FileNotFoundError:
        raise RaceError("no such file", where=path) from None
    except yaml.YAMLError as error:
        raise RaceError(f"not valid YAML ({str(error).splitlines()[0]})", where=path) from None
    if isinstance(raw, dict) and raw.get("model") is not None:
        raw["model"] = expand_preset(raw["model"])
    try:
        return kind.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise RaceError(
            first["msg"],
            where=f"{path}, key {key or '(top level)'}",
            got=repr(first.get("input"))[:80],
        ) from None


def read_config(path: str | Path) -> Config:
    """Reads and validates a YAML config; relative data paths are taken from the config's folder."""
    path = Path(path)
    config = read_options(path, Config)
    data = config.data
    data.train = [locate(name, path, "data.train") for name in data.train]
    data.validation = [locate(name, path, "data.validation") for name in data.validation]
    if isinstance(data.atomic_energies, Path):
        data.atomic_energies = locate(data.atomic_energies, path, "data.atomic_energies")
    if config.train.warm_start is not None:
        config.train.warm_start = locate(config.train.warm_start, path, "train.warm_start")
    return config


def locate(name: Path, config_path: Path, key: str) -> Path:
    """Expands ${VARIABLES}; a relative path is taken from the config's folder."""
    text = os.path.expandvars(str(name))
    if "$" in text:
        raise RaceError(
            f"unset variable in {name}",
            where=f"{config_path}, key {key}",
            remedy="export it, e.g. RACE_DATA=/path/to/data",
        )
    return (config_path.parent / text).resolve()
