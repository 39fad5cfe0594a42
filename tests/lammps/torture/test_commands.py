"""A part of the wrong commands in every run of the suite; `make torture` has them all."""

import pytest

from ..conftest import ELEMENTS
from ..harness import write_data
from ..systems import boron_nitride
from . import commands
from .runner import Outcome, run_block


@pytest.fixture
def bench(tmp_path, plugin, small_artifact):
    atoms = boron_nitride((1, 1, 1))
    write_data(tmp_path / "bn.data", atoms, ELEMENTS)
    return commands.Bench(small_artifact, plugin, atoms)


def test_wrong_commands_by_hand(tmp_path, bench):
    assert len(commands.BY_HAND) >= 60
    cases = commands.by_hand(bench)[::3]
    tally = run_block("commands", cases, tmp_path)
    assert tally.good == tally.tried == len(cases), "\n".join([str(tally), *tally.trouble])


def test_mutants(tmp_path, bench):
    tally = run_block("mutants", commands.generated(bench, 25), tmp_path)
    assert tally.good == tally.tried == 25, "\n".join([str(tally), *tally.trouble])


def test_judge(bench):
    """What it must not let pass."""
    right = "pair_coeff * * B N O"
    energy = bench.energy("B", "N")
    assert bench.judge("pair_coeff", right, Outcome(energy=energy)) == ""
    assert bench.judge("pair_coeff", "pair_coeff * * N B O", Outcome(energy=energy))
    assert bench.judge("pair_coeff", right, Outcome(energy=energy + 0.01)) and bench.judge(
        "pair_coeff", right, Outcome(energy=float("nan"))
    )
    assert bench.judge("pair_coeff", right, Outcome(error="ERROR: something"))
