"""Neighbours against ASE and against brute force; batches against the frames they join."""

import ase
import ase.neighborlist
import numpy as np
import pytest
import torch
from ase.calculators.singlepoint import SinglePointCalculator

from race.data import Batch, Dataset, build_graph, collate
from race.data.graph import neighbors
from race.errors import RaceError

from .conftest import labelled

TRICLINIC = np.array([[5.0, 0.3, 0.0], [1.5, 6.0, 0.4], [-0.7, 0.9, 7.0]])
CASES = {
    "triclinic": (TRICLINIC, (True, True, True), 20, 3.0),
    "left-handed": (TRICLINIC[[1, 0, 2]], (True, True, True), 12, 3.0),
    "mixed pbc": (TRICLINIC, (True, False, True), 20, 3.5),
    "wire without a cell across": (np.diag([0.0, 0.0, 4.0]), (False, False, True), 6, 4.5),
    "cell smaller than the cutoff": (TRICLINIC * 0.35, (True, True, True), 2, 5.0),
    "one atom and its images": (TRICLINIC * 0.35, (True, True, True), 1, 4.0),
    "very flat cell": (
        np.array([[6.0, 0, 0], [5.5, 1.5, 0], [0, 0, 6.0]]),
        (True, True, True),
        5,
        4.0,
    ),
    "molecule": (np.zeros((3, 3)), (False, False, False), 15, 3.0),
}


def rows(sender, receiver, vector):
    table = np.column_stack((receiver, sender, np.round(vector, 9) + 0.0))
    return table[np.lexsort(table.T[::-1])]


@pytest.mark.parametrize("case", CASES)
def test_neighbors_are_those_of_ase(case):
    cell, pbc, n_atoms, r_max = CASES[case]
    random = np.random.RandomState(1)
    # Scaled coordinates beyond [0, 1): atoms outside the cell, as MD leaves them.
    box = cell + np.diag(np.where(np.diag(cell) == 0, 5.0, 0.0))
    positions = random.uniform(-0.7, 1.7, (n_atoms, 3)) @ box
    sender, receiver, vector = neighbors(positions, cell, np.array(pbc), r_max)
    i, j, shift = ase.neighborlist.primitive_neighbor_list("ijS", pbc, cell, positions, r_max)
    # ASE: D = r_j - r_i + S @ cell, with i the centre: our receiver.
    expected = positions[j] - positions[i] + shift @ cell
    assert len(sender) == len(i) > 0
    np.testing.assert_allclose(rows(sender, receiver, vector), rows(j, i, expected), atol=1e-8)
    assert (np.diff(receiver) >= 0).all()
    # The edge vector is r_sender - r_receiver, up to lattice vectors of the periodic
    # directions only.
    lattice = vector - (positions[sender] - positions[receiver])
    fraction = lattice @ np.linalg.inv(box)
    np.testing.assert_allclose(fraction, np.round(fraction), atol=1e-9)
    assert (np.abs(fraction[:, ~np.array(pbc)]) < 1e-9).all()


def test_neighbors_brute_force():
    """Against images written out by hand, so that ASE and vesin cannot share an error."""
    cell, r_max = TRICLINIC * 0.4, 3.0
    positions = np.array([[0.0, 0.0, 0.0], [0.9, 0.8, 1.1]])
    expected = []
    for receiver in range(2):
        for sender in range(2):
            for shift in np.ndindex(9, 9, 9):
                vector = positions[sender] - positions[receiver] + (np.array(shift) - 4) @ cell
                if 0 < np.linalg.norm(vector) < r_max:
                    expected.append((receiver, sender, *vector))
    found = rows(*neighbors(positions, cell, np.array([True] * 3), r_max))
    table = np.array(expected)
    np.testing.assert_allclose(found, rows(table[:, 1], table[:, 0], table[:, 2:]), atol=1e-8)


def test_cutoff_is_exclusive():
    positions = np.array([[0.0, 0.0, 0.0], [2.0, 0.0, 0.0]])
    assert len(neighbors(positions, np.zeros((3, 3)), np.zeros(3, bool), 2.0)[0]) == 0
    assert len(neighbors(positions, np.zeros((3, 3)), np.zeros(3, bool), 2.0 + 1e-9)[0]) == 2


def test_isolated_atom_has_no_edges():
    graph = build_graph(ase.Atoms("He"), ["He"], 5.0, torch.float64)
    assert graph.n_edges == 0 and graph.row_ptr.tolist() == [0, 0] and graph.volume.isnan().all()
    assert graph.energy is None and graph.forces is None and graph.stress is None


