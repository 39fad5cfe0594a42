"""Bad data sets, those of `make torture`; and that its count would see what went wrong."""

import os

import pytest

from tests.lammps.torture import data_sets


@pytest.mark.parametrize("seed", range(data_sets.CASES))
def test_bad_data_set(tmp_path, seed):
    assert data_sets.verdict(tmp_path, seed) == ""


def test_every_fault_is_tried():
    assert data_sets.CASES >= 100 and data_sets.CASES % len(data_sets.FAULTS) == 0


def misjudged(folder, seed):
    """Silence, a crash and a pass."""
    if seed == 1:
        os._exit(3)
    return "not a word" if seed == 0 else ""


def test_silence_and_crashes_are_counted(tmp_path):
    tally = data_sets.run(tmp_path, 3, misjudged)
    assert (tally.tried, tally.good, tally.crashes, tally.wrong) == (3, 1, 1, 1)
    assert tally.trouble[0] == "data sets, seed 0: not a word"
