"""What LAMMPS and the ASE calculator say of one structure, by the same names."""

import numpy as np

import race
from race.conventions import SIX_TO_VOIGT, six_from_matrix

from .harness import Snapshot


def from_python(atoms, artifact, dtype, **options) -> dict[str, np.ndarray]:
    calculator = race.Calculator(artifact, dtype=dtype, uncertainty=True, **options)
    calculator.calculate(atoms)
    found = calculator.results
    expected = {
        "energy": found["energy"],
        "forces": found["forces"],
        "atom_energy": found["energies"],
        "energy_std": found["energy_std"],
        "f_cov": six_from_matrix(found["forces_cov"]),
        "f_aleatoric": six_from_matrix(found["forces_cov_aleatoric"]),
        "f_epistemic": six_from_matrix(found["forces_cov_epistemic"]),
    }
    if atoms.pbc.all():
        expected["virial"] = -found["stress"][list(SIX_TO_VOIGT)] * atoms.get_volume()
        expected["stress_std"] = found["stress_std"][list(SIX_TO_VOIGT)]
    return expected


def as_dict(snapshot: Snapshot) -> dict[str, np.ndarray]:
    values = dict(vars(snapshot))
    columns = values.pop("columns")
    return {**values, **columns}


def difference(found: dict, expected: dict, tolerance: float) -> str:
    """The first quantity that is not the expected one, eV and Angstrom; empty when all are."""
    for name, reference in expected.items():
        largest = np.max(np.abs(np.asarray(found[name]) - np.asarray(reference)), initial=0.0)
        if not largest <= tolerance:  # NaN is not
            return f"{name} differs by {largest:.2e}, allowed {tolerance:.0e}"
    return ""


def assert_close(found: dict, expected: dict, tolerance: float, label: str) -> None:
    wrong = difference(found, expected, tolerance)
    assert not wrong, f"{label}: {wrong}"
