"""Every option of a run, in one place: type, default, unit, meaning. `race train
config.yaml` reads a `Config`; `race config` prints it.

A model's constants come from its data and not from its user: `ModelConstants`. A run's
folder keeps both (`RunConfig`).
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import Field, field_validator, model_validator

from race.calculators import CalculatorOptions
from race.errors import RaceError
from race.heads import (
    FIRST_NOISE_BOUND,
    HEADS,
    LOSSES,
    NOISE_BOUND,
    OWN_EPISTEMIC,
    HeadName,
    LossName,
)
from race.options import Options, locate, read_raw, read_yaml, unit, validated
from race.presets import with_default_size

IRREPS = re.compile(r"\s*(\d+\s*x\s*)?\d+[eo](\s*\+\s*(\d+\s*x\s*)?\d+[eo])*\s*")  # e3nn's form
SEED = 2**32  # seeds are below it: numpy's RandomState takes no larger one


class ModelConfig(Options):
    """The RACE architecture (paper section 4.3). None: the training set decides."""

    elements: list[str] | None = Field(
        default=None, description="chemical symbols in species order; -: those of the data"
    )
    r_max: float = Field(
        default=5.0, gt=0, description="cutoff radius", json_schema_extra=unit("Angstrom")
    )
    n_layers: int = Field(
        default=2, ge=1, description="interaction layers L; layer t adds (t+1)-body terms"
    )
    irreps_hidden: str = Field(default="32x0e+32x1o+32x2e", description="node features h_t")
    lmax: int = Field(
        default=2, ge=0, le=3, description="highest degree of the spherical harmonics of edges"
    )
    angular_decay: float = Field(
        default=0.0,
        ge=0,
        le=2,
        description="p of the scale (2l + 1)^-p of harmonics of degree l: what varies little "
        "with the angle is learned first",
    )
    correlation: Literal[1, 2, 3] = Field(
        default=1,
        description="factors A of an atom's products with itself: body order nu + 1 within a layer",
    )
    gate: bool = Field(
        default=False, description="equivariant nonlinearity between layers; the paper has none"
    )
    n_features: int = Field(default=8, ge=1, description="species embedding width F")
    n_radial_basis: int = Field(default=8, ge=1, description="Bessel functions e_n")
    bessel_decay: float = Field(
        default=0.0,
        ge=0,
        le=4,
        description="p of the scale n^-p of e_n: smooth radial weights are learned first",
    )
    radial_scale: float = Field(
        default=1.0,
        gt=0,
        le=1,
        description="factor on what the radial MLP reads; R loses it again. Small: R is nearly "
        "linear in e_n, and smooth beyond the data",
    )
    radial_mlp: list[int] = Field(
        default=[64, 64], min_length=1, description="hidden widths of the radial MLP R(x)"
    )
    radial_knots: int = Field(
        default=128,
        ge=0,
        description="knots of the spline R(x), in training and after; 0: the MLP for every edge",
    )
    envelope_p: Literal[2, 5, 6] = Field(default=6, description="polynomial cutoff order p")
    readout_hidden: int = Field(
        default=64, ge=1, description="hidden width of each layer's readout"
    )
    avg_num_neighbors: float | None = Field(
        default=None, gt=0, description="N of the aggregation; -: the mean of the training set"
    )
    n_members: int = Field(default=1, ge=1, description="ensemble members M, carried as channels")
    head: HeadName = Field(
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
    sigma0: float | None = Field(
        default=None,
        gt=0,
        description="force noise scale sigma_0 of the covariance heads; -: a tenth of the RMS "
        "force",
        json_schema_extra=unit("eV/Angstrom"),
    )
    sigma0_energy: float | None = Field(
        default=None,
        gt=0,
        description="energy noise scale per atom: var_i = sigma0_energy^2 exp(s_i); -: "
        "0.1 Angstrom * sigma0",
        json_schema_extra=unit("eV"),
    )
    atomic_energies: list[float] | None = Field(
        default=None,
        description="E0 per element, as constants of the model; -: as data.atomic_energies says",
        json_schema_extra=unit("eV"),
    )
    scale: list[float] | None = Field(
        default=None,
        description="energy scale per element; -: RMS force times 1 Angstrom, a twentieth of that "
        "with a gate or products",
        json_schema_extra=unit("eV"),
    )

    @field_validator("irreps_hidden")
    @classmethod
    def _are_irreps(cls, value: str) -> str:
        if not IRREPS.fullmatch(value):
            raise ValueError(f"expected irreps such as 32x0e+32x1o+32x2e, got {value!r}")
        return value

    @field_validator("elements", "atomic_energies", "scale", mode="before")
    @classmethod
    def _empty_is_open(cls, value: Any) -> Any:
        return None if value == [] else value


class BaselineOptions(CalculatorOptions):
    """A potential that the model is added to. The model is trained on the labels of the
    files minus those of this potential, and every prediction is the sum. If both are
    named, `calculator` computes it here, and `lammps` is the same in LAMMPS.
    """

    @model_validator(mode="after")
    def _named(self) -> "BaselineOptions":
        if not self.lammps and self.calculator is None:
            raise ValueError("a baseline is a calculator, or lammps commands")
        if not self.lammps:
            return self
        if not self.elements:
            raise ValueError("baseline.elements names the element of each LAMMPS type")
        styles = [line.split()[1:2] for line in self.lammps if line.split()[:1] == ["pair_style"]]
        if len(styles) != 1 or not styles[0] or styles[0][0] in ("hybrid", "hybrid/scaled"):
            raise ValueError(
                "baseline.lammps has one pair_style, which may be hybrid/overlay: it is added to "
                "that of the model"
            )
        return self


class LeverageFactors(Options):
    """What an atom's epistemic variance is, over its aleatoric one, per unit of its leverage
    (race.model.outputs), which is 1 at the training set's 99.9 % quantile.
    """

    energy: float = Field(default=1.0, gt=0, description="c_E, of energies")
    forces: float = Field(default=1.0, gt=0, description="c_F, of forces")


class ModelConstants(Options):
    """Constants that a model has from its data: derived from the training set when training
    starts, or fitted to the validation set afterwards. All members share it.
    """

    elements: list[str] = Field(min_length=1, description="chemical symbols in species order")
    avg_num_neighbors: float = Field(default=1.0, gt=0, description="N of the aggregation")
    sigma0: float = Field(
        default=0.1, gt=0, description="force noise scale of the covariance heads, eV/Angstrom"
    )
    sigma0_energy: float = Field(default=0.02, gt=0, description="energy noise scale per atom, eV")
    noise_bound: float = Field(
        default=NOISE_BOUND,
        gt=0,
        description="of the logarithm of a force variance over sigma0^2, which saturates beyond",
    )
    atomic_energies: list[float] = Field(default=[], description="E0 per element, eV; empty: 0")
    energy_shift: float = Field(
        default=0.0,
        description="on each E0, eV: the mean binding energy, if E0 are those of atoms",
    )
    scale: list[float] = Field(default=[], description="energy scale per element, eV; empty: 1")
    energy_offsets: dict[str, dict[str, float]] = Field(
        default={}, description="what energies of a source have lost, by element, eV"
    )
    baseline: BaselineOptions | None = Field(
        default=None, description="what energies, forces and stress of the files have lost"
    )
    energy_noise_factor: float = Field(
        default=1.0,
        gt=0,
        description="on the aleatoric standard deviation of energies; fitted after training",
    )
    forces_noise_factor: float = Field(
        default=1.0,
        gt=0,
        description="on the aleatoric standard deviation of forces; fitted after training",
    )
    energy_spread_factor: float = Field(
        default=1.0,
        gt=0,
        description="on the members' standard deviation of energies; of members trained apart "
        "sqrt((M + 1) / (M - 1)), or more where errors ask for it",
    )
    forces_spread_factor: float = Field(
        default=1.0, gt=0, description="likewise of forces and stress"
    )
    leverage: LeverageFactors | None = Field(
        default=None,
        description="of one member whose epistemic part is of its atoms' leverage; fitted after "
        "training",
    )

    @model_validator(mode="after")
    def _one_each(self) -> "ModelConstants":
        n = len(self.elements)
        self.atomic_energies = self.atomic_energies or [0.0] * n
        self.scale = self.scale or [1.0] * n
        for name in ("atomic_energies", "scale"):
            if len(getattr(self, name)) != n:
                raise RaceError(
                    "wrong length",
                    where=f"model.{name}",
                    expected=f"one value for each of {' '.join(self.elements)}",
                    got=getattr(self, name),
                )
        return self

    @classmethod
    def given(cls, config: ModelConfig) -> "ModelConstants":
        """Those that the options give, and neutral values of the others.

        Raises:
            RaceError: the options name no elements.
        """
        if not config.elements:
            raise RaceError(
                "a model needs its elements", where="model.elements", expected="chemical symbols"
            )
        given = {name: getattr(config, name) for name in cls.model_fields if name in OPEN}
        return cls(**{name: value for name, value in given.items() if value is not None})

    @property
    def base_energies(self) -> list[float]:
        """The energies that the network adds to, by element, eV: E0 with the shift."""
        return [energy + self.energy_shift for energy in self.atomic_energies]

    def as_trained(self) -> "ModelConstants":
        """With factors of 1 and no leverage: they are fitted when the training is over."""
        return self.model_copy(update=dict.fromkeys(FITTED_FACTORS, 1.0) | {"leverage": None})

    def scaled(self, **factors: float) -> "ModelConstants":
        """With some of the factors, by name, times these."""
        return self.model_copy(update={k: getattr(self, k) * x for k, x in factors.items()})

    def with_spread(self, factor: float) -> "ModelConstants":
        """With this factor on the members' spread, of every quantity."""
        return self.model_copy(
            update={"energy_spread_factor": factor, "forces_spread_factor": factor}
        )


