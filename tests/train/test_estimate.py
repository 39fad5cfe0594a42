"""What a training says of itself before its first epoch ends, and when it is over."""

import pytest
import torch

from race.train import estimate
from race.train.estimate import CostEstimate, duration, peak_memory
from race.train.log import table

CPU = torch.device("cpu")


@pytest.fixture
def clock(monkeypatch):
    """Three seconds a step."""
    seconds = iter(range(0, 1000, 3 * (estimate.LAST - estimate.FIRST)))
    monkeypatch.setattr(estimate.time, "perf_counter", lambda: next(seconds))


def said(n_epochs, seconds) -> list[str]:
    lines: list[str] = []
    expected = CostEstimate(CPU, 20, n_epochs, seconds, lines.append)
    for _ in range(30):
        expected.step()
    return lines


def test_epochs_take_a_time(clock):
    (line,) = said(10, None)
    assert line.startswith("3 s a step, 60 s an epoch: 10 epochs in about 10 min and validation;")


def test_a_time_holds_epochs(clock):
    (line,) = said(None, 3000.0)
    assert "60 s an epoch: about 50 epochs in 50 min" in line


def test_it_is_said_before_the_first_validation(clock):
    lines: list[str] = []
    expected = CostEstimate(CPU, 4, 10, None, lines.append)
    for _ in range(4):
        expected.step()
    (line,) = lines
    assert line.startswith("9 s a step, 36 s an epoch")  # the clock's 18 s are two steps


def test_epochs_of_two_steps_say_nothing():
    lines: list[str] = []
    expected = CostEstimate(CPU, 2, 10, None, lines.append)
    for _ in range(20):
        expected.step()
    assert lines == []


@pytest.mark.parametrize(
    ("seconds", "text"), [(3.21, "3.2 s"), (99.4, "99 s"), (720, "12 min"), (19800, "5.5 h")]
)
def test_durations(seconds, text):
    assert duration(seconds) == text


def test_memory_is_that_of_the_process():
    before = peak_memory(CPU)
    held = torch.ones(50_000_000)  # 200 MB, touched
    assert peak_memory(CPU) >= held.nbytes and peak_memory(CPU) >= before


def test_the_table_has_what_was_measured():
    row = {
        "validation/energy_rmse": 2.5,
        "validation/energy_mae": 2.0,
        "validation/energy_std": float("nan"),
        "validation/forces_rmse": 81.25,
        "validation/forces_mae": 60.0,
        "validation/forces_std": 79.0,
        "validation/forces_coverage": 0.897,
        "validation/stress_rmse": float("nan"),
    }
    lines = [line.split() for line in table(row).splitlines()]
    assert lines[1:] == [
        ["energy", "2.5", "2", "meV/atom"],
        ["forces", "81.25", "60", "79", "0.897", "meV/A"],
    ]
