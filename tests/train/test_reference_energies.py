"""E0 of isolated atoms among the frames, and the binding energy that E0 of any atoms leave."""

import ase.io
import numpy as np
import pytest
from ase.calculators.singlepoint import SinglePointCalculator

from race.config import Config
from race.data.statistics import atomic_energies, binding_energy, is_isolated
from race.errors import RaceError
from race.train.prepare import prepare
from race.train.run import load_run
from race.train.training import train
from tests.train.test_levels import varied

BOUND = {"Cu": -3.0, "Au": -4.0}  # of an atom in the crystals, eV
ALONE = {"Cu": -0.5, "Au": -0.25}


def crystal(seed):
    atoms = varied(seed)
    results = {name: atoms.calc.results[name] for name in ("energy", "forces", "stress")}
    results["energy"] = sum(BOUND[symbol] for symbol in atoms.symbols)
    atoms.calc = SinglePointCalculator(atoms, **results)
    return atoms


def alone(symbol, energy=None, cell=None):
    atoms = ase.Atoms(symbol, cell=cell, pbc=cell is not None)
    energy = ALONE[symbol] if energy is None else energy
    atoms.calc = SinglePointCalculator(atoms, energy=energy, forces=np.zeros((1, 3)))
    return atoms


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("isolated")
    frames = [crystal(seed) for seed in range(24)]
    box = [15.0, 15.0, 15.0]
    ase.io.write(folder / "both.xyz", [*frames[:20], alone("Cu"), alone("Au", cell=box)])
    ase.io.write(
        folder / "twice.xyz", [*frames[:20], alone("Cu", 1.0, [12.0] * 3), alone("Cu"), alone("Au")]
    )
    ase.io.write(folder / "one.xyz", [*frames[:20], alone("Cu")])
    ase.io.write(folder / "none.xyz", frames[:20])
    ase.io.write(folder / "v.xyz", [*frames[20:], alone("Au")])
    return folder


def config(files, name, e0, validation=True, **train_options):
    accept = ["energy-forces", "repeated-energies"]
    data = {"train": [files / name], "atomic_energies": e0, "accept": accept}
    if validation:
        data["validation"] = [files / "v.xyz"]
    model = {"r_max": 3.5, "irreps_hidden": "4x0e+4x1o+4x2e", "n_features": 4}
    options = {"epochs": 1, "dtype": "float64", "n_threads": 1} | train_options
    return Config.model_validate({"data": data, "model": model, "train": options})


def constants(files, name, e0):
    made = prepare(config(files, name, e0))
    found = made.config.constants
    text = made.report.text()
    return dict(zip(found.elements, found.atomic_energies, strict=True)), found.energy_shift, text


@pytest.mark.parametrize("name", ["both.xyz", "twice.xyz", "one.xyz"])
def test_isolated_atoms_are_e0_and_leave_the_binding(files, name):
    """In vacuum, in a box, the lowest of several, in either part."""
    e0, shift, text = constants(files, name, "isolated")
    assert e0 == ALONE
    bound = [atoms for atoms in ase.io.read(files / "none.xyz", ":")]
    rest = [
        sum(BOUND[x] - ALONE[x] for x in atoms.symbols) / len(atoms) for atoms in bound
    ]  # the isolated atoms have none
    assert shift == pytest.approx(np.mean(rest), abs=1e-9)
    assert "-0.5" in text and f"{shift:.4g} eV/atom of binding" in text


def test_a_fit_leaves_them_out_and_says_so(files):
    e0, shift, text = constants(files, "both.xyz", "least_squares")
    assert e0 == pytest.approx(BOUND, abs=1e-8) and shift == 0.0
    assert "of the other frames than 2 isolated atoms" in text
    e0, _, text = constants(files, "none.xyz", "least_squares")
    assert e0 == pytest.approx(BOUND, abs=1e-8) and "isolated" not in text


def test_what_compositions_leave_open_is_theirs(files):
    frames = [crystal(0) for _ in range(3)]
    for atoms in frames:
        atoms.symbols[:] = "Cu3Au"
        atoms.info["energy"] = 3 * BOUND["Cu"] + BOUND["Au"]
    free = atomic_energies(frames, ["Cu", "Au"], isolated={"Cu": 0.0, "Au": 10.0})
    change = (3 * BOUND["Cu"] + BOUND["Au"] - 10.0) / (9 + 1)  # of minimum norm
    assert free == pytest.approx([3 * change, 10.0 + change])
    assert atomic_energies(frames, ["Cu", "Au"]) != pytest.approx(free)


def test_a_primitive_cell_is_not_isolated():
    import ase.build

    assert not is_isolated(ase.build.bulk("Cu"), 3.5)
    assert is_isolated(ase.Atoms("Cu"), 3.5) and not is_isolated(ase.Atoms("Cu2"), 3.5)
    wire = ase.Atoms("Cu", cell=[50, 50, 3.0], pbc=[False, False, True])
    assert not is_isolated(wire, 3.5) and is_isolated(wire, 2.9)


@pytest.mark.parametrize("pooling", ["sum", "mean"])
def test_binding_counts_by_weights(pooling):
    frames = [crystal(seed) for seed in range(4)]
    for k, atoms in enumerate(frames):
        size = len(atoms) if pooling == "sum" else 1
        atoms.info |= {"energy": size * (1.0 + k), "race_weight": 1.0 + k}
    e0 = [0.5, 0.5]
    found = binding_energy(frames, ["Cu", "Au"], e0, pooling=pooling)
    assert found == pytest.approx(np.average([0.5, 1.5, 2.5, 3.5], weights=[1, 2, 3, 4]))
    assert binding_energy([], ["Cu"], [1.0]) == 0.0


def test_given_energies_stay_and_the_network_starts_at_the_mean(files, tmp_path):
    """Else it would have 3 eV an atom to learn, which the likelihood does not make it do."""
    train(config(files, "none.xyz", ALONE, forces_weight=0.0, loss="nll_e"), tmp_path / "run")
    model, resolved, _ = load_run(tmp_path / "run")
    found = resolved.constants
    assert dict(zip(found.elements, found.atomic_energies, strict=True)) == ALONE
    assert found.energy_shift < -2.5
    expected = [ALONE[x] + found.energy_shift for x in found.elements]
    assert model.atomic_energies.tolist() == pytest.approx(expected)
    # Weights that start from it keep it with E0 of the same kind, and lose it to a fit
    for e0, kept in ((ALONE, True), ("least_squares", False)):
        options = config(files, "none.xyz", e0, warm_start=tmp_path / "run", forces_weight=0.0)
        options.train.loss = "nll_e"
        raw = options.model_dump(exclude_unset=True)
        del raw["model"]
        out = tmp_path / f"warm-{kept}"
        train(Config.model_validate(raw), out)
        shift = load_run(out)[1].constants.energy_shift
        assert shift == (found.energy_shift if kept else 0.0)


def test_an_element_without_one_is_refused(files):
    with pytest.raises(RaceError, match=r"isolated: elements without E0; expected Cu Au; got Cu"):
        prepare(config(files, "one.xyz", "isolated", validation=False))