FITTED_FACTORS = (
    *("energy_noise_factor", "forces_noise_factor"),
    *("energy_spread_factor", "forces_spread_factor"),
)
# Options of a model that the data decides where the user does not
OPEN = ("elements", "avg_num_neighbors", "sigma0", "sigma0_energy", "atomic_energies", "scale")


def _symbol(key: Any) -> str:
    """The symbol of an element that is given by symbol or atomic number."""
    from ase.data import atomic_numbers, chemical_symbols  # slow: not for `race --help`

    text = str(key)
    number = int(text) if text.isdigit() else atomic_numbers.get(text, 0)
    if not 0 < number < len(chemical_symbols):
        raise ValueError(f"no element is called {text}")
    return chemical_symbols[number]


NoiseStd = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class DataConfig(Options):
    """Where structures come from and how they are split."""

    train: list[Path] = Field(min_length=1, description="extxyz, traj or npz files")
    validation: list[Path] = Field(
        default=[], description="empty: split off `validation_fraction` of train"
    )
    validation_fraction: float = Field(
        default=0.1, gt=0, lt=1, description="of `train`, drawn by `split_seed`"
    )
    split_seed: int = Field(default=0, ge=0, lt=SEED, description="of the random split")
    shards: Path | None = Field(
        default=None,
        description="folder that `race data` makes of these files, for sets larger than memory; "
        "training reads it instead of them",
    )
    units: Literal["auto", "eV", "kcal/mol"] = Field(
        default="auto", description="auto: eV, but rMD17 npz is kcal/mol"
    )
    energy_key: str = Field(default="energy", description="name of the energies in the files")
    forces_key: str = Field(default="forces", description="name of the forces in the files")
    stress_key: str = Field(
        default="stress", description="name of the stresses; one with `virial` in it is a virial"
    )
    weight_key: str = Field(
        default="weight",
        description="name of weights in the files, of frames and of atoms: 2 is the frame twice, "
        "0 no label",
    )
    config_weights: dict[str, Annotated[float, Field(ge=0, allow_inf_nan=False)]] = Field(
        default={}, description="further weights of frames, by their config_type"
    )
    atomic_energies: dict[str, float] | Path | Literal["least_squares", "isolated"] = Field(
        default="least_squares",
        description="E0 by element, a file of isolated atoms, a fit, or isolated: the isolated "
        "atoms among the frames",
        json_schema_extra=unit("eV"),
    )
    energy_offsets: Literal["none", "fit"] | dict[str, float | dict[str, float]] = Field(
        default="none",
        description="between levels of theory: what the energies of each source lose, one number "
        "an atom or one for each element; fit: against the first source",
        json_schema_extra=unit("eV"),
    )
    source_key: str = Field(
        default="file",
        description="what tells sources apart: `file`, by its name, or a key of info",
    )
    label_noise: dict[str, dict[Literal["energy", "forces", "stress"], NoiseStd]] = Field(
        default={},
        description="standard deviation of the labels of a source about what its method gives: of "
        "energies per atom, of force and of stress components",
        json_schema_extra=unit("eV/atom, eV/Angstrom, eV/Angstrom^3"),
    )
    baseline: BaselineOptions | None = Field(
        default=None,
        description="a calculator or classical potential that is subtracted in training and added "
        "to every prediction",
    )
    skip_bad_frames: int = Field(
        default=0,
        ge=0,
        description="frames that may be left out because they cannot be used; each is named",
    )
    accept: list[str] = Field(
        default=[],
        description="data checks (docs/data-checks.md) whose refusal is known and wanted",
    )

    @field_validator("atomic_energies", mode="before")
    @classmethod
    def _by_symbol(cls, value: Any) -> Any:
        """Other programs name elements by their atomic numbers."""
        if not isinstance(value, dict):
            return value
        return {_symbol(key): energy for key, energy in value.items()}

    @field_validator("config_weights", mode="before")
    @classmethod
    def _as_written(cls, value: Any) -> Any:
        """A config_type that looks like a number is still a name."""
        return {str(k): v for k, v in value.items()} if isinstance(value, dict) else value

    def reading(self) -> dict[str, Any]:
        """Arguments of `read_frames`."""
        names = ("energy_key", "forces_key", "stress_key", "units", "weight_key", "config_weights")
        return {name: getattr(self, name) for name in names}


