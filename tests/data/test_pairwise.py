"""Forces that have nothing to do with their structures, and energies of another unit, in sets
whose frames lie too far apart for their differences to tell.
"""

import ase.build
import numpy as np
import pytest
import torch
from ase.calculators.emt import EMT

from race.data import Dataset
from race.data.baseline import LOST
from race.data.graph import ORIGIN
from race.data.pairwise import divide, other_scale, unrelated
from race.errors import RaceError

from .test_plausibility import ask, copper, found


def each(frames, change):
    random = np.random.RandomState(0)
    for atoms in frames:
        atoms.arrays["forces"] = change(atoms.arrays["forces"], random)
    return frames


def moved_on(frames, label):
    """Labels of the frame before."""
    place = "arrays" if label == "forces" else "info"
    values = [getattr(atoms, place)[label] for atoms in frames]
    for atoms, value in zip(frames, values[-1:] + values[:-1], strict=True):
        getattr(atoms, place)[label] = value
    return frames


INTERCHANGED = {
    "atoms": lambda frames: each(frames, lambda f, random: random.permutation(f)),
    "axes": lambda frames: each(frames, lambda f, _: f[:, [1, 2, 0]].copy()),
    "frames": lambda frames: moved_on(frames, "forces"),
}


@pytest.mark.parametrize("what", INTERCHANGED)
def test_interchanged_forces(what):
    frames = copper(24)
    assert not ask(frames).findings
    with pytest.raises(RaceError, match=r"explains 1?\d % of them.*\(unrelated-forces\)"):
        ask(INTERCHANGED[what](frames))
    accept = ("unrelated-forces", "energy-forces")
    assert "unrelated-forces" in found(ask(frames, accept=accept))
    assert "unrelated-forces" not in found(ask(frames, labels=("energy", "stress")))


def test_chance_explains_nothing():
    """The frames that are asked are not those that were fitted: of these it would be some 5 %."""
    frames = each(copper(16), lambda f, random: random.normal(size=f.shape))
    said = unrelated(divide(Dataset(frames, ["Cu"], 4.0, torch.float64)))
    assert "explains 0 % of them" in said


@pytest.mark.parametrize("factor", [-1.0, 51.42, 1 / 51.42, 1e3])
def test_another_unit(factor):
    frames = each(copper(24), lambda f, _: factor * f)
    with pytest.raises(RaceError, match=r"times those of a pair potential.*\(energy-forces\)"):
        ask(frames, labels=("energy", "forces"))


def rattled(atoms, n, size, strain=0.0, seed=0):
    frames = []
    for k in range(n):
        random = np.random.RandomState(100 * seed + k)
        one = atoms.copy()
        if strain:
            one.set_cell(
                one.cell @ (np.eye(3) + random.normal(0, strain, (3, 3))), scale_atoms=True
            )
        one.positions += random.normal(0, size, one.positions.shape)
        one.calc = EMT()
        energy, forces = one.get_potential_energy(), one.get_forces()
        one.calc = None
        one.info |= {"energy": energy, ORIGIN: f"a.xyz, frame {k}"}
        one.arrays["forces"] = forces
        frames.append(one)
    return frames


SOUND = {
    **{
        f"{symbol}, {size:g} A, strain {strain:g}": (
            lambda symbol=symbol, size=size, strain=strain: rattled(
                ase.build.bulk(symbol, cubic=True) * (2, 1, 1), 24, size, strain
            )
        )
        for symbol in ("Al", "Ni", "Pt", "Au")
        for size, strain in ((0.02, 0.0), (0.3, 0.0), (0.05, 0.03), (0.1, 0.08))
    },
    "slab": lambda: rattled(ase.build.fcc111("Cu", (2, 2, 3), vacuum=8.0), 24, 0.1),
    "molecules": lambda: rattled(ase.build.molecule("CH3CH2OH"), 30, 0.05),
    "alloy": lambda: rattled(alloy(), 24, 0.1, 0.02),
}


def alloy():
    atoms = ase.build.bulk("Cu", cubic=True) * (2, 1, 1)
    atoms.symbols[::2] = "Au"
    return atoms


@pytest.mark.parametrize("name", SOUND)
def test_sound_sets_pass(name):
    frames = SOUND[name]()
    data = Dataset(frames, sorted({*frames[0].symbols}), 5.0, torch.float64)
    assert unrelated(divide(data)) is None and other_scale(divide(data)) is None


def test_too_little_to_tell():
    """Few frames, forces within the noise, single atoms, frames without forces; and one force
    that would rule every sum.
    """
    few = INTERCHANGED["axes"](copper(6))
    small = each(INTERCHANGED["axes"](copper(24)), lambda f, _: 1e-4 * f)
    without = copper(24)
    for atoms in without:
        del atoms.arrays["forces"]
    large = copper(24)
    large[3].arrays["forces"][2, 1] = 9e3
    for frames in (few, small, without, [atoms[:1] for atoms in copper(24)], large):
        data = Dataset(frames, ["Cu"], 4.0, torch.float64)
        assert unrelated(divide(data)) is None and other_scale(divide(data)) is None


def test_the_rest_of_a_baseline():
    """What a pair potential leaves is not pairwise, and right."""
    frames = copper(24)
    random = np.random.RandomState(0)
    for atoms in frames:
        forces = atoms.arrays["forces"]
        atoms.arrays["forces"] = 0.05 * random.permutation(forces)
        atoms.arrays[LOST] = forces - atoms.arrays["forces"]
    data = Dataset(frames, ["Cu"], 4.0, torch.float64)
    assert unrelated(divide(data)) is None and other_scale(divide(data)) is None
    for atoms in frames:
        del atoms.arrays[LOST]
    assert unrelated(divide(data)) is not None
