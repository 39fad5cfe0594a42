"""Error against training time and against inference time: RACE, NequIP and MACE, each
trained by its own command for the same minutes of one core.

    python benchmarks/accuracy/run.py --data DATA             continues where it stopped
    python benchmarks/accuracy/run.py --data DATA --only ethanol/RACE/1 3BPA
    python benchmarks/accuracy/run.py --data DATA --quick     a few minutes: does all run?

A record per test split goes into results.json as soon as it is known; what has records is
not run again. --only takes SET[/CODE[/MINUTES[/SIZE[/MEMBERS]]]], where * stands for all.
Minutes are of processor time of the training command on one thread, start to end.
"""

import argparse
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import ase.io
import numpy as np

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

import figures  # noqa: E402
from codes import CODES, Job, TooSlow, epochs_of, execute  # noqa: E402
from pages import fill  # noqa: E402
from provenance import commit, now, processor  # noqa: E402
from sets import SETS, file_of, prepare  # noqa: E402

from race.errors import RaceError  # noqa: E402

RESULTS = HERE / "results.json"
BUILD = HERE.parents[1] / "build" / "accuracy"
PACKAGE = HERE.parents[1] / "python" / "race"
NAMES = {False: "accuracy", True: "accuracy-quick"}
MINUTES = (1, 5, 15, 60)
MEV = 1e3
IDENTITY = ("set", "code", "size", "members", "minutes")
QUICK = {"sets": ("Si",), "sizes": ("small",), "minutes": (0.5,), "frames": 40}


class Results:
    """The records, written after each addition."""

    def __init__(self, path: Path):
        self.path = path
        self.records = json.loads(path.read_text()) if path.exists() else []

    def has(self, job: Job) -> bool:
        key = [getattr(job, name) for name in IDENTITY]
        return any([record[name] for name in IDENTITY] == key for record in self.records)

    def add(self, records: list[dict]) -> None:
        self.records += records
        self.path.parent.mkdir(parents=True, exist_ok=True)
        partial = self.path.with_suffix(".partial")
        rows = ",\n".join(json.dumps(record) for record in self.records)
        partial.write_text(f"[\n{rows}\n]\n")
        partial.replace(self.path)


def refuse_other_race(folder: Path) -> None:
    """Ends with one line where trainings would run another `race` than that of this checkout, whose
    commit the records get.
    """
    script = "import race; print(race.__file__)"
    status = execute([CODES["RACE"].python, "-c", script], folder, "package.txt").status
    said = (folder / "package.txt").read_text().splitlines()[-1]
    if status or not Path(said).resolve().is_relative_to(PACKAGE):
        error = RaceError(
            "trainings would be recorded under the commit of another checkout",
            where="the package `race`",
            expected=PACKAGE,
            got=said if status else Path(said).parent,
            remedy="install this checkout with make setup, or run the benchmark of the other one",
        )
        sys.exit(str(error))


def jobs(args: argparse.Namespace) -> Iterator[Job]:
    """All that is asked for, short trainings first."""
    minutes = QUICK["minutes"] if args.quick else MINUTES
    for limit in minutes if args.seconds is None else (args.seconds / 60,):
        for name in QUICK["sets"] if args.quick else SETS:
            data = args.build / name / "data"
            most = args.frames or (QUICK["frames"] if args.quick else None)
            for code_name, code in CODES.items():
                sizes = QUICK["sizes"] if args.quick else tuple(code.sizes)
                for size in sizes:
                    for members in code.members[:1] if args.quick else code.members:
                        label = (name, code_name, f"{limit:g}", size, str(members))
                        if not chosen(label, args.only):
                            continue
                        folder = args.build / name / f"{code_name}-{size}-{members}-{limit:g}"
                        about = prepare(args.data, name, data, most)
                        yield Job(name, code_name, size, members, limit, about, data, folder)


def chosen(label: tuple[str, ...], only: list[str]) -> bool:
    return not only or any(
        all(part in ("*", word) for part, word in zip(choice.split("/"), label, strict=False))
        for choice in only
    )


def run(job: Job) -> list[dict]:
    """Trains, predicts and times; the records of all splits, or one with `omitted`."""
    code = CODES[job.code]
    stamp = {
        **{name: getattr(job, name) for name in IDENTITY},
        "processor": processor(),
        "commit": commit(),
        "date": now(),
    }
    try:
        if code.timed_by_epochs:
            job = replace(job, epochs=epochs_of(code, job, job.data.parent / "probes.json"))
    except TooSlow as error:
        return [stamp | {"split": None, "omitted": str(error)}]
    shutil.rmtree(job.folder, ignore_errors=True)
    trained = execute(code.command(job), job.folder)
    if not trained.status:
        for command in code.finish(job):
            trained = replace(trained, status=execute(command, job.folder, "finish.txt").status)
    if trained.status or not code.model(job).exists():
        raise RuntimeError(f"no model: see {job.folder / 'log.txt'}")
    common = {
        "cpu_minutes": round(trained.seconds / 60, 3),
        "epochs": job.epochs,
        "us_per_atom": measured_time(job),
        "versions": versions(job),
    }
    predicted = predictions(job)
    found = []
    for k, split in enumerate(job.about["splits"]):
        frames = ase.io.read(job.data / file_of(split), ":")
        found.append(stamp | common | {"split": split} | errors(frames, predicted, k, job))
    return found