FROM_FRAMES = ("least_squares", "isolated")  # data.atomic_energies that the frames decide
# Length of a training whose config says neither for how long nor how often: an hour on one core,
# with what comes before and after.
DEFAULT_MINUTES = 50.0


class TrainConfig(Options):
    """Loss, optimiser and schedule."""

    loss: LossName = Field(
        default="nll_jef",
        description="mean squared error, likelihood of energies, of energies and forces, or "
        "evidential: e2IP, eIP",
    )
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
    epochs: int | None = Field(
        default=None, ge=1, description="passes over the training set; -: until the time is over"
    )
    minutes: float | None = Field(
        default=None,
        gt=0,
        description="of training, instead of `epochs`: the schedule follows the time, and ends "
        f"with it; all sittings of a resumed run count; -: {DEFAULT_MINUTES:g} without `epochs`",
        json_schema_extra=unit("minutes"),
    )
    batch_size: int = Field(
        default=4, ge=1, description="frames per step, of all processes together"
    )
    balance: bool = Field(
        default=False, description="even out the edges per batch: for frames of very different size"
    )
    bootstrap: bool = Field(
        default=False,
        description="each member learns from a draw of its own of the training frames, as many, "
        "with replacement",
    )
    optimizer: Literal["soap", "adam", "amsgrad"] = Field(
        default="soap",
        description="SOAP (Adam in the eigenbasis of Shampoo's preconditioner), Adam or AMSGrad",
    )
    beta2: float = Field(
        default=0.999, ge=0, lt=1, description="decay of the mean of squared gradients, per step"
    )
    learning_rate: float = Field(default=0.02, gt=0, description="its largest value")
    schedule: Literal["cosine", "plateau", "constant"] = Field(
        default="cosine",
        description="of the learning rate: to 1 % along a cosine, halved on plateaus, or as it is",
    )
    patience: int = Field(
        default=25,
        ge=1,
        description="plateau: epochs without a better validation loss before the rate is halved",
    )
    ema_decay: float = Field(
        default=0.99, ge=0, lt=1, description="of the moving average of the weights, per step"
    )
    clip_norm: float = Field(default=10.0, gt=0, description="gradient norm cap, per member")
    seed: int = Field(
        default=0,
        ge=0,
        lt=SEED,
        description="member m starts from the weights of seed + m: runs to be stacked, seeds "
        "n_members apart",
    )
    warm_start: Path | None = Field(
        default=None,
        description="a run whose weights training starts from, and whose model section it takes",
    )
    freeze: Literal["none", "trunk"] = Field(
        default="none",
        description="trunk: a warm start trains the last linear maps of its readouts alone",
    )
    dtype: Literal["float32", "float64"] = Field(
        default="float32", description="of weights and features"
    )
    device: str = Field(default="cpu", description="cpu, cuda or cuda:N")
    checkpoint_minutes: float = Field(
        default=5.0,
        ge=0,
        description="between checkpoints, inside an epoch too; 0 is after every step",
        json_schema_extra=unit("minutes"),
    )
    n_threads: int = Field(
        default=0,
        ge=0,
        le=1024,
        description="torch threads; 0 leaves torch's own choice",
    )


