"""How each code is trained within a number of minutes of processor time, and with what
sizes. Every training is a command that a user would type.

A code gives `command(job) -> list of words`, `model(job) -> path` of what the training
left, and `finish(job)`: commands that turn this into what is judged and timed. MACE ends
after a number of epochs: it follows from two short trainings on a few frames (`probe`), as
its time grows linearly with frames. RACE and NequIP get the time itself.
"""

import json
import os
import resource
import shutil
import subprocess
import sys
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from pathlib import Path

import ase.io
import yaml
from ase.data import atomic_numbers

HERE = Path(__file__).resolve().parent
ENVIRONMENTS = Path(os.environ.get("BENCH_ENVIRONMENTS", HERE.parents[1] / ".bench-venv"))
# Frames of the two trials, and the part of a training step that a validation frame costs
TRIALS, VALIDATION_COST = (40, 160), 0.35


@dataclass(frozen=True)
class Job:
    """One training. about: what `sets.prepare` returned; folder: of this training alone;
    data: folder with train.xyz and validation.xyz; epochs: None where time decides.
    """

    set: str
    code: str
    size: str
    members: int
    minutes: float
    about: dict
    data: Path
    folder: Path
    epochs: int | None = None


@dataclass(frozen=True)
class Spent:
    """Processor seconds of a command and its children, and its exit status."""

    seconds: float
    status: int


