"""Energies and forces that cannot both be right are told by pairs of close frames."""

import ase.build
import numpy as np
import pytest
from ase.calculators.emt import EMT

from race.data.consistency import contradiction, pairs
from race.data.graph import ORIGIN
from race.errors import RaceError
from tests.data.test_plausibility import ask, copper, found

HARTREE, BOHR = 27.211386, 0.529177


def rattled(n=8, pbc=True, size=0.05):
    random = np.random.RandomState(0)
    frames = []
    for k in range(n):
        atoms = ase.build.bulk("Cu", cubic=True) * (2, 1, 1)
        atoms.pbc = pbc
        atoms.positions += random.normal(0, size, atoms.positions.shape)
        atoms.calc = EMT()
        energy, forces = atoms.get_potential_energy(), atoms.get_forces()
        atoms.calc = None
        atoms.info |= {"energy": energy, ORIGIN: f"a.xyz, frame {k}"}
        atoms.arrays["forces"] = forces
        frames.append(atoms)
    return frames


def test_the_work_is_the_difference_of_energies():
    for frames in (rattled(), rattled(pbc=False)):
        work, energy = pairs(frames)
        assert len(work) == len(frames) * (len(frames) - 1) / 2 and not work[:, 1].any()
        assert np.corrcoef(work[:, 0], energy)[0, 1] > 0.99
        assert work[:, 0] @ energy / (work[:, 0] @ work[:, 0]) == pytest.approx(1.0, abs=0.15)
    assert all(contradiction(make) is None for make in (rattled(), rattled(pbc=False), copper(12)))


def test_the_work_of_strain():
    """Small strains of one crystal, whose forces vanish."""
    frames = []
    random = np.random.RandomState(0)
    for _ in range(6):
        atoms = ase.build.bulk("Cu", cubic=True, a=3.7)
        atoms.set_cell(atoms.cell @ (np.eye(3) + random.normal(0, 2e-3, (3, 3))), scale_atoms=True)
        atoms.calc = EMT()
        atoms.info |= {"energy": atoms.get_potential_energy()}
        atoms.info["stress"] = atoms.get_stress()[[0, 1, 2, 5, 4, 3]]
        atoms.arrays["forces"] = atoms.get_forces()
        frames.append(atoms)
    work, energy = pairs(frames)
    assert np.abs(energy).max() > 1e-3
    # Of second order in strains of 0.002: another definition of the strain is as good
    np.testing.assert_allclose(work.sum(1), energy, atol=0.02 * np.abs(energy).max())


def test_an_atom_that_has_crossed_the_boundary_has_not_moved():
    frames, plain = rattled(), rattled()
    for atoms in frames[::2]:
        atoms.positions[3] += atoms.cell[0] - 2 * atoms.cell[1]
    np.testing.assert_allclose(pairs(frames)[0], pairs(plain)[0], atol=1e-8)


def scaled(frames, energy=1.0, forces=1.0):
    for atoms in frames:
        atoms.info["energy"] *= energy
        atoms.arrays["forces"] = forces * atoms.arrays["forces"]
    return frames


WRONG = {
    "gradients": ({"forces": -1.0}, "rise along the forces.*negative gradient"),
    "Ha/Bohr": ({"forces": BOHR / HARTREE}, "change by [45].* times the work"),
    "Ha": ({"energy": 1 / HARTREE}, "change by 0.03.* times the work"),
    "an atom": ({"energy": 1 / 8}, "change by 0.1.* times the work"),
    "constant": ({"energy": 0.0}, "energies are all the same in \\d+ pairs"),
}


@pytest.mark.parametrize("name", WRONG)
@pytest.mark.parametrize("make", [rattled, copper])
def test_what_is_wrong_is_refused(name, make):
    change, message = WRONG[name]
    frames = scaled(make(8), **change)
    with pytest.raises(RaceError, match=rf"{message}.*\(energy-forces\)"):
        ask(frames, labels=("energy", "forces"))
    report = ask(frames, labels=("energy", "forces"), accept=("energy-forces",))
    assert "energy-forces" in found(report)
    assert "energy-forces" not in found(ask(frames, labels=("forces",)))


def test_too_little_to_tell():
    assert contradiction(scaled(rattled(4), forces=-1.0)) is None  # six pairs
    far = scaled(rattled(8, size=0.6), forces=-1.0)
    assert contradiction(far) is None
    apart = scaled(rattled(8), forces=-1.0)
    for k, atoms in enumerate(apart):
        atoms.info[ORIGIN] = f"{k}.xyz, frame 0"  # whose energies need not have one zero
    assert contradiction(apart) is None
    other = scaled(copper(8), forces=-1.0)
    assert contradiction(other) is not None
    for atoms in other:
        del atoms.info["stress"]
    assert contradiction(other) is None


def test_atoms_without_forces_may_not_have_moved():
    frames = rattled()
    for atoms in frames:
        atoms.arrays["forces"][2] = np.nan
    assert len(pairs(frames)[0]) == 0
    for atoms in frames:
        atoms.positions[2] = frames[0].positions[2]
    assert len(pairs(frames)[0]) == 28


def test_a_wrong_stress_is_not_laid_to_the_forces():
    frames = copper(12)
    for atoms in frames:
        atoms.info["stress"] = -160.2 * atoms.info["stress"]
    with pytest.raises(RaceError, match="stress-sign") as error:
        ask(frames)
    assert "energy-forces" not in str(error.value)


def test_forces_of_another_structure():
    frames = rattled(pbc=False)
    for atoms in frames[5:]:
        atoms.arrays["forces"] = frames[0].arrays["forces"].copy()
    with pytest.raises(RaceError, match=r"3 frames have the forces of another.*repeated-forces"):
        ask(frames, labels=("forces",))
    shifted = [frames[0], frames[0].copy()]
    shifted[1].positions += 0.7
    assert "repeated-forces" not in found(ask(shifted + rattled()[:3], labels=("forces",)))
    still = rattled()
    for atoms in still:
        atoms.arrays["forces"][:] = 0.0
    assert "repeated-forces" not in found(ask(still, labels=("forces",)))


def test_a_steep_wall_is_no_contradiction():
    """Some frames in which two atoms overlap: the work by their end is many times the energy."""
    frames = rattled(size=0.05)
    for k in (3, 5):
        frames[k].info["energy"] += 30.0
        frames[k].arrays["forces"][:2, 0] += [2e3, -2e3]
    assert contradiction(frames) is None
    assert len(pairs(frames)[0]) == 15  # of the six others
