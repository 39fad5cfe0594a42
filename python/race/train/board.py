"""Scalars for TensorBoard, written by the caller's own thread: the scalars of an epoch
are in the file when the epoch ends.

torch's SummaryWriter gives every event to a thread of its own. A program that is killed
would lose them. One with signal handlers and compiled code of many libraries is safer
without that thread.
"""

import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter

from race.files import make_folder, writing


class Board:
    """One event file in `folder`. Steps from `purge_step` on that earlier files of the
    folder hold are forgotten by TensorBoard.
    """

    def __init__(self, folder: Path, purge_step: int):
        self.path = make_folder(folder) / (
            f"events.out.tfevents.{time.time():.6f}.{socket.gethostname()}.{os.getpid()}"
        )
        with writing(self.path):
            self.records = RecordWriter(open(self.path, "xb"))
        self._write(Event(file_version="brain.Event:2"))
        self._write(Event(session_log=SessionLog(status=SessionLog.START), step=purge_step))

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Adds the values of one step and flushes them."""
        summary = Summary(
            value=[Summary.Value(tag=name, simple_value=value) for name, value in values.items()]
        )
        self._write(Event(summary=summary, step=step))

    def close(self) -> None:
        """Ends the file."""
        with writing(self.path):
            self.records.close()

    def _write(self, event: Event) -> None:
        event.wall_time = time.time()
        with writing(self.path):
            self.records.write(event.SerializeToString())
            self.records.flush()
