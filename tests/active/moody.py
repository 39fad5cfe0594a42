"""An oracle of moods. Apart from the tests: a process that labels with it imports no torch, and
starts at once.
"""

import os
import subprocess
import time
from pathlib import Path

from ase.calculators.emt import EMT


class Moody(EMT):
    """What it does is in the position of the first atom; `marks` remembers across processes."""

    def __init__(self, marks, **kwargs):
        super().__init__(**kwargs)
        self.marks = Path(marks)

    def calculate(self, atoms=None, properties=("energy",), system_changes=()):
        mood = round(10 * atoms.positions[0, 0])
        mark = self.marks / str(mood)
        first = not mark.exists()
        mark.touch()
        if mood == 1:  # as a code that is started and does not end
            with open(self.marks / "children", "a") as file:
                file.write(f"{subprocess.Popen(['sleep', '600']).pid}\n")
            time.sleep(600)
        elif mood == 2:
            os._exit(7)
        elif mood == 4:  # of Dask: the worker is the parent
            with open(self.marks / "workers", "a") as file:
                file.write(f"{os.getppid()}\n")
            time.sleep(2)
        elif mood == 3 and first:
            raise RuntimeError("SCF not converged")
        super().calculate(atoms, properties, system_changes)
