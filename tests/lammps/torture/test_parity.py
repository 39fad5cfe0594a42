"""Two grids and six cases in every run of the suite; `make torture` has them all."""

import numpy as np
import pytest

from ..harness import Finished, Lammps
from . import parity

FAST = [parity.GRIDS[k] for k in (5, 10)]
CASES = [parity.Case(name, "float64") for name in ("slab", "needle", "pore", "atom")] + [
    parity.Case("b2o3", "float32"),
    parity.Case("boron_nitride", "float64", 3),
]


@pytest.fixture(scope="module")
def bench(tmp_path_factory, plugin, artifact, artifacts):
    made = {1: artifact, 3: artifacts("products-3", correlation=3, gate=True)}
    return parity.Bench(Lammps(plugin, tmp_path_factory.mktemp("parity")), made)


def test_there_are_as_many_as_promised():
    assert len(parity.GRIDS) == 12 and len(parity.SYSTEMS) == 10 and len(parity.ALL) == 40


def test_grids(bench):
    assert "newton off" in FAST[0].setup and "tiled" in FAST[1].setup
    tally = parity.run(bench, FAST, CASES)
    assert tally.good == tally.tried == 12, "\n".join([str(tally), *tally.trouble])


def test_verdict(bench, monkeypatch):
    """What it must not let pass, for one rank and for Python."""
    case = CASES[0]
    right = bench.one_rank[case.name]
    assert bench.verdict(case, right) == ""
    for name, error in {
        "forces": 2e-10,
        "f_cov": 2e-10,
        "atom_virial": 2e-10,
        "energy": np.nan,
    }.items():
        wrong = bench.verdict(case, {**right, name: right[name] + error})
        assert "against one rank" in wrong and name in wrong
    wrong = {**right, "forces": right["forces"] + 2e-9}
    monkeypatch.setitem(bench.one_rank, case.name, wrong)
    assert "against Python, forces" in bench.verdict(case, wrong)


def test_refusals(bench):
    """Only LAMMPS's own, and only where it must."""
    said = Finished(1, f"ERROR: Communication cutoff for {parity.REFUSED} (comm_tiled.cpp)", False)
    needle, slab = parity.Case("needle", "float64"), parity.Case("slab", "float64")
    assert bench.ended(FAST[1], needle, said)[0].crash is None
    for grid, case, finished in (
        (FAST[0], needle, said),
        (FAST[1], slab, said),
        (FAST[1], needle, Finished(1, "ERROR: other", False)),
    ):
        assert bench.ended(grid, case, finished)[0].crash
    assert bench.ended(FAST[0], slab, Finished(-9, "", True))[0].hang


def test_a_crash_is_counted_and_the_rest_goes_on(bench, monkeypatch):
    start = bench.start
    monkeypatch.setattr(
        bench,
        "start",
        lambda grid, cases: (
            start(grid, cases) if cases[0] != CASES[0] else Finished(139, "gone", False)
        ),
    )
    tally = parity.run(bench, FAST[1:], [CASES[0], CASES[2]])
    assert (tally.tried, tally.good, tally.crashes) == (2, 1, 1) and "gone" in tally.trouble[0]
