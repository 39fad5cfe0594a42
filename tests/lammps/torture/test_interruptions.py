"""A few interruptions in every run of the suite; `make torture` has them all."""

import random
from dataclasses import replace

import pytest

from . import interruptions

TRAIN, _, EXPORT, *_ = interruptions.COMMANDS


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """The server and its folder."""
    folder = tmp_path_factory.mktemp("interruptions")
    server = interruptions.Server(folder)
    interruptions.prepare(folder, server)
    yield server, folder
    server.close()


def test_there_are_as_many_as_promised():
    """With the faults of LAMMPS, 120 and more."""
    assert sum(command.tries + 1 for command in interruptions.COMMANDS) >= 98


@pytest.mark.parametrize("command", [TRAIN, EXPORT], ids=lambda command: command.name)
def test_interruptions(prepared, command):
    kinds = ("killed", "full disk", "interrupted")
    chance = random.Random(1)
    for name, outcome, wrong in interruptions.interrupt(*prepared, command, kinds, chance):
        assert not outcome.hang and not wrong, name
    assert interruptions.unwritable(prepared[0], command)[1] == ""


def test_another_result_is_seen(prepared):
    """What it must not let pass."""
    results = iter(range(3))
    changing = replace(EXPORT, result=lambda output: next(results))
    for _, _, wrong in interruptions.interrupt(*prepared, changing, ["killed"], random.Random(2)):
        assert wrong == "another result than undisturbed"
    assert "a traceback" in interruptions.end_of("killed", -9, "Traceback (most recent call last)")
    assert "status 1" in interruptions.end_of("full disk", 1, "race export: error")
    assert interruptions.end_of("interrupted", 130, "race train: interrupted") == ""
