"""The output of a run: log.csv, TensorBoard, a progress bar on a terminal and one line per
epoch anywhere.
"""

import csv
import io
import time
from pathlib import Path
from types import TracebackType

from rich.console import Console
from rich.progress import TextColumn

from race.conventions import ENERGY_ERROR
from race.files import write_atomic, writing
from race.progress import bar

REFRESH = 0.5  # seconds between readings of the device for the bar


class Log:
    """Writers of one run. Epochs later than `epoch` (0 for a new run) that a killed run had
    logged are dropped: they are trained again.
    """

    def __init__(self, run: Path, n_epochs: int | None, n_batches: int, epoch: int):
        from race.train.board import Board  # slow to import

        self.path = run / "log.csv"
        self.columns: list[str] = []
        self._truncate(epoch)
        self.board = Board(run / "tensorboard", purge_step=epoch + 1)
        self.console = Console()
        # None: training ends with a time, and the bar counts its thousandths
        self.n_epochs, self.n_batches = n_epochs, n_batches
        numbers = TextColumn("{task.fields[numbers]}")
        self.bar = bar(numbers, console=self.console, auto_refresh=False)
        total = 1000 if n_epochs is None else n_epochs * n_batches
        self.task = self.bar.add_task("", total=total, numbers="")
        self.refreshed = time.monotonic()

    def __enter__(self) -> "Log":
        self.bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.bar.stop()
        self.board.close()

    def due(self) -> bool:
        """Whether the bar wants new numbers: reading them from a device waits for it."""
        return time.monotonic() - self.refreshed > REFRESH

    def progress(self, epoch: int, batch: int, numbers: str, passed: float) -> None:
        """passed: fraction of the time, where training ends with one."""
        self.refreshed = time.monotonic()
        done = epoch * self.n_batches + batch
        if self.n_epochs is None:
            done = min(1000, round(1000 * passed))
        self.bar.update(
            self.task,
            completed=done,
            description=f"epoch {epoch + 1}" + (f"/{self.n_epochs}" if self.n_epochs else ""),
            numbers=numbers,
            refresh=True,
        )

    def epoch(self, epoch: int, row: dict[str, float], numbers: str) -> None:
        """Records epoch number `epoch` (counted from 1)."""
        row = {"epoch": epoch} | row
        if not self.columns:
            self.columns = list(row)
            self._append(self.columns)
        self._append(
            ["" if row[name] != row[name] else f"{row[name]:.8g}" for name in self.columns]
        )
        self.board.scalars({name: value for name, value in row.items() if value == value}, epoch)
        self.say(f"epoch {epoch:>{len(str(self.n_epochs or epoch))}}  {numbers}")

    def say(self, text: str) -> None:
        """Prints a line beside the bar."""
        self.console.print(text, highlight=False, soft_wrap=True)

    def _append(self, cells: list[str]) -> None:
        with writing(self.path), open(self.path, "a", newline="") as file:
            csv.writer(file).writerow(cells)

    def _truncate(self, epoch: int) -> None:
        """Keeps the rows of epochs up to `epoch`; a last line cut short by a kill is
        never among them.
        """
        if epoch == 0 or not self.path.exists():
            self.path.unlink(missing_ok=True)
            return
        with open(self.path, newline="") as file:
            header, *rows = list(csv.reader(file))
        kept = io.StringIO()
        writer = csv.writer(kept)
        writer.writerow(header)
        writer.writerows(row for row in rows if row and int(row[0]) <= epoch)
        write_atomic(self.path, kept.getvalue().encode())
        self.columns = header


def headline(row: dict[str, float], pooling: str = "sum") -> str:
    """The few numbers of a row of the log worth reading. pooling: of the model."""
    shown = (
        ("loss", "train/loss", ".3f"),
        ("val", "validation/loss", ".3f"),
        ("E", "validation/energy_rmse", f".2f {ENERGY_ERROR[pooling]}"),
        ("F", "validation/forces_rmse", ".1f meV/A"),
        ("S", "validation/stress_rmse", ".2f meV/A^3"),
        ("sigma_F", "validation/forces_std", ".1f"),
        ("in 90%", "validation/forces_coverage", ".3f"),
        ("|g|", "train/gradient", ".1f"),
    )
    parts = []
    for label, name, form in shown:
        value = row.get(name, float("nan"))
        if value == value:
            number, _, unit = form.partition(" ")
            parts.append(f"{label} {value:{number}}{' ' + unit if unit else ''}")
    return "  ".join(parts)


def table(row: dict[str, float], pooling: str = "sum") -> str:
    """Errors of the validation set beside the error bars, a line a quantity. pooling: of the
    model.
    """
    lines = [f"{'validation':<12}{'RMSE':>10}{'MAE':>10}{'predicted':>12}{'in 90 %':>10}"]
    units = {"energy": ENERGY_ERROR[pooling], "forces": "meV/A", "stress": "meV/A^3"}
    for name, unit in units.items():
        values = [row.get(f"validation/{name}_{of}") for of in ("rmse", "mae", "std", "coverage")]
        if values[0] is None or values[0] != values[0]:
            continue
        cells = ["" if v is None or v != v else f"{v:.4g}" for v in values]
        lines.append(f"{name:<12}{cells[0]:>10}{cells[1]:>10}{cells[2]:>12}{cells[3]:>10}  {unit}")
    return "\n".join(lines)
