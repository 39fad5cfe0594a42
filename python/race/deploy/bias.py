"""Uncertainty-biased dynamics in ASE: the twin of LAMMPS's `fix race/bias`."""

from collections.abc import Sequence
from typing import Any

import ase
import numpy as np
from ase.calculators.calculator import Calculator as AseCalculator
from ase.calculators.calculator import all_changes

from race.data.graph import cell_volume
from race.deploy.calculator import Calculator
from race.errors import RaceError


class BiasedCalculator(AseCalculator):
    """An ensemble with a bias that draws dynamics to structures on which its members disagree.

        U = E + A (exp(-var / (N B^2)) - 1),   var = mean_m (E_m - E)^2,

    N atoms (Kulichenko et al., Nat. Comput. Sci. 3, 230 (2023), with the ensemble's
    variance for theirs). The bias is 0 where the members agree and -A where they do not
    at all; it is bounded, and smooth where var = 0. var depends on the structure only
    through the members' energies. Its exact forces are therefore sums of the members'
    forces, and cost no more than these.

    Args:
        calculator: of an artifact with more than one member.
        height: A, eV.
        width: B, eV per square root of an atom; the bias saturates where the standard
            deviation of E is above B sqrt(N).

    Results: energy, free_energy, forces, stress (3D-periodic cells) with the bias;
    energy_bias, energy_var (eV, eV^2).

    Raises:
        RaceError: one member, a width that is not above 0.
    """

    implemented_properties: list[str] = [
        "energy",
        "free_energy",
        "forces",
        "stress",
        "energy_bias",
        "energy_var",
    ]

    def __init__(self, calculator: Calculator, height: float, width: float, **kwargs: Any):
        super().__init__(**kwargs)
        if calculator.metadata["n_members"] < 2:
            raise RaceError("no ensemble to bias by", expected="more than one member", got="one")
        if not (np.isfinite(height) and np.isfinite(width) and width > 0):
            raise RaceError(
                "bad bias", expected="a finite height and a width > 0", got=f"{height}, {width}"
            )
        self.unbiased, self.height, self.width = calculator, height, width

    def calculate(
        self,
        atoms: ase.Atoms | None = None,
        properties: Sequence[str] = ("energy",),
        system_changes: Sequence[str] = all_changes,
    ) -> None:
        """ASE's interface: fills `results`."""
        super().calculate(atoms, properties, system_changes)
        assert self.atoms is not None  # ASE has just set it
        # Asked through get_property, so that what was computed for this structure already
        # is not computed again.
        names = ["energy", "forces", "energy_members", "forces_members"]
        energy, forces, energy_members, forces_members = (
            self.unbiased.get_property(name, self.atoms) for name in names
        )
        deviation = energy_members - energy_members.mean()  # [M]
        var, scale = float(np.mean(deviation**2)), len(self.atoms) * self.width**2
        by_var = -self.height / scale * np.exp(-var / scale)
        by_energy = 2 / len(deviation) * deviation * by_var  # [M], dU/dE_m
        bias = self.height * float(np.expm1(-var / scale))
        self.results = {
            "energy": energy + bias,
            "free_energy": energy + bias,
            "forces": forces + np.einsum("m,nmk->nk", by_energy, forces_members),
            "energy_bias": bias,
            "energy_var": var,
        }
        if np.isfinite(cell_volume(self.atoms)):
            stress, stress_members = (
                self.unbiased.get_property(name, self.atoms)
                for name in ("stress", "stress_members")
            )
            self.results["stress"] = stress + by_energy @ stress_members
