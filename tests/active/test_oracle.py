"""Oracles: LAMMPS against an independent use of it, calculators by name, each structure once."""

import importlib.util
from pathlib import Path

import ase.build
import numpy as np
import pytest
from ase.calculators.emt import EMT

from race.active.calculators import LabelFailure
from race.active.config import OracleConfig
from race.active.oracle import CachedOracle, CalculatorOracle, make_oracle
from race.errors import RaceError

from .conftest import boron_nitride

EXTEP = {"lammps": ["pair_style extep", "pair_coeff * * BN.extep B N"], "elements": ["B", "N"]}


def copper(seed: int = 0) -> ase.Atoms:
    atoms = ase.build.bulk("Cu", cubic=True)
    atoms.rattle(0.1, seed=seed)
    return atoms


def test_lammps_gives_what_the_demo_computes_by_itself():
    spec = importlib.util.spec_from_file_location(
        "reference", Path(__file__).parents[2] / "examples/demo/reference.py"
    )
    reference = importlib.util.module_from_spec(spec)
    oracle = CalculatorOracle(OracleConfig(**EXTEP))
    atoms = boron_nitride(3) * (2, 1, 1)
    label = oracle.label(atoms, "here")
    spec.loader.exec_module(reference)
    other = reference.label(atoms)
    assert label["energy"] == pytest.approx(other.get_potential_energy(), abs=1e-9)
    np.testing.assert_allclose(label["forces"], other.get_forces(), atol=1e-9)
    np.testing.assert_allclose(label["stress"], other.get_stress(), atol=1e-9)
    # A triclinic cell between two others: LAMMPS's orientation is turned back, and
    # nothing is left over from the last structure.
    primitive = ase.build.bulk("BN", "zincblende", a=3.6) * (2, 2, 2)
    primitive.rattle(0.1, seed=1)
    tilted = oracle.label(primitive, "here")
    twice = oracle.label(primitive * (1, 1, 2), "here")
    assert twice["energy"] == pytest.approx(2 * tilted["energy"], abs=1e-8)
    np.testing.assert_allclose(twice["forces"][:16], tilted["forces"], atol=1e-8)
    np.testing.assert_allclose(oracle.label(atoms, "here")["forces"], label["forces"], atol=1e-12)
    assert oracle.calls == 4


def test_any_ase_calculator(tmp_path):
    oracle = make_oracle(OracleConfig(calculator="ase.calculators.emt.EMT"), [], {}, tmp_path)
    atoms = copper()
    label = oracle.label(atoms, "here")
    atoms.calc = EMT()
    assert label["energy"] == pytest.approx(atoms.get_potential_energy(), abs=1e-12)
    np.testing.assert_allclose(label["forces"], atoms.get_forces(), atol=1e-12)
    np.testing.assert_allclose(label["stress"], atoms.get_stress(), atol=1e-12)
    molecule = ase.Atoms("Cu2", [[0, 0, 0], [0, 0, 2.4]])
    assert "stress" not in oracle.label(molecule, "here")


def test_no_structure_is_computed_twice(tmp_path):
    config = OracleConfig(calculator="ase.calculators.emt.EMT")
    for attempt, computed in ((1, 2), (2, 0)):
        oracle = make_oracle(config, [], {}, tmp_path)
        labels = [oracle.label(atoms, "here") for atoms in (copper(1), copper(2), copper(1))]
        assert oracle.computed == computed and oracle.calls == 3, attempt
        np.testing.assert_array_equal(labels[0]["forces"], labels[2]["forces"])
    # Another oracle's labels are not taken for this one's.
    other = CachedOracle(CalculatorOracle(config), "another", tmp_path)
    other.label(copper(1), "here")
    assert other.computed == 1


@pytest.mark.parametrize(
    "config, atoms, message",
    [
        ({"calculator": "ase.calculators.none.None"}, copper(), "no such calculator"),
        ({"calculator": "EMT"}, copper(), "no such calculator"),
        (
            {"calculator": "json.JSONEncoder", "arguments": {"nothing": 1}},
            copper(),
            "no such calculator .*nothing",
        ),
        (
            {"calculator": "ase.calculators.emt.EMT"},
            ase.Atoms("U2", [[0, 0, 0], [0, 0, 2.5]]),
            "pool, frame 3: the oracle failed",
        ),
        (
            {**EXTEP, "lammps": ["pair_style nonsense"]},
            boron_nitride(0),
            "pool, frame 3: the oracle failed .*nonsense",
        ),
        ({**EXTEP, "elements": ["B"]}, boron_nitride(0), "pool, frame 3: the oracle failed"),
    ],
)
def test_refusals(config, atoms, message):
    with pytest.raises(RaceError, match=message):
        CalculatorOracle(OracleConfig(**config)).label(atoms, "pool, frame 3")


class Few(EMT):
    def calculate(self, *args, **kwargs):
        super().calculate(*args, **kwargs)
        self.results["forces"] = self.results["forces"][:1]


class Leaving(EMT):
    def calculate(self, *args, **kwargs):
        raise SystemExit(3)


@pytest.mark.parametrize(
    ("name", "message"), [("Few", r"forces.*4 of 3.*got shape \[1, 3\]"), ("Leaving", "failed .3.")]
)
def test_what_is_no_label_is_a_failure(name, message):
    oracle = CalculatorOracle(OracleConfig(calculator=f"{__name__}.{name}"))
    with pytest.raises(LabelFailure, match=message):
        oracle.label(ase.build.bulk("Cu", cubic=True), "a.xyz, frame 0")