def predictions(job: Job) -> dict[str, np.ndarray]:
    code, out = CODES[job.code], job.folder / "predictions.npz"
    files = [str(job.data / file_of(split)) for split in job.about["splits"]]
    worker(job, [job.code, str(code.model(job)), str(out), *files], "predict.txt")
    with np.load(out) as arrays:
        return dict(arrays)


def measured_time(job: Job) -> float:
    """us/atom, measured once for all minutes: weights do not change it."""
    times = job.data.parent / "times.json"
    known = json.loads(times.read_text()) if times.exists() else {}
    key = f"{job.code} {job.size} {job.members}"
    if key not in known:
        out = job.folder / "time.json"
        model, commands = CODES[job.code].compiled(job)
        for command in commands:
            if execute(command, job.folder, "compile.txt").status:
                raise RuntimeError(f"no compiled model: see {job.folder / 'compile.txt'}")
        frames = str(job.data / file_of(job.about["splits"][0]))
        worker(job, [job.code, str(model), str(out), frames, "--time"], "time.txt")
        known[key] = round(json.loads(out.read_text())["us_per_atom"], 3)
        times.write_text(json.dumps(known, indent=1) + "\n")
    return known[key]


def worker(job: Job, arguments: list[str], log: str) -> None:
    command = [CODES[job.code].python, str(HERE / "worker.py"), *arguments]
    if execute(command, job.folder, log).status:
        raise RuntimeError(f"no predictions: see {job.folder / log}")


def versions(job: Job) -> dict[str, str]:
    """Of the packages in the environment of the code."""
    names = {"RACE": "race-potential", "NequIP": "nequip", "MACE": "mace-torch"}
    script = (
        "import importlib.metadata as m, json, sys; "
        "print(json.dumps({n: m.version(n) for n in sys.argv[1:]}))"
    )
    command = [CODES[job.code].python, "-c", script, names[job.code], "torch"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def errors(frames: list[ase.Atoms], predicted: dict[str, np.ndarray], k: int, job: Job) -> dict:
    """mae_e, rmse_e in meV/atom, mae_f, rmse_f in meV/A over components, rmse_s in meV/A^3
    over the six components of frames with a stress; rms_f: of the reference forces.
    """
    n_atoms = np.array([len(atoms) for atoms in frames])
    energy = np.array([atoms.info["REF_energy"] for atoms in frames])
    forces = np.concatenate([atoms.arrays["REF_forces"] for atoms in frames])
    de = MEV * (predicted[f"energy_{k}"] - energy) / n_atoms
    df = MEV * (predicted[f"forces_{k}"] - forces)
    found = {
        "n_frames": len(frames),
        "mae_e": mean_abs(de),
        "mae_f": mean_abs(df),
        "rmse_e": rms(de),
        "rmse_f": rms(df),
        "rmse_s": None,
        "rms_f": rms(MEV * forces),
    }
    if job.about["stress"] and f"stress_{k}" in predicted:
        has = [n for n, atoms in enumerate(frames) if "REF_stress" in atoms.info]
        reference = np.array([frames[n].info["REF_stress"] for n in has])
        found["rmse_s"] = rms(MEV * (predicted[f"stress_{k}"][has] - reference))
    return found


def mean_abs(x: np.ndarray) -> float:
    return round(float(np.abs(x).mean()), 4)


def rms(x: np.ndarray) -> float:
    return round(float(np.sqrt((x**2).mean())), 4)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="holds rmd17/, 3bpa/, ...")
    parser.add_argument("--only", nargs="+", default=[], metavar="SET/CODE/...")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--seconds", type=float, help="of training, in place of the minutes")
    parser.add_argument("--frames", type=int, help="at most, of each file")
    parser.add_argument("--results", type=Path)
    parser.add_argument("--build", type=Path)
    args = parser.parse_args()
    args.data = args.data.resolve()
    args.build = (
        args.build or BUILD.with_name("accuracy-quick" * args.quick or "accuracy")
    ).resolve()
    refuse_other_race(args.build)
    path = args.results or (args.build / "results.json" if args.quick else RESULTS)
    for job in jobs(args):
        results = Results(path)  # another process may have added records
        if results.has(job):
            continue
        what = f"{job.set}, {job.code} {job.size} x{job.members}, {job.minutes:g} minutes"
        print(f"[{time.strftime('%H:%M:%S')}] {what}", flush=True)
        try:
            found = run(job)
        except RuntimeError as error:
            print(f"  failed: {error}", flush=True)
            continue
        Results(path).add(found)
        for record in found:
            print("  " + figures.line(record), flush=True)
    records = Results(path).records
    figures.draw(records, path.parent)
    if path == RESULTS:
        page = HERE / "README.md"
        page.write_text(fill(page.read_text(), {"records": figures.section(records)}))


if __name__ == "__main__":
    main()
