"""No structure kills, hangs or fills the process, and those that are searched otherwise than
they stand have the pairs of the slow search.
"""

import ase.build
import numpy as np
import pytest
from scipy.spatial.distance import cdist

from race.data.graph import neighbors
from race.errors import RaceError

NONE, ALL = np.zeros(3, bool), np.ones(3, bool)
PAIR = np.array([[0.0, 0, 0], [1.0, 1.0, 1.0]])


def all_images(positions, cell, pbc, r_max, reach=6):
    """(receiver, sender, vector) of every pair, by trying every image."""
    spans = [range(-reach, reach + 1) if periodic else range(1) for periodic in pbc]
    rows = []
    for shift in np.stack(np.meshgrid(*spans, indexing="ij"), -1).reshape(-1, 3):
        offset = shift @ cell
        distance = cdist(positions, positions + offset)
        for i, j in np.argwhere(distance < r_max):
            if i != j or shift.any():
                rows.append((i, j, *np.round(positions[j] + offset - positions[i], 9)))
    return sorted(rows)


def found(positions, cell, pbc, r_max):
    sender, receiver, vector = neighbors(positions, cell, pbc, r_max)
    return sorted(zip(receiver, sender, *np.round(vector, 9).T, strict=True))


def refusal(positions, cell, pbc, r_max=4.0):
    with pytest.raises(RaceError) as error:
        neighbors(np.asarray(positions, float), np.asarray(cell, float), pbc, r_max, "a, frame 3")
    assert str(error.value).startswith("a, frame 3: ") and "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite(bad):
    for row in range(3):
        cell = np.eye(3) * 5
        cell[row, 1] = bad
        for pbc in (ALL, NONE, np.array([True, True, False])):
            assert "the cell is NaN or infinite" in refusal(PAIR, cell, pbc)
    positions = PAIR.copy()
    positions[1, 2] = bad
    assert "a position is NaN or infinite; got z of atom 1" in refusal(positions, np.eye(3), ALL)


def test_periodic_without_a_cell():
    assert "expected a cell vector a and b and c" in refusal(PAIR, np.zeros((3, 3)), ALL)
    assert "expected a cell vector c" in refusal(PAIR, np.diag([5.0, 5, 0]), ALL)
    assert len(neighbors(PAIR, np.diag([5.0, 5, 0]), np.array([True, True, False]), 4.0)[0])


@pytest.mark.parametrize("height", [0.1, 1e-2, 1e-3, 1e-6, 1e-12])
def test_nearly_flat_cells(height):
    cell = np.array([[3.0, 0, 0], [0, 3, 0], [1.5, 1.5, height]])
    message = refusal(PAIR * [1, 1, 0], cell, ALL)
    assert "span no volume" in message or "too many atoms within the cutoff" in message
    short = refusal(PAIR[:1], np.diag([4, 4, 1e-4 * height]), ALL)
    assert "too many atoms" in short


@pytest.mark.parametrize("far", [1.1e5, 3e5, 1e6, 1e12, 1e300])
def test_runaway_atoms(far):
    for axis in range(3):
        positions = PAIR.copy()
        positions[1, axis] = far
        assert "too large for a neighbour search" in refusal(positions, np.zeros((3, 3)), NONE)
        slab = ALL.copy()
        slab[axis] = False
        assert "atom" in refusal(positions, np.eye(3) * 5, slab)
    assert "run away" in refusal(PAIR * [1, far * 10, 1], np.eye(3) * 5, ALL)


def test_atoms_at_one_place():
    message = refusal(np.random.RandomState(0).rand(40000, 3) * 0.01, np.zeros((3, 3)), NONE)
    assert "too many atoms within the cutoff of each other" in message
    # What a search can do, but no model; four times diamond's density is fine
    message = refusal(np.random.RandomState(0).rand(2000, 3) * 0.05, np.zeros((3, 3)), NONE)
    assert "expected on average at most 1000 neighbours" in message and "got 1999" in message
    dense = ase.build.bulk("C", a=3.57 / 4 ** (1 / 3), cubic=True)
    assert len(neighbors(dense.positions, dense.cell.array, dense.pbc, 6.0)[0]) > 8 * 500


@pytest.mark.parametrize("gap", [30.0, 1e3, 9e4])
@pytest.mark.parametrize("pbc", [(0, 0, 0), (1, 1, 0), (0, 1, 1), (0, 0, 1), (1, 0, 0)])
@pytest.mark.parametrize("r_max", [1.0, 3.0])
def test_fragments_far_apart(gap, pbc, r_max):
    """Found at once, where the search itself would take minutes or divide by zero."""
    pbc = np.array(pbc, dtype=bool)
    random = np.random.RandomState(1)
    positions = random.rand(12, 3) * 4
    positions[6:] += np.where(pbc, 0.0, gap)
    cell = np.eye(3) * 4 + 0.3 * random.rand(3, 3) * pbc[:, None] * pbc[None, :]
    mine = found(positions, cell, pbc, r_max)
    assert mine == all_images(positions, cell, pbc, r_max)
    assert len(mine) > 5 or r_max == 1.0


def test_random_structures_of_every_periodicity():
    n_edges = 0
    for seed in range(60):
        random = np.random.RandomState(seed)
        pbc = random.rand(3) < 0.5
        cell = np.eye(3) * random.uniform(2, 6, 3) + random.uniform(-0.8, 0.8, (3, 3))
        positions = random.rand(random.randint(1, 10), 3) @ cell
        mine = found(positions, cell, pbc, 3.0)
        assert mine == all_images(positions, cell, pbc, 3.0)
        n_edges += len(mine)
    assert n_edges > 1000


@pytest.mark.parametrize("length", [1250.0, 1700.0, 3000.0])
def test_wide_and_thin(length):
    """Periodic boxes of more cells than the search's own limit, one of them thick."""
    random = np.random.RandomState(0)
    positions = random.rand(400, 3) * [40.0, 40.0, 5.0]
    cell = np.diag([length, length, 5.0])
    mine = found(positions, cell, ALL, 4.0)
    assert mine == [row for row in all_images(positions, cell, ALL, 4.0, reach=1)] and len(mine)
