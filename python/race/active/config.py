"""Every option of `race active config.yaml`: the data, the oracle, the strategies that are
compared, and how each round trains.
"""

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from race.calculators import CalculatorOptions
from race.config import FROM_FRAMES, DataConfig, ModelConfig, TrainConfig
from race.options import Options, locate, read_options, unit

# Here and not beside their code, which imports torch: a wrong config is refused without it
OF_RUNS = (
    *("random", "fps", "max-variance", "max-epistemic", "bald-energy", "bald-force"),
    *("bald-joint", "bald-all", "bald-drawn", "maxdet", "lcmd"),
)
STRATEGIES = (*OF_RUNS, "grade")  # the last of an artifact alone, or of a dump that it wrote

# Options of an oracle that change no label
EXECUTION = {"failures", "executor", "scheduler", "workers", "minutes", "retries"}


class OracleConfig(CalculatorOptions):
    """The source of labels: one of `lammps`, `calculator`, `labels`."""

    labels: Literal["pool"] | list[Path] | None = Field(
        default=None,
        description="labels that exist already: those of the pool itself, or of files that hold "
        "the same structures",
    )

    failures: float = Field(
        default=0.5,
        ge=0,
        le=1,
        description="fraction of a set's labels that may fail: those structures are left out, "
        "with the reason in failed-*.json",
    )
    executor: Literal["local", "dask"] = Field(
        default="local",
        description="who runs the processes that label: this one, or the workers of Dask",
    )
    scheduler: str | None = Field(
        default=None,
        description="address or scheduler file of a Dask cluster that runs; -: one of `workers` on "
        "this machine",
    )
    workers: int = Field(default=1, ge=1, description="labels at a time")
    minutes: float | None = Field(
        default=None,
        gt=0,
        description="after which a label is given up",
        json_schema_extra=unit("minutes"),
    )
    retries: int = Field(default=0, ge=0, description="further tries of a label that fails")

    @property
    def apart(self) -> bool:
        """Whether each label has a process of its own."""
        alone = self.executor == "local" and self.workers == 1
        return not alone or bool(self.minutes or self.retries)

    @model_validator(mode="after")
    def _one(self) -> "OracleConfig":
        if sum((bool(self.lammps), self.calculator is not None, self.labels is not None)) != 1:
            raise ValueError("an oracle is one of lammps, calculator, labels")
        if self.lammps and not self.elements:
            raise ValueError("oracle.elements names the element of each LAMMPS type")
        if self.labels is not None and self.apart:
            raise ValueError("oracle.labels are read: no executor, workers, minutes or retries")
        if self.scheduler is not None and (self.executor != "dask" or self.workers > 1):
            raise ValueError(
                "oracle.scheduler is that of a Dask cluster with its own workers: it needs "
                "executor dask, and no workers"
            )
        return self


class ExploreConfig(Options):
    """Candidates from dynamics with the current model (ASE, Langevin), instead of a pool
    of files.
    """

    temperature: float = Field(gt=0, description="K")
    n_walkers: int = Field(
        default=4,
        ge=1,
        description="trajectories a round, each from a frame of the training set drawn by the seed",
    )
    steps: int = Field(default=1000, ge=1, description="of each trajectory")
    every: int = Field(default=50, ge=1, description="steps between candidates")
    timestep: float = Field(default=1.0, gt=0, description="fs")
    friction: float = Field(default=0.02, gt=0, description="1/fs")
    max_force_std: float = Field(
        default=5.0,
        gt=0,
        description="a trajectory ends where the model's largest force/std exceeds it, eV/A",
    )
    closest: float = Field(
        default=0.6, gt=0, description="or where two atoms come closer, Angstrom"
    )


class Replay(Options):
    """A strategy whose choices are known: round k labels the frames of the k-th files that
    the initial set does not have.
    """

    name: str
    replay: list[Path | list[Path]] = Field(
        min_length=1, description="files of each round; a round's frames replace those of the last"
    )


