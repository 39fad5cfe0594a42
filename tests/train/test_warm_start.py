"""What a run takes from the one it starts from, and what of it new data changes."""

import ase
import ase.build
import ase.io
import numpy as np
import pytest
import torch
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator

from race.data import read_frames
from race.data.graph import build_graph
from race.errors import RaceError
from race.model.layer import is_last_layer
from race.model.race import RACE
from race.train.run import load_run
from race.train.training import train
from race.train.warm_start import load_grown

from .conftest import labelled, make_config

SHIFT = -3000.0  # eV per atom


def relabelled(path, frames, shift=0.0):
    for atoms in frames:
        energy = atoms.get_potential_energy() + shift * len(atoms)
        atoms.calc = SinglePointCalculator(atoms, energy=energy, forces=atoms.get_forces())
    ase.io.write(path, frames)
    return path


@pytest.fixture(scope="module")
def source(copper, tmp_path_factory):
    run = tmp_path_factory.mktemp("source") / "run"
    train(make_config(copper, train={"epochs": 3}), run)
    return run


def with_nickel(seed):
    atoms = labelled(seed)
    atoms.symbols[1] = "Ni"
    atoms.calc = EMT()
    energy, forces = atoms.get_potential_energy(), atoms.get_forces()
    atoms.calc = SinglePointCalculator(atoms, energy=energy, forces=forces)
    return atoms


def options(source, **changes):
    return {"epochs": 1, "warm_start": source, "learning_rate": 1e-12, "warmup_epochs": 0} | changes


@pytest.mark.parametrize("given", ["dict", "least_squares"])
def test_reference_energies_as_given(source, tmp_path, given):
    """Labels of another level of theory, one number lower for every atom: the energies are
    as good as before.
    """
    path = relabelled(tmp_path / "shifted.xyz", [labelled(seed) for seed in range(12)], SHIFT)
    old = load_run(source)[1].constants
    known = dict(zip(old.elements, (e + SHIFT for e in old.atomic_energies), strict=True))
    e0 = known if given == "dict" else "least_squares"
    run = tmp_path / "run"
    train(make_config(path, train=options(source), atomic_energies=e0), run)
    _, config, summary = load_run(run)
    if given == "dict":
        assert config.constants.atomic_energies == [known[x] for x in config.constants.elements]
    before = load_run(source)[2]["validation"]["validation/energy_rmse"]
    assert summary["validation"]["validation/energy_rmse"] == pytest.approx(before, rel=0.2)
    assert config.constants.scale == old.scale


def test_an_offset_of_the_labels_is_told(source, tmp_path, caplog):
    path = relabelled(tmp_path / "shifted.xyz", [labelled(seed) for seed in range(12)], SHIFT)
    train(make_config(path, train=options(source)), tmp_path / "run")
    (warning,) = [r.getMessage() for r in caplog.records if "of another level" in r.getMessage()]
    assert "-3000 eV per atom" in warning and "give data.atomic_energies" in warning
    assert load_run(tmp_path / "run")[1].constants.atomic_energies == (
        load_run(source)[1].constants.atomic_energies
    )


@pytest.mark.parametrize("named", [None, ["Ni", "Cu", "Au"]])
def test_new_elements_get_rows_and_the_old_stay(source, tmp_path, caplog, named):
    """Energies and forces of structures without the new element are those of the source."""
    caplog.set_level("INFO")
    path = relabelled(tmp_path / "cuni.xyz", [with_nickel(seed) for seed in range(8)])
    model = {"elements": named} if named else {}
    run = tmp_path / "run"
    train(make_config(path, model=model, train=options(source)), run)
    new, old = load_run(run)[0], load_run(source)[0]
    assert new.constants.elements == ["Cu", "Au", "Ni"] and "Ni is new" in caplog.text
    (atoms,) = read_frames(path, frames=[0])
    atoms.symbols[1] = "Cu"
    out = [
        model(build_graph(atoms, model.constants.elements, 3.5, torch.float64))
        for model in (new, old)
    ]
    torch.testing.assert_close(out[0].energy, out[1].energy, rtol=0, atol=1e-8)
    torch.testing.assert_close(out[0].forces, out[1].forces, rtol=0, atol=1e-8)
    # E0 of the new element makes up what those of the old leave of the energies
    frames = read_frames(path)
    e0 = dict(zip(new.constants.elements, new.constants.atomic_energies, strict=True))
    rest = [a.info["energy"] - sum(e0[s] for s in a.symbols) for a in frames]
    assert abs(np.median(rest)) < 1.0