def test_edge_vectors_are_formed_in_float64():
    """Far from the origin a float32 difference would be off by 1e-3 A."""
    near = ase.Atoms("He2", positions=[[0, 0, 0], [0.1234567, 1.0, 0.5]])
    far = near.copy()
    far.translate(1e4)
    vectors = [build_graph(atoms, ["He"], 3.0, torch.float32).edge_vector for atoms in (near, far)]
    assert vectors[1].dtype == torch.float32
    torch.testing.assert_close(vectors[0], vectors[1], atol=1e-7, rtol=1e-6)


def test_labels_from_calculator_are_in_six_order():
    atoms = labelled()
    graph = build_graph(atoms, ["B", "O"], 3.0, torch.float64)
    stress = atoms.calc.results["stress"]  # xx yy zz yz xz xy
    assert graph.stress[0].tolist() == [stress[k] for k in (0, 1, 2, 5, 4, 3)]
    assert (
        graph.energy.dtype == torch.float64 and graph.energy.item() == atoms.calc.results["energy"]
    )
    assert graph.volume.item() == pytest.approx(atoms.get_volume())
    slab = atoms.copy()
    slab.pbc = (True, True, False)
    slab.calc = SinglePointCalculator(slab, stress=stress)  # undefined without a volume
    assert build_graph(slab, ["B", "O"], 3.0, torch.float64).stress is None
    atoms.positions[0] += 0.1  # labels of other positions are no labels
    assert build_graph(atoms, ["B", "O"], 3.0, torch.float64).forces is None


def test_unknown_element_is_named():
    with pytest.raises(RaceError, match="element O is unknown.*expected B N"):
        build_graph(labelled(), ["B", "N"], 3.0, torch.float64)


def assert_same(a: Batch, b: Batch):
    for name, value in vars(a).items():
        other = getattr(b, name)
        assert (value is None) == (other is None), name
        if value is not None:
            assert value.dtype == other.dtype, name
            torch.testing.assert_close(value, other, rtol=0, atol=0, equal_nan=True, msg=name)


def test_collate_joins_frames():
    graphs = [build_graph(labelled(n, seed=n), ["B", "O"], 3.0, torch.float64) for n in (6, 3, 8)]
    batch = collate(graphs)
    assert batch.n_frames == 3 and batch.n_atoms_per_frame.tolist() == [6, 3, 8]
    assert (batch.edge_index[1].diff() >= 0).all()
    first_atom = first_edge = 0
    for k, graph in enumerate(graphs):
        atoms, edges = (
            slice(first_atom, first_atom + graph.n_atoms),
            slice(first_edge, first_edge + graph.n_edges),
        )
        assert (batch.frame[atoms] == k).all()
        assert torch.equal(batch.edge_index[:, edges] - first_atom, graph.edge_index)
        assert torch.equal(batch.edge_vector[edges], graph.edge_vector)
        assert torch.equal(batch.forces[atoms], graph.forces)
        first_atom, first_edge = atoms.stop, edges.stop
    degree = torch.bincount(batch.edge_index[1], minlength=batch.n_atoms)
    assert torch.equal(batch.row_ptr.diff(), degree) and batch.row_ptr[-1] == batch.n_edges
    assert_same(collate([collate(graphs[:2]), graphs[2]]), batch)  # joining is associative


def test_collate_pads_missing_labels_with_nan():
    bare = labelled(4)
    bare.calc = None
    batch = collate(
        [
            build_graph(atoms, ["B", "O"], 3.0, torch.float32)
            for atoms in (bare, labelled(3), ase.Atoms("B"))
        ]
    )
    assert batch.energy.isnan().tolist() == [True, False, True]
    assert batch.forces.isnan().all(1).tolist() == [True] * 4 + [False] * 3 + [True]
    assert batch.stress.isnan().all(1).tolist() == [True, False, True]
    assert batch.volume.isnan().tolist() == [False, False, True]


def test_batch_to_casts_vectors_but_not_energies():
    batch = collate([build_graph(labelled(), ["B", "O"], 3.0, torch.float64)]).to(
        dtype=torch.float32
    )
    assert {batch.edge_vector.dtype, batch.forces.dtype, batch.stress.dtype} == {torch.float32}
    assert batch.energy.dtype == torch.float64 and batch.species.dtype == torch.int64


def test_cached_graphs_give_the_same_batch():
    frames = [labelled(4, seed=k) for k in range(3)]
    dataset = Dataset(frames, ["B", "O"], 3.0, torch.float64)
    first, second = dataset.batch([2, 0]), dataset.batch([2, 0])
    assert_same(first, second)
    assert dataset.graph(2) is dataset.graph(2) and dataset.graph(2).edge_index.dtype == torch.int32
    fresh = collate([build_graph(frames[k], ["B", "O"], 3.0, torch.float64) for k in (2, 0)])
    fresh.index = torch.tensor([2, 0])
    assert_same(first, fresh)
