"""Energies of several levels of theory: planted offsets are found, and a training on them is the
training on energies of one level.
"""

import ase.io
import numpy as np
import pytest

from race.config import Config
from race.errors import RaceError
from race.evaluate.evaluated import evaluated_run
from race.train.prepare import prepare
from race.train.run import load_run
from race.train.training import train
from tests.train.conftest import labelled

OFFSETS = {"Cu": -1650.0, "Au": 320.5}


def shifted(atoms, by=OFFSETS):
    out = atoms.copy()
    results = dict(atoms.calc.results)
    results["energy"] += sum(by[symbol] for symbol in atoms.symbols)
    results.pop("free_energy", None)
    out.calc = ase.calculators.singlepoint.SinglePointCalculator(out, **results)
    return out


def varied(seed):
    """Compositions that a fit can tell apart."""
    from ase.calculators.emt import EMT

    atoms = labelled(seed)
    atoms.numbers[: seed % len(atoms)] = 79
    atoms.calc = EMT()
    atoms.get_potential_energy(), atoms.get_forces(), atoms.get_stress()
    return atoms


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """a: of one level; b, c: of another, c that of b, for validation; plain: all as a's."""
    folder = tmp_path_factory.mktemp("levels")
    frames = [varied(seed) for seed in range(40)]
    other = [shifted(atoms) for atoms in frames]
    ase.io.write(folder / "a.xyz", frames[:20])
    ase.io.write(folder / "b.xyz", other[20:36])
    ase.io.write(folder / "b-plain.xyz", frames[20:36])
    ase.io.write(folder / "v.xyz", frames[36:])
    mixed = frames[:20] + other[20:36]
    for k, atoms in enumerate(mixed):
        atoms.info["method"] = "pbe" if k < 20 else "scan"
    ase.io.write(folder / "mixed.xyz", mixed)
    for atoms in other[36:]:
        atoms.info["method"] = "scan"
    ase.io.write(folder / "test.xyz", other[36:])
    return folder


def config(files, *names, **data):
    data |= {"train": [files / name for name in names], "validation": [files / "v.xyz"]}
    options = {"epochs": 2, "dtype": "float64", "n_threads": 1}
    small = {"r_max": 3.5, "irreps_hidden": "4x0e+4x1o+4x2e", "n_features": 4, "n_layers": 2}
    return Config.model_validate({"data": data, "model": small, "train": options})


def energies(prepared):
    return np.array([atoms.info["energy"] for atoms in prepared.train.frames])


def test_given_offsets_are_subtracted(files):
    expected = energies(prepare(config(files, "a.xyz", "b-plain.xyz")))
    given = {"b.xyz": OFFSETS}
    prepared = prepare(config(files, "a.xyz", "b.xyz", energy_offsets=given))
    np.testing.assert_allclose(energies(prepared), expected, atol=1e-8)
    assert prepared.config.constants.energy_offsets == given
    alike = prepare(config(files, "a.xyz", "b.xyz", energy_offsets={"b.xyz": 3.0}))
    size = np.array([len(atoms) for atoms in alike.train.frames[20:]])
    untouched = energies(prepare(config(files, "a.xyz", "b.xyz")))
    np.testing.assert_allclose(energies(alike)[20:], untouched[20:] - 3 * size, atol=1e-8)


@pytest.mark.parametrize(
    ("names", "data", "source"),
    [
        (["a.xyz", "b.xyz"], {}, "b.xyz"),
        (["mixed.xyz"], {"source_key": "method"}, "scan"),
    ],
)
def test_a_fit_finds_them(files, names, data, source):
    """To the 0.2 eV by which the cohesion of the two halves differs."""
    prepared = prepare(config(files, *names, energy_offsets="fit", **data))
    offsets = prepared.config.constants.energy_offsets
    assert offsets.keys() == {source}
    for symbol, value in OFFSETS.items():
        assert offsets[source][symbol] == pytest.approx(value, abs=0.2)
    assert "energy-offsets" not in dict(prepared.report.findings)
    assert f"energies of {source} lose Cu -16" in prepared.report.text()


def test_what_compositions_do_not_tell_is_no_offset(files, tmp_path):
    """Both sources have one composition: its energy is right, and no element gets thousands of
    eV that another loses. An element that the first source lacks keeps its energies.
    """
    one = [labelled(seed) for seed in range(24)]
    by = {"Cu": 2.0, "Au": 2.0}
    ase.io.write(tmp_path / "a.xyz", one[:12])
    ase.io.write(tmp_path / "b.xyz", [shifted(atoms, by) for atoms in one[12:]])
    prepared = prepare(config(files, tmp_path / "a.xyz", tmp_path / "b.xyz", energy_offsets="fit"))
    found = prepared.config.constants.energy_offsets["b.xyz"]
    share = {symbol: list(one[0].symbols).count(symbol) / len(one[0]) for symbol in by}
    assert sum(share[s] * found[s] for s in by) == pytest.approx(2.0, abs=0.1)
    assert max(abs(value) for value in found.values()) < 4.0
    pure = [atoms.copy() for atoms in one[:12]]
    for atoms, before in zip(pure, one, strict=False):
        atoms.symbols[:] = "Cu"
        atoms.calc = before.calc
        atoms.calc.atoms = atoms
    ase.io.write(tmp_path / "cu.xyz", pure)
    names = (tmp_path / "cu.xyz", tmp_path / "b.xyz")
    assert prepare(
        config(files, *names, energy_offsets="fit", accept=["conflicting-labels"])
    ).config.constants.energy_offsets["b.xyz"].keys() == {"Cu"}


def test_runs_keep_their_offsets(files, tmp_path):
    """In training, in what is read again afterwards, and for test sets of a source."""
    options = config(files, "mixed.xyz", energy_offsets="fit", source_key="method")
    train(options, tmp_path / "run")
    _, resolved, _ = load_run(tmp_path / "run")
    offsets = resolved.constants.energy_offsets["scan"]
    again = prepare(resolved, resolved.constants)
    np.testing.assert_allclose(energies(again), energies(prepare(options)), atol=1e-9)
    source = evaluated_run(tmp_path / "run")
    frames = source.read(files / "test.xyz")
    raw = [atoms.get_potential_energy() for atoms in ase.io.read(files / "test.xyz", ":")]
    for atoms, energy in zip(frames, raw, strict=True):
        total = sum(offsets[symbol] for symbol in atoms.symbols)
        assert atoms.info["energy"] == pytest.approx(energy - total, abs=1e-9)
    train(options, tmp_path / "run", resume=True)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"energy_offsets": "fit"}, "one source of energies alone.*source_key"),
        ({"energy_offsets": {"c.xyz": 1.0}}, "no frame is of c.xyz.*expected a.xyz"),
        ({"energy_offsets": {"a.xyz": {"Cu": 1.0}}}, "a.xyz has no offset of Au"),
    ],
)
def test_refusals(files, data, message):
    with pytest.raises(RaceError, match=message):
        prepare(config(files, "a.xyz", **data))