def test_elements_that_the_source_has_cannot_be_left_out(source, copper, tmp_path):
    config = make_config(copper, model={"elements": ["Cu", "Ni"]}, train=options(source))
    with pytest.raises(RaceError, match="model.elements: lacks elements of the run.*add Au"):
        train(config, tmp_path / "run")


def test_grown_weights_row_by_row(source):
    old = load_run(source)[0]
    constants = old.constants.model_copy(
        update={"elements": ["Cu", "Au", "Ni"], "atomic_energies": [0.0] * 3, "scale": [1.0] * 3}
    )
    torch.manual_seed(3)
    new = RACE(old.config, constants, torch.float64)
    fresh = {name: p.detach().clone() for name, p in new.named_parameters()}
    load_grown(new, old)
    weights = dict(old.named_parameters())
    grown = 0
    for name, p in new.named_parameters():
        if p.shape == weights[name].shape:
            assert torch.equal(p, weights[name]), name
        else:
            assert torch.equal(p[:, :2], weights[name]) and torch.equal(
                p[:, 2:], fresh[name][:, 2:]
            )
            grown += 1
    assert grown >= 3  # the embedding, and the self-connection of every layer


def test_cells_of_one_atom(tmp_path):
    """Forces are zero by symmetry: the scale is what the user gives, or that of energies."""
    frames = []
    for k in range(8):
        atoms = ase.build.bulk("Cu", a=3.5 + 0.05 * k)
        atoms.calc = EMT()
        labels = {n: atoms.calc.get_property(n, atoms) for n in ("energy", "forces", "stress")}
        labels["forces"] = np.zeros((1, 3))
        atoms.calc = SinglePointCalculator(atoms, **labels)
        frames.append(atoms)
    path = tmp_path / "primitive.xyz"
    ase.io.write(path, frames)
    for scale in ([2.0], None):
        run = tmp_path / f"run-{scale}"
        train(make_config(path, model={"scale": scale}, train={"stress_weight": 1.0}), run)
        constants = load_run(run)[1].constants
        assert constants.sigma0 == pytest.approx(0.1 * constants.scale[0])
        assert scale is None or constants.scale == scale


def test_a_frozen_trunk_stays(source, copper, tmp_path):
    """Bit for bit, while the readouts learn."""
    run = tmp_path / "run"
    rate = {"learning_rate": 0.01, "freeze": "trunk", "epochs": 2}
    train(make_config(copper, train=options(source, **rate)), run)
    new, old = (load_run(path)[0] for path in (run, source))
    before, moved = dict(old.named_parameters()), 0
    for name, p in new.named_parameters():
        if is_last_layer(name):
            moved += int(not torch.equal(p, before[name]))
        else:
            assert torch.equal(p, before[name]), name
    assert moved >= 2
    with pytest.raises(ValueError, match="train.freeze needs train.warm_start"):
        make_config(copper, train={"freeze": "trunk"})
    path = relabelled(tmp_path / "cuni.xyz", [with_nickel(seed) for seed in range(4)])
    with pytest.raises(RaceError, match="train.freeze: the rows of new elements"):
        train(make_config(path, train=options(source, freeze="trunk")), tmp_path / "other")


def test_the_error_on_the_earlier_set_is_reported(source, tmp_path, caplog):
    """Weights that did not move err as before, whatever level the new labels are of."""
    caplog.set_level("INFO")
    path = relabelled(tmp_path / "shifted.xyz", [labelled(seed) for seed in range(4)], SHIFT)
    old = load_run(source)[1].constants
    e0 = {x: e + SHIFT for x, e in zip(old.elements, old.atomic_energies, strict=True)}
    train(make_config(path, train=options(source), atomic_energies=e0), tmp_path / "run")
    earlier = load_run(tmp_path / "run")[2]["earlier_validation"]
    for name in ("energy_rmse", "forces_rmse"):
        before, after = (earlier[k][f"validation/{name}"] for k in ("before", "after"))
        assert after == pytest.approx(before, rel=1e-5)
    assert f"validation set of {source}: before" in caplog.text


def test_the_data_of_a_warm_start_is_looked_at(source, tmp_path):
    """It is not that of the run whose weights it takes; a validation set of training frames is
    refused as anywhere.
    """
    path = tmp_path / "same.xyz"
    ase.io.write(path, [labelled(seed) for seed in range(40, 52)])
    config = make_config(path, train=options(source))
    config.data.validation = [path]
    with pytest.raises(RaceError, match="validation-is-training"):
        train(config, tmp_path / "run")
