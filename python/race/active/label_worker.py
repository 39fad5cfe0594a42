"""One label in a process of its own: a crash or a hang ends this process alone.

`python -m race.active.label_worker OUT` takes (oracle config, structure, where) pickled on its
standard input. It writes the result to the file OUT as JSON with one key: `label`, `failure`
(of this structure) or `error` (of the oracle).
"""

import json
import os
import pickle
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import ase

from race.active.calculators import CalculatorOracle, LabelFailure, as_label, as_lists
from race.active.config import OracleConfig
from race.errors import RaceError
from race.files import write_json


def main() -> None:
    """Labels the structure on standard input; the result goes into the file of argument 1."""
    config, atoms, where = pickle.load(sys.stdin.buffer)
    out = Path(sys.argv[1])
    try:
        write_json(out, {"label": as_lists(CalculatorOracle(config).label(atoms, where))})
    except RaceError as error:
        kind = "failure" if isinstance(error, LabelFailure) else "error"
        write_json(out, {kind: str(error)})


def label_apart(config: OracleConfig, atoms: ase.Atoms, where: str) -> dict[str, Any]:
    """{"label": ...}, {"failure": reason} or {"error": reason}: of the last try, at most
    1 + config.retries, each of config.minutes at most.
    """
    found: dict[str, Any] = {}
    for _ in range(1 + config.retries):
        found = _try(config, atoms, where)
        if "failure" not in found:
            break
    return found


def _try(config: OracleConfig, atoms: ase.Atoms, where: str) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="race-label-") as folder:
        out = Path(folder) / "label.json"
        process = subprocess.Popen(
            [sys.executable, "-m", __name__, str(out)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            start_new_session=True,  # the code that it may have started ends with it
        )
        try:
            seconds = None if config.minutes is None else 60 * config.minutes
            _, errors = process.communicate(pickle.dumps((config, atoms, where)), seconds)
        except subprocess.TimeoutExpired:
            return {"failure": f"{where}: no label within {config.minutes:g} minutes"}
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        if out.exists():
            said = dict(json.loads(out.read_text()))
            return {"label": as_label(said["label"])} if "label" in said else said
        last = errors.decode(errors="replace").strip().splitlines()[-1:] or ["no word"]
        ended = f"the oracle ended with status {process.returncode}"
        return {"failure": f"{where}: {ended} ({last[0]})"}


if __name__ == "__main__":
    main()
