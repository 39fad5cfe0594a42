"""i-PI over librace: a potential of i-PI's Python driver.

    i-pi-driver-py -u -a ADDRESS -m custom -P "$(race plugin --i-pi)" \\
        -o template=INIT.xyz,model=NAME.race.pt,uncertainty=energy_std/forces_std

The driver sends each uncertainty as an "extra" of its name, in eV and Angstrom:
`<trajectory filename="std" extra_type="forces_std">extras</trajectory>`.
"""

from typing import Any

import numpy as np
from ipi.pes._ase import ASEDriver

from race.deploy.calculator import Calculator

# Where i-PI looks for what this file offers
__DRIVER_NAME__ = "race"
__DRIVER_CLASS__ = "RaceDriver"


class RaceDriver(ASEDriver):  # type: ignore[misc]
    """An artifact as a potential of i-PI.

    Args:
        template: a file that ASE reads, with the elements in i-PI's order, and with or without
            periodic boundaries; its positions and its cell do not matter.
        model: NAME.race.pt.
        uncertainty: properties of `race.Calculator` to send beside energy, forces and virial,
            separated by "/": a comma ends an option of the driver.
        lead: as of `race.Calculator`.
        **arguments: others of it, e.g. device=cuda.

    Raises:
        RaceError: the artifact does not load, or does not give an uncertainty.
    """

    def __init__(
        self,
        template: str,
        model: str,
        uncertainty: str = "",
        lead: str | int = "mean",  # i-PI reads a number
        verbose: bool = False,
        **arguments: Any,
    ):
        self.calculator = Calculator(model, lead=str(lead), **arguments)
        self.names = [name for name in uncertainty.split("/") if name]
        self.calculator.require(self.names)
        super().__init__(template, verbose=verbose)

    def compute_structure(
        self, cell: np.ndarray, pos: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, str]:
        """Atomic units, cell vectors as columns, of i-PI -> energy, forces and virial in
        atomic units, and the extras as JSON.
        """
        cell, pos = self.convert_units(cell, pos)
        atoms = self.template_ase.copy()
        atoms.set_positions(pos)
        atoms.set_cell(cell)
        self.calculator.calculate(atoms, ["energy", "forces", *self.names])
        results = {
            name: self.calculator.results[name] for name in ["energy", "forces", *self.names]
        }
        # i-PI wants one of a cluster, too, and has no use for it
        results["stress"] = self.calculator.results.get("stress", np.zeros(6))
        return self.post_process(results, atoms)