def execute(command: list[str], folder: Path, log: str = "log.txt") -> Spent:
    """Runs a command on one thread; its output goes into a file of `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    settings = {
        "OMP_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
        "TORCHINDUCTOR_COMPILE_THREADS": "1",
        "TORCHINDUCTOR_CACHE_DIR": str(folder / "inductor"),  # compiled anew, as for a user
        "PYTHONPATH": str(HERE),
        "CUDA_VISIBLE_DEVICES": "",
    }
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    with (folder / log).open("w") as output:
        done = subprocess.run(
            command, cwd=folder, env=os.environ | settings, stdout=output, stderr=output
        )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    shutil.rmtree(folder / "inductor", ignore_errors=True)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Spent(seconds, done.returncode)


class Code(ABC):
    """sizes: by name, small first."""

    sizes: dict[str, dict]
    members: tuple[int, ...] = (1,)
    timed_by_epochs = True

    @abstractmethod
    def command(self, job: Job) -> list[str]:
        """The training, run in job.folder."""

    @abstractmethod
    def model(self, job: Job) -> Path:
        """What the training leaves, of which predictions are made."""

    def finish(self, job: Job) -> list[list[str]]:
        """Commands between training and prediction."""
        return []

    def compiled(self, job: Job) -> tuple[Path, list[list[str]]]:
        """What is timed, and the commands that make it of model(job)."""
        return self.model(job), []

    @property
    @abstractmethod
    def python(self) -> str:
        """Interpreter of worker.py."""


class Race(Code):
    """`race train` and `race export`."""

    sizes = {"small": {}, "medium": {}, "large": {}}  # presets of race.presets
    members = (1, 4)
    timed_by_epochs = False
    START = 0.15  # minutes before the first step and after the last
    python = sys.executable

    def command(self, job: Job) -> list[str]:
        options = yaml.safe_load((HERE / "race.yaml").read_text())
        config = {
            "data": {
                "train": [str(job.data / "train.xyz")],
                "validation": [str(job.data / "validation.xyz")],
                "energy_key": "REF_energy",
                "forces_key": "REF_forces",
                "stress_key": "REF_stress",
                "atomic_energies": job.about["atomic_energies"],
            },
            "model": {
                "preset": job.size,
                "r_max": job.about["r_max"],
                "n_members": job.members,
            },
            "train": options["train"] | {"minutes": job.minutes - self.START},
        }
        if job.about["stress"]:
            config["train"]["stress_weight"] = options["stress_weight"]
        job.folder.mkdir(parents=True, exist_ok=True)
        (job.folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
        return [self._race, "train", "config.yaml", "--out", "run"]

    _race = str(Path(sys.executable).with_name("race"))

    def model(self, job: Job) -> Path:
        return job.folder / "model.race.pt"

    def finish(self, job: Job) -> list[list[str]]:
        return [[self._race, "export", "run", "--out", "model.race.pt"]]


class NequIP(Code):
    """`nequip-train`, and `nequip-compile` for what is timed."""

    sizes = {
        "small": {"num_layers": 3, "l_max": 1},
        "medium": {"num_layers": 4, "l_max": 2},
        "large": {"num_layers": 5, "l_max": 3, "parity": True},
    }
    timed_by_epochs = False
    COMPILED_FROM = 15  # minutes: compilation takes one or two, and doubles the speed
    bin = ENVIRONMENTS / "nequip" / "bin"
    python = str(bin / "python")

    def command(self, job: Job) -> list[str]:
        config = yaml.safe_load((HERE / "nequip.yaml").read_text())
        seconds = 60.0 * job.minutes
        config["cutoff_radius"] = job.about["r_max"]
        config["model_type_names"] = job.about["elements"]
        config["data"]["train_file_path"] = str(job.data / "train.xyz")
        config["data"]["val_file_path"] = str(job.data / "validation.xyz")
        config["trainer"]["callbacks"][-1]["seconds"] = seconds
        module = config["training_module"]
        module["lr_scheduler"]["scheduler"]["seconds"] = seconds
        module["model"] |= self.sizes[job.size]
        module["model"]["per_type_energy_shifts"] = job.about["atomic_energies"]
        if job.minutes >= self.COMPILED_FROM:
            module["model"]["compile_mode"] = "compile"
        if job.about["stress"]:
            module["model"]["_target_"] = "nequip.model.NequIPGNNModel"
            module["loss"]["_target_"] = "nequip.train.EnergyForceStressLoss"
            module["loss"]["coeffs"]["stress"] = 1.0
            module["loss"]["ignore_nan"] = {"stress": True}
            metrics = module["val_metrics"]
            metrics["_target_"] = "nequip.train.EnergyForceStressMetrics"
            metrics["coeffs"]["stress_rmse"] = 1.0
            metrics["ignore_nan"] = {"stress": True}
        job.folder.mkdir(parents=True, exist_ok=True)
        (job.folder / "nequip.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
        script = str(self.bin / "nequip-train")
        where = f"hydra.run.dir={job.folder}"
        return [script, "-cp", str(job.folder), "-cn", "nequip", where]

    def model(self, job: Job) -> Path:
        return job.folder / "best.ckpt"

    def compiled(self, job: Job) -> tuple[Path, list[list[str]]]:
        path = job.folder / "model.nequip.pt2"
        options = ["--mode", "aotinductor", "--device", "cpu", "--target", "ase"]
        script = str(self.bin / "nequip-compile")
        return path, [[script, str(self.model(job)), str(path), *options]]


class Mace(Code):
    """`mace_run_train`, second stage included."""

    sizes = {
        "small": {"num_channels": 64, "max_L": 1},
        "medium": {"num_channels": 128, "max_L": 1},
        "large": {"num_channels": 128, "max_L": 2},
    }
    bin = ENVIRONMENTS / "mace" / "bin"
    python = str(bin / "python")
    SECOND_STAGE = 4  # epochs: with fewer there is none

    def command(self, job: Job) -> list[str]:
        numbers = {atomic_numbers[s]: e for s, e in job.about["atomic_energies"].items()}
        options = {
            "name": "model",
            "train_file": job.data / "train.xyz",
            "valid_file": job.data / "validation.xyz",
            "E0s": numbers,
            "model": "MACE",
            "r_max": job.about["r_max"],
            "correlation": 3,
            "max_ell": 3,
            "num_interactions": 2,
            **self.sizes[job.size],
            "energy_weight": 1,
            "forces_weight": 100,
            "batch_size": 5,
            "valid_batch_size": 10,
            "lr": 0.01,
            "weight_decay": 5e-7,
            "ema_decay": 0.99,
            "max_num_epochs": job.epochs,
            "eval_interval": max(1, (job.epochs or 0) // 20),
            "default_dtype": "float32",
            "device": "cpu",
            "seed": 1,
            "error_table": "PerAtomMAE",
            "skip_evaluate_heads": "Default",  # errors on the training frames at the end
            "plot": False,
        }
        flags = ["--amsgrad", "--ema"]
        if job.epochs is not None and job.epochs >= self.SECOND_STAGE:
            flags.append("--swa")
            options["start_swa"] = round(0.75 * job.epochs)
        if job.about["stress"]:
            options |= {"loss": "stress", "stress_weight": 1, "compute_stress": True}
        words = [f"--{name}={value}" for name, value in options.items()]
        return [str(self.bin / "mace_run_train"), *words, *flags]

    def model(self, job: Job) -> Path:
        second = job.folder / "model_stagetwo.model"
        return second if second.exists() else job.folder / "model.model"


CODES: dict[str, Code] = {"RACE": Race(), "NequIP": NequIP(), "MACE": Mace()}


class TooSlow(Exception):
    """Not one epoch fits into the minutes."""


def epochs_of(code: Code, job: Job, probes: Path) -> int:
    """Epochs that fill job.minutes: a trial of one epoch on each of TRIALS training frames
    gives start-up and time per frame. Kept in the file `probes`.
    """
    known = json.loads(probes.read_text()) if probes.exists() else {}
    key = f"{job.code} {job.size} {job.members}"
    if key not in known:
        times = {n: _trial(code, job, n) for n in TRIALS}
        few, many = TRIALS
        per_frame = (times[many] - times[few]) / (many - few)
        known[key] = {"per_frame": per_frame, "start": times[few] - per_frame * few}
        probes.write_text(json.dumps(known, indent=1) + "\n")
    n_validation = len(ase.io.read(job.data / "validation.xyz", ":"))
    frames = job.about["n_train"] + VALIDATION_COST * n_validation
    epoch = known[key]["per_frame"] * frames
    fitting = (60 * job.minutes - known[key]["start"]) / epoch
    if fitting < 0.6:
        raise TooSlow(f"one epoch takes {epoch / 60:.1f} minutes")
    return max(1, round(fitting))


def _trial(code: Code, job: Job, n: int) -> float:
    """Processor seconds of one epoch on `n` frames."""
    folder = job.folder.with_name(f"trial-{job.code}-{job.size}-{job.members}-{n}")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    frames = ase.io.read(job.data / "train.xyz", f":{n}")
    ase.io.write(folder / "train.xyz", [frames[k % len(frames)] for k in range(n)])
    ase.io.write(folder / "validation.xyz", frames[:2])
    trial = replace(job, data=folder, folder=folder, epochs=1)
    spent = execute(code.command(trial), folder)
    if spent.status:
        raise RuntimeError(f"the trial failed: {folder / 'log.txt'}")
    shutil.rmtree(folder)
    return spent.seconds
