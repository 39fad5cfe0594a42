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
        work, energy, nothing = pairs(frames)
        assert len(work) == len(frames) * (len(frames) - 1) / 2
        assert np.corrcoef(work, energy)[0, 1] > 0.99
        assert work @ energy / (work @ work) == pytest.approx(1.0, abs=0.15)
        np.testing.assert_allclose(nothing, 0.016)  # 2 meV of each of 8 atoms
    assert all(contradiction(make) is None for make in (rattled(), rattled(pbc=False), copper(12)))


def labelled(atoms, k, digits=12):
    atoms.calc = EMT()
    atoms.info = {
        "energy": round(atoms.get_potential_energy(), digits),
        ORIGIN: f"a.xyz, frame {k}",
    }
    atoms.arrays["forces"] = np.round(atoms.get_forces(), digits)
    atoms.calc = None
    return atoms


def test_displacements_of_phonons():
    """Alike by symmetry: energies and works are nothing but rounding."""
    for digits in (3, 6, 12):
        frames = []
        for k in range(12):
            atoms = ase.build.bulk("Cu", cubic=True) * (2, 1, 1)
            atoms.positions[k % 4, k // 4] += 0.01
            frames.append(labelled(atoms, k, digits))
        assert len(pairs(frames)[0]) == 66 and contradiction(frames) is None


def test_strains():
    """Forces of a strained crystal vanish: no cell is another's, and no pair is looked at."""
    frames = []
    for k in range(12):
        atoms = ase.build.bulk("Cu", cubic=True)
        atoms.set_cell(atoms.cell * (0.95 + 0.01 * k), scale_atoms=True)
        frames.append(labelled(atoms, k))
    assert len(pairs(frames)[0]) == 0 and contradiction(frames) is None


def test_a_relaxation():
    atoms = rattled(1, size=0.15)[0]
    frames = []
    for k in range(12):
        atoms.positions += 0.02 * atoms.arrays.get("forces", 0.0)
        frames.append(labelled(atoms.copy(), k))
        atoms.arrays["forces"] = frames[-1].arrays["forces"]
    assert contradiction(frames) is None
    assert "gradients" in contradiction(scaled(frames, forces=-1.0))


def test_a_dimer_curve():
    """From deep within the wall, where the work is many times the energy, out to the tail."""
    for k in (10, 30, 60):
        frames = []
        for x in np.geomspace(0.5, 3.0, k):
            atoms = ase.Atoms("Cu2", [[0, 0, 0], [2.5 * x, 0, 0]])
            force = 48 / x**13 - 24 / x**7  # Lennard-Jones, sigma = 2.5 A, epsilon = 1 eV
            atoms.info = {"energy": 4 / x**12 - 4 / x**6, ORIGIN: f"a.xyz, frame {len(frames)}"}
            atoms.arrays["forces"] = np.array([[-force, 0, 0], [force, 0, 0]]) / 2.5
            frames.append(atoms)
        assert contradiction(frames) is None


def test_states_of_other_energies():
    frames = rattled(12)
    for k, atoms in enumerate(frames):
        atoms.info["energy"] += 5.0 * (k % 2)
    assert contradiction(frames) is None


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
    "gradients": (
        {"forces": -1.0},
        "rise along the forces, by .* times.*negative gradient",
    ),
    "Ha/Bohr": ({"forces": BOHR / HARTREE}, "change by [45].* times the work"),
    "Ha": ({"energy": 1 / HARTREE}, "change by 0.03.* times the work"),
    "an atom": ({"energy": 1 / 8}, "change by 0.1.* times the work"),
    "constant": ({"energy": 0.0}, "change by 0 times the work"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_refused(name):
    change, message = WRONG[name]
    frames = scaled(rattled(), **change)
    with pytest.raises(RaceError, match=rf"{message}.*\(energy-forces\)"):
        ask(frames, labels=("energy", "forces"))
    known = ("energy-forces", "repeated-energies")
    report = ask(frames, labels=("energy", "forces"), accept=known)
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


def test_atoms_without_forces_may_not_have_moved():
    frames = rattled()
    for atoms in frames:
        atoms.arrays["forces"][2] = np.nan
    assert len(pairs(frames)[0]) == 0
    for atoms in frames:
        atoms.positions[2] = frames[0].positions[2]
    assert len(pairs(frames)[0]) == 28


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
    frames = rattled()
    for k in (3, 5):
        frames[k].info["energy"] += 30.0
        frames[k].arrays["forces"][:2, 0] += [2e3, -2e3]
    assert contradiction(frames) is None


def test_a_rough_rule_is_no_contradiction():
    """Energies that differ by three times the work, as along a wall."""
    assert contradiction(scaled(rattled(), energy=3.0)) is None
    assert contradiction(scaled(rattled(), energy=1 / 3)) is None