class Config(Options):
    """The YAML file that `race train` reads."""

    data: DataConfig = Field(description="structures: at least `train`, a list of files")
    model: ModelConfig = ModelConfig()
    train: TrainConfig = TrainConfig()

    is_users: ClassVar[bool] = True  # it has what the user wrote and no more

    @model_validator(mode="after")
    def _consistent(self) -> "Config":
        if self.train.epochs is None and self.train.minutes is None:
            self.train = self.train.model_copy(update={"minutes": DEFAULT_MINUTES})
        if self.is_users and self.train.forces_weight == 0 and self.train.warm_start is None:
            self._without_forces()
        if problems := [*self._clashes()]:
            raise ValueError("\n".join(problems))
        return self

    def _without_forces(self) -> None:
        """The defaults of what nothing trains where forces are not learned."""
        if "loss" not in self.train.model_fields_set:
            self.train = self.train.model_copy(update={"loss": "nll_e"})
        if "head" not in self.model.model_fields_set:
            self.model = self.model.model_copy(update={"head": "energy"})

    def _clashes(self) -> Iterator[str]:
        """Options that are right alone and wrong together, one line each."""
        model, train = self.model, self.train
        allowed = LOSSES[train.loss].heads
        if model.head not in allowed:
            yield (
                f"train.loss {train.loss} needs model.head {' or '.join(allowed)}, got {model.head}"
            )
        if train.freeze != "none" and train.warm_start is None:
            yield "train.freeze needs train.warm_start: nothing has trained what it freezes"
        if train.minutes is not None and train.epochs is not None and self.is_users:
            yield "train.minutes and train.epochs are both given: leave out one"
        if not (train.energy_weight or train.forces_weight or train.stress_weight):
            yield "train.energy_weight, forces_weight and stress_weight are all 0: nothing to learn"
        if self.is_users and train.forces_weight == 0 and train.warm_start is None:
            if HEADS[model.head].forces_noise and model.pooling == "sum":
                yield (
                    "train.forces_weight 0 leaves the noise of forces untrained: model.head energy "
                    f"(train.loss nll_e) or point (mse), got {model.head}"
                )
        if self.data.label_noise and HEADS[model.head].own_epistemic:
            others = " and ".join(OWN_EPISTEMIC)
            yield f"data.label_noise needs a Gaussian likelihood: model.head other than {others}"
        if self.data.baseline is not None and model.pooling != "sum":
            yield f"data.baseline needs model.pooling sum, got {model.pooling}"
        if model.atomic_energies is not None and self.data.atomic_energies not in FROM_FRAMES:
            yield "model.atomic_energies and data.atomic_energies are both given: leave out one"
        if model.stress_head == "none":
            return
        if not LOSSES[train.loss].energy_noise or train.stress_weight == 0:
            yield (
                "model.stress_head needs a likelihood of stresses: train.loss other than mse and "
                f"stress_weight > 0, got train.loss {train.loss}, train.stress_weight "
                f"{train.stress_weight:g}"
            )
        if model.pooling != "sum":
            yield f"model.stress_head needs model.pooling sum, got {model.pooling}"


