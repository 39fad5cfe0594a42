"""`pair_style race zbl on`: what it adds is LAMMPS's own pair zbl where the switch is 1, and
what Python adds, on any ranks.
"""

import ase
import numpy as np
import pytest

from .compare import as_dict, assert_close, from_python
from .conftest import ELEMENTS
from .harness import thermo
from .systems import b2o3, slab
from .test_restart import HEAD, TAIL
from .trajectory import trajectory

# The switch is 1 below 0.7 of them
SHORTEST = {
    "B-B": 2.0,
    "B-N": 1.9,
    "B-O": 1.8,
    "N-N": 1.7,
    "N-O": 1.6,
    "O-O": 1.5,
}


@pytest.fixture(scope="module")
def model(artifacts):
    return artifacts(
        "zbl",
        calibration={"force_std_scale": 1.3},
        training={"cutoff": 3.2, "min_distance": SHORTEST},
    )


def dimers(length: float) -> ase.Atoms:
    """One of each pair of elements, far from the others, in a periodic box."""
    atoms = ase.Atoms(cell=[16.0, 24.0, 8.0], pbc=True)
    for k, pair in enumerate(SHORTEST):
        center = np.array([4.0 + 8.0 * (k % 2), 4.0 + 8.0 * (k // 2), 4.0])
        direction = np.random.default_rng(k).normal(size=3)
        direction *= length * SHORTEST[pair] / np.linalg.norm(direction) / 2
        atoms += ase.Atoms(pair.split("-"), positions=[center - direction, center + direction])
    return atoms


def added(run, model, atoms) -> dict:
    on, off = (
        as_dict(run.single_point(atoms, f"{model} zbl {zbl}", ELEMENTS)) for zbl in ("on", "off")
    )
    return {name: on[name] - off[name] for name in on}


def test_against_pair_zbl(lammps_run, model):
    """LAMMPS shifts its energies by a constant of each pair, so differences of energies
    are compared.
    """
    pair = (
        f"pair_style hybrid/overlay race {model} zbl 1.45 1.5\npair_coeff * * race B N O\n"
        + "".join(
            f"pair_coeff {i + 1} {j + 1} zbl {a} {b}\n"
            for i, a in enumerate((5, 7, 8))
            for j, b in enumerate((5, 7, 8))
            if j >= i
        )
    )
    found, expected = [], []
    for length in (0.5, 0.68):
        atoms = dimers(length)
        found.append(added(lammps_run, model, atoms))
        off, both = (
            as_dict(lammps_run.single_point(atoms, f"{model}", ELEMENTS, pair=commands))
            for commands in ("", pair)
        )
        expected.append({name: both[name] - off[name] for name in both})
    assert np.abs(found[0]["forces"]).min() > 1
    for name in ("forces", "virial", "atom_virial"):
        for ours, theirs in zip(found, expected, strict=True):
            np.testing.assert_allclose(ours[name], theirs[name], rtol=1e-6, atol=1e-7, err_msg=name)
    for name in ("energy", "atom_energy"):
        np.testing.assert_allclose(
            found[0][name] - found[1][name],
            expected[0][name] - expected[1][name],
            rtol=1e-6,
            err_msg=name,
        )


@pytest.mark.parametrize("ranks, setup", [(1, ""), (2, ""), (4, "newton off")])
def test_ranks_and_python(lammps_run, model, ranks, setup):
    """A glass that is on both sides of the switch, and a slab with empty ranks: every quantity."""
    for name, atoms in {"b2o3": b2o3(), "slab": slab()}.items():
        found = as_dict(
            lammps_run.single_point(atoms, f"{model} zbl on", ELEMENTS, ranks=ranks, setup=setup)
        )
        assert_close(
            found, from_python(atoms, model, "float64", zbl=True), 1e-9, f"{name} on {ranks} ranks"
        )
        np.testing.assert_allclose(found["atom_virial"].sum(0), found["virial"], atol=1e-8)
        if ranks == 1:
            off = as_dict(lammps_run.single_point(atoms, f"{model}", ELEMENTS))
            assert np.abs(found["forces"] - off["forces"]).max() > 1
            assert_close({"f_cov": found["f_cov"]}, {"f_cov": off["f_cov"]}, 1e-9, name)


def test_restart_keeps_it(lammps_run, model):
    head = HEAD.format(plugin=lammps_run.plugin)
    trajectory(
        lammps_run, model, dimers(0.6), "write_restart core.restart\nrun 0", model="zbl on", every=1
    )
    (row,) = thermo(
        lammps_run.run(
            f"{head}read_restart core.restart\n" + TAIL.format(name="again", steps=0)
        ).output
    )
    assert row["PotEng"] == pytest.approx(
        from_python(dimers(0.6), model, "float64", zbl=True)["energy"], abs=1e-9
    )


def test_what_is_refused_and_said(lammps_run, artifacts, artifact):
    """A model without distances; a pair that training never had."""
    atoms = dimers(0.6)
    with pytest.raises(AssertionError, match="zbl: the model does not say how close"):
        lammps_run.single_point(atoms, f"{artifact} zbl on", ELEMENTS)
    some = artifacts(
        "zbl_some",
        training={"cutoff": 3.2, "min_distance": {"B-B": 1.5, "B-N": 1.5, "N-N": 1.5, "B-O": 1.5}},
    )
    script = lammps_run.block(
        "some", atoms, ELEMENTS, pair=f"pair_style race {some} zbl on\npair_coeff * * B N O"
    )
    output = lammps_run.run(script).output
    assert [
        pair for pair in ("N and O", "O and O", "B and O") if f"no core between {pair}" in output
    ] == ["N and O", "O and O"], output