class ActiveConfig(Options):
    """The file that `race active` reads, in YAML."""

    initial: list[Path] = Field(
        min_length=1, description="the first training set; the oracle labels what is not labelled"
    )
    pool: dict[str, list[Path]] = Field(
        default={},
        description="candidates; with names (600K: [...], 1200K: [...]) each group gives `budget` "
        "frames",
    )
    explore: ExploreConfig | None = None
    test: dict[str, Path] = Field(
        min_length=1, description="held-out sets by name; the oracle labels what is not labelled"
    )
    ood: list[str] = Field(
        default=[], description="test sets that are out of distribution: AUROC against the others"
    )
    oracle: OracleConfig
    strategies: list[str | Replay] = Field(
        min_length=1, description=f"any of {' '.join(OF_RUNS)}, or replay: files"
    )
    rounds: int = Field(default=5, ge=1)
    budget: int | list[int] = Field(
        default=10, description="labels a round (and a group of the pool); a list: of each round"
    )
    seeds: list[int] = Field(
        default=[0],
        min_length=1,
        description="the whole comparison once for each; times model.n_members added to "
        "train.seed, so that no two share a member",
    )
    min_distance: float = Field(default=0.0, ge=0, description="as in race select, Angstrom")
    features: Literal["distances", "model"] = Field(
        default="distances", description="as in race select, for fps"
    )
    validation_fraction: float = Field(
        default=0.1, gt=0, lt=1, description="of the initial set, and of every round's labels"
    )
    warm_start: bool = Field(
        default=True, description="train each round from the last round's weights"
    )
    bootstrap: int = Field(
        default=50,
        ge=0,
        description="resamples of frames for the 90 % intervals of the test errors",
    )
    data: dict[str, Any] = Field(
        default={}, description="options of race train's data section: keys, units, atomic_energies"
    )
    model: ModelConfig = ModelConfig()
    train: TrainConfig = TrainConfig()
    retrain: dict[str, Any] = Field(
        default={},
        description="changes of `train` from the second training on; warm-started, warmup_epochs "
        "is 0 unless set here",
    )

    @field_validator("pool", mode="before")
    @classmethod
    def _one_group(cls, value: Any) -> Any:
        return ({"pool": value} if value else {}) if isinstance(value, list) else value

    @model_validator(mode="after")
    def _consistent(self) -> "ActiveConfig":
        if bool(self.pool) == (self.explore is not None):
            raise ValueError("candidates come from either pool or explore")
        if self.explore is not None and self.oracle.labels is not None:
            raise ValueError("frames of explore are new: oracle.labels cannot have them")
        if unknown := [
            name for name in self.strategies if isinstance(name, str) and name not in OF_RUNS
        ]:
            raise ValueError(
                f"unknown strategy {unknown[0]}; expected {' '.join(OF_RUNS)}, or name: and replay:"
            )
        if len(set(self.names)) < len(self.names):
            raise ValueError("two strategies have one name")
        if unknown := sorted(set(self.ood) - set(self.test)):
            raise ValueError(f"ood {unknown[0]} is not one of test: {' '.join(self.test)}")
        if isinstance(self.budget, list) and len(self.budget) < self.rounds:
            raise ValueError(f"budget has {len(self.budget)} entries for {self.rounds} rounds")
        if short := [
            s.name for s in self.strategies if isinstance(s, Replay) and len(s.replay) < self.rounds
        ]:
            raise ValueError(
                f"replay {short[0]} has fewer files than there are rounds ({self.rounds})"
            )
        made = {"train", "validation", "validation_fraction", "split_seed", "skip_bad_frames"}
        if wrong := made & self.data.keys():
            raise ValueError(
                f"data.{sorted(wrong)[0]} is what the rounds make, from `initial` and "
                "`validation_fraction`"
            )
        if wrong := {"energy_offsets", "label_noise", "source_key"} & self.data.keys():
            raise ValueError(f"data.{sorted(wrong)[0]} has no meaning here: one oracle labels all")
        DataConfig(train=[Path("none")], **self.data)
        self.retrained()
        return self

    @property
    def names(self) -> list[str]:
        """The strategies by name."""
        return [
            strategy if isinstance(strategy, str) else strategy.name for strategy in self.strategies
        ]

    def budget_of(self, round_number: int) -> int:
        """Labels of round 1, 2, ..."""
        return self.budget[round_number - 1] if isinstance(self.budget, list) else self.budget

    def retrained(self) -> TrainConfig:
        """`train` as it is from the second training on."""
        # A likelihood that is warm already needs no warm-up from MSE.
        warm = {"warmup_epochs": 0} if self.warm_start else {}
        return TrainConfig.model_validate(
            self.train.model_dump(exclude_unset=True) | warm | self.retrain
        )

    def files(self) -> list[Path]:
        """Those with structures or labels that the options name, strategies' apart."""
        out = [*self.initial, *self.test.values()]
        out += [path for paths in self.pool.values() for path in paths]
        out += self.oracle.labels if isinstance(self.oracle.labels, list) else []
        energies = self.data.get("atomic_energies")
        is_file = isinstance(energies, str) and energies not in FROM_FRAMES
        return out + ([Path(str(energies))] if is_file else [])

    def label_keys(self) -> dict[str, Any]:
        """Arguments of `read_frames`."""
        return DataConfig(train=[Path("none")], **self.data).reading()


def read_active_config(path: Path) -> ActiveConfig:
    """Reads and validates; relative paths are taken from the config's folder, ${VARIABLES}
    are expanded.

    Raises:
        RaceError: no such file, not YAML, an option that is unknown or does not fit the others.
    """
    config = read_options(path, ActiveConfig)

    def found(name: Path, key: str) -> Path:
        return locate(name, path, key)

    config.initial = [found(name, "initial") for name in config.initial]
    config.pool = {
        group: [found(name, f"pool.{group}") for name in names]
        for group, names in config.pool.items()
    }
    if config.train.warm_start is not None:
        config.train.warm_start = found(config.train.warm_start, "train.warm_start")
    config.test = {name: found(file, f"test.{name}") for name, file in config.test.items()}
    if isinstance(config.oracle.labels, list):
        config.oracle.labels = [found(name, "oracle.labels") for name in config.oracle.labels]
    for strategy in config.strategies:
        if isinstance(strategy, Replay):
            rounds = [files if isinstance(files, list) else [files] for files in strategy.replay]
            strategy.replay = [
                [found(name, f"strategies.{strategy.name}") for name in files] for files in rounds
            ]
    if (
        isinstance(config.data.get("atomic_energies"), str)
        and config.data["atomic_energies"] not in FROM_FRAMES
    ):
        config.data["atomic_energies"] = str(
            found(Path(config.data["atomic_energies"]), "data.atomic_energies")
        )
    return config
