"""A part of the faults in every run of the suite; `make torture` has them all."""

import subprocess
import sys
import uuid

import pytest

from ..harness import Finished, Lammps
from . import faults

FAST = (
    "rank killed",
    "NaN position",
    "NaN position, guarded",
    "model replaced",
    "model on rank 0 alone",
    "model on rank 1 alone",
    "SIGTERM",
    "out of memory",
)


def test_faults(tmp_path, plugin, small_artifact, artifacts):
    bench = faults.Bench(
        Lammps(plugin, tmp_path), small_artifact, artifacts("small_other", scale=[0.1, 0.2, 0.3])
    )
    chosen = [fault for fault in faults.FAULTS if fault.name in FAST]
    tally = faults.run(bench, chosen)
    assert tally.good == tally.tried == len(FAST), "\n".join([str(tally), *tally.trouble])


def test_survivors_are_seen(monkeypatch):
    marker = f"RACE_TORTURE_{uuid.uuid4().hex}"
    monkeypatch.setenv(marker, "1")
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as process:
        assert faults.survivors(marker) == [process.pid]
        process.kill()


@pytest.mark.parametrize(
    "status, output, reasons",
    [
        (0, "", ("Lost atoms",)),
        (1, "ERROR: other", ("Lost atoms",)),
        (1, "", ()),
        (0, "Step PotEng\n0 -3.1\nLoop time", ()),
    ],
)
def test_verdict(status, output, reasons):
    """What it must not let pass."""
    fault = faults.Fault("x", lambda bench: Finished(0, "", False), reasons)
    assert faults.verdict(fault, Finished(status, output, False), [-3.0])
    assert not faults.verdict(
        faults.Fault("x", fault.provoke),
        Finished(0, "Step PotEng\n0 -3.0\nLoop time", False),
        [-3.0],
    )