class RunConfig(Config):
    """config.yaml of a run's folder: the options, with their defaults, and the constants."""

    is_users: ClassVar[bool] = False

    constants: ModelConstants


def read_config(path: str | Path, changes: Sequence[str] = ()) -> Config:
    """Reads and validates a YAML config; relative data paths are taken from the config's folder.

    Args:
        path: the file; also a run's own config.yaml, whose constants are then derived anew.
        changes: `KEY=VALUE`, as `--set` takes them.

    Raises:
        RaceError: the file cannot be read, or options that are refused: all of them.
    """
    path = Path(path)
    raw = read_raw(path, changes)
    raw.pop("constants", None)
    if not (isinstance(raw.get("train"), dict) and raw["train"].get("warm_start")):
        raw["model"] = with_default_size(raw.get("model"))
    if isinstance(raw.get("model"), dict):  # of a run of an earlier version
        found = ModelConstants.model_fields.keys() - ModelConfig.model_fields.keys()
        raw["model"] = {k: v for k, v in raw["model"].items() if k not in found}
    return _located(validated(raw, Config, str(path)), path)


def read_run_config(path: str | Path) -> RunConfig:
    """The config.yaml of a run's folder.

    Raises:
        RaceError: it cannot be read, or is not one that `race train` wrote.
    """
    path = Path(path)
    return _located(validated(upgraded(read_yaml(path)), RunConfig, str(path)), path)


