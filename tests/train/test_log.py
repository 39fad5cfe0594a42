"""log.csv and TensorBoard of a run that is killed and continued."""

import threading

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from race.train.board import Board
from race.train.log import Log

from .conftest import rows_of


def test_log_forgets_epochs_that_will_be_trained_again(tmp_path):
    for start, epochs in ((0, (1, 2, 3)), (2, (3, 4))):
        with Log(tmp_path, n_epochs=4, n_batches=1, epoch=start) as log:
            for epoch in epochs:
                log.epoch(epoch, {"x": 10.0 * start + epoch, "y": float("nan")}, "")
        with open(tmp_path / "log.csv", "a") as file:
            file.write("5,1")  # a line cut short
    Log(tmp_path, n_epochs=4, n_batches=1, epoch=4)
    kept = [(row["epoch"], row["x"], row["y"]) for row in rows_of(tmp_path)]
    assert kept == [("1", "1", ""), ("2", "2", ""), ("3", "23", ""), ("4", "24", "")]


def read(folder, tag):
    events = EventAccumulator(str(folder))
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars(tag)]


def test_tensorboard_reads_what_an_epoch_wrote(tmp_path):
    """At once, from this thread alone; and a continued run's file makes it forget the steps
    that are trained again.
    """
    threads = threading.active_count()
    board = Board(tmp_path / "board", purge_step=1)
    for step in (1, 2, 3):
        board.scalars({"loss": 1.0 / step, "validation/x": float(step)}, step)
    # Not closed: killed here
    assert read(tmp_path / "board", "loss") == [
        (step, pytest.approx(1.0 / step)) for step in (1, 2, 3)
    ]
    assert threading.active_count() == threads
    again = Board(tmp_path / "board", purge_step=3)
    again.scalars({"loss": 7.0}, 3)
    again.close()
    assert read(tmp_path / "board", "loss") == [(1, 1.0), (2, 0.5), (3, 7.0)]
    assert read(tmp_path / "board", "validation/x") == [(1, 1.0), (2, 2.0)]
    board.close()
