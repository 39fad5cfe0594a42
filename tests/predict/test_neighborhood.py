"""Neighbours that are kept while atoms move: the numbers of new ones at every step."""

import ase
import numpy as np
import pytest
import race._race
import torch

from race.deploy.export import export_model
from race.errors import RaceError
from race.predict.artifact import ArtifactPredictor
from race.predict.neighborhood import Neighborhood

from ..deploy.conftest import make_model, triclinic

SKIN = 0.6
TOLERANCE = 1e-11  # relative; sums in another order, and terms that are zero


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("neighborhood") / "model.race.pt"
    export_model(make_model(), path)
    return path


@pytest.fixture
def keeping(path):
    return ArtifactPredictor(path, skin=SKIN)


@pytest.fixture(scope="module")
def fresh(path):
    return ArtifactPredictor(path)


def difference(keeping, fresh, atoms) -> float:
    """Of energies, forces, stress and covariances, relative to the largest of each."""
    found, expected = keeping.members(atoms), fresh.members(atoms)
    names = ("node_energy", "forces", "stress", "aleatoric", "energy_var")
    pairs = [(getattr(found, name), getattr(expected, name)) for name in names]
    assert expected.forces.abs().max() > 0.1
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in pairs)


def moved(atoms, step: float, seed: int) -> ase.Atoms:
    """Every atom by `step` Angstrom."""
    atoms = atoms.copy()
    way = np.random.default_rng(seed).standard_normal((len(atoms), 3))
    atoms.positions += step * way / np.linalg.norm(way, axis=1)[:, None]
    return atoms


@pytest.mark.parametrize("make", [triclinic, lambda: ase.Atoms("BNB", np.diag([1.0, 2.0, 2.5]))])
def test_numbers_do_not_change(make, keeping, fresh):
    atoms = make()
    keeping.members(atoms)
    near = keeping._near
    for seed in range(4):
        there = moved(atoms, 0.45 * SKIN, seed)
        assert difference(keeping, fresh, there) < TOLERANCE
        assert keeping._near is near  # which would show a list that is made anew


def test_edges_beyond_the_cutoff_are_there(keeping, fresh):
    atoms = triclinic()
    keeping.members(atoms)
    assert keeping._near.topology.n_edges > len(fresh.graph(atoms)[1]) + 10


CHANGES = {
    "one atom far": lambda a: a.positions.__setitem__((0, 0), a.positions[0, 0] + 0.51 * SKIN),
    "two elements": lambda a: a.numbers.__setitem__(slice(None), a.numbers[::-1].copy()),
    "cell": lambda a: a.set_cell(1.02 * a.cell.array),
    "periodicity": lambda a: a.set_pbc([True, True, False]),
    "an atom less": lambda a: a.__delitem__(-1),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_ends_them(change, keeping, fresh):
    atoms = triclinic()
    keeping.members(atoms)
    near = keeping._near
    CHANGES[change](atoms)
    assert difference(keeping, fresh, atoms) < TOLERANCE and keeping._near is not near


@pytest.mark.parametrize("change", ["one atom far", "two elements", "cell"])
def test_stale_neighbours_would_be_seen(change, keeping, fresh, monkeypatch):
    """With as many atoms and edges nothing but the numbers tells."""
    atoms = triclinic()
    keeping.members(atoms)
    monkeypatch.setattr(Neighborhood, "holds", lambda self, atoms: True)
    if change == "one atom far":
        atoms.positions[0] += [2.5, 0.0, 0.0]
    else:
        CHANGES[change](atoms)
    assert difference(keeping, fresh, atoms) > 1e-4


def test_atoms_at_one_place(keeping):
    atoms = triclinic()
    keeping.members(atoms)
    atoms.positions[1] = atoms.positions[0]
    with pytest.raises(RaceError, match="are at one place"):
        keeping.members(atoms)


def test_close_atoms_move_no_further_than_they_are_apart(keeping, fresh):
    atoms = ase.Atoms("BN", [[0.0, 0.0, 0.0], [0.0, 0.0, 0.3]])
    keeping.members(atoms)
    near = keeping._near
    atoms.positions[1, 2] = 0.1
    assert difference(keeping, fresh, atoms) < TOLERANCE and keeping._near is not near


def test_nan(keeping):
    atoms = triclinic()
    keeping.members(atoms)
    atoms.positions[0, 0] = np.nan
    with pytest.raises(RaceError, match="NaN"):
        keeping.members(atoms)


def test_vectors_of_another_list(keeping):
    atoms = triclinic()
    keeping.members(atoms)
    near = keeping._near
    with pytest.raises(RaceError, match="one row of three for each of the"):
        keeping.model.predict(near.topology, near.vectors(atoms)[1:])


def test_a_topology_is_a_copy(keeping, fresh):
    """Whoever made it may use its arrays for the next one."""
    species, vector, sender, row_ptr = fresh.graph(triclinic())
    expected = fresh.model.predict(species, vector, sender, row_ptr)["forces"]
    topology = race._race.Topology(fresh.model, species, sender, row_ptr)
    for array in (species, sender, row_ptr):
        array.zero_()
    assert torch.equal(fresh.model.predict(topology, vector)["forces"], expected)