def upgraded(raw: Mapping[str, Any]) -> dict[str, Any]:
    """A run's config as this version writes it. Before 0.2 the constants stood among the
    options of the model, and the bound of the noise was no constant.
    """
    raw = dict(raw)
    if "constants" not in raw and isinstance(raw.get("model"), dict):
        raw["model"], raw["constants"] = split_model(raw["model"])
    if isinstance(raw.get("constants"), dict):
        raw["constants"] = {"noise_bound": FIRST_NOISE_BOUND, **raw["constants"]}
    return raw


def split_model(both: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Options and constants of a section that holds both."""
    constants = {key: value for key, value in both.items() if key in ModelConstants.model_fields}
    return {key: value for key, value in both.items() if key not in constants}, constants


AnyConfig = TypeVar("AnyConfig", bound=Config)


def _located(config: AnyConfig, path: Path) -> AnyConfig:
    """Paths taken from the folder of the config."""
    data = config.data
    data.train = [locate(name, path, "data.train") for name in data.train]
    data.validation = [locate(name, path, "data.validation") for name in data.validation]
    if data.shards is not None:
        data.shards = locate(data.shards, path, "data.shards")
    if isinstance(data.atomic_energies, Path):
        data.atomic_energies = locate(data.atomic_energies, path, "data.atomic_energies")
    if config.train.warm_start is not None:
        config.train.warm_start = locate(config.train.warm_start, path, "train.warm_start")
    return config
