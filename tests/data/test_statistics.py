"""E0, scales, ranges and splits on sets whose answer is known."""

import json

import ase
import ase.io
import numpy as np
import pytest
import torch

from race.data import (
    Dataset,
    atomic_energies,
    average_neighbors,
    elements_of,
    energy_scale,
    force_scale,
    split_indices,
    summary,
    validation_split,
)
from race.errors import RaceError


def molecules(formulas, e0, noise=0.0, n_each=3):
    random = np.random.RandomState(0)
    frames = []
    for formula in formulas * n_each:
        atoms = ase.Atoms(formula)
        atoms.positions = np.arange(len(atoms))[:, None] * [1.1, 0.2, 0.0]
        atoms.info["energy"] = (
            sum(e0[symbol] for symbol in atoms.get_chemical_symbols()) + noise * random.normal()
        )
        atoms.arrays["forces"] = random.normal(size=(len(atoms), 3))
        frames.append(atoms)
    return frames


E0 = {"H": -13.6, "C": -1029.5, "O": -2042.0}


def test_fit_recovers_e0_where_compositions_determine_it():
    frames = molecules(["CH4", "H2O", "CO2", "C2H6"], E0)
    assert elements_of(frames) == ["H", "C", "O"]
    np.testing.assert_allclose(
        atomic_energies(frames, ["O", "H", "C"]), [E0["O"], E0["H"], E0["C"]], rtol=1e-10
    )


def test_fit_of_degenerate_compositions_is_the_minimum_norm_one():
    frames = molecules(["H2O", "H4O2"], E0)
    fitted = np.array(atomic_energies(frames, ["H", "O", "C"]))
    ratio = np.array([2.0, 1.0, 0.0])  # the one direction that the data determine
    np.testing.assert_allclose(
        fitted, ratio * (2 * E0["H"] + E0["O"]) / (ratio @ ratio), rtol=1e-10, atol=1e-9
    )
    assert energy_scale(frames, ["H", "O", "C"], fitted) < 1e-9


def test_nearly_degenerate_fit_stays_finite():
    fitted = atomic_energies(molecules(["C50H100", "C51H102"], E0, noise=1e-3), ["H", "C"])
    assert np.abs(fitted).max() < 1e3


def test_mean_pooled_target():
    frames = molecules(["CH4", "H2O", "CO2"], E0)
    for atoms in frames:
        atoms.info["energy"] /= len(atoms)
    fitted = atomic_energies(frames, ["H", "C", "O"], pooling="mean")
    np.testing.assert_allclose(fitted, list(E0.values()), rtol=1e-10)
    assert energy_scale(frames, ["H", "C", "O"], [0, 0, 0], pooling="mean") == pytest.approx(
        np.sqrt(np.mean([atoms.info["energy"] ** 2 for atoms in frames]))
    )


def test_e0_given(tmp_path):
    assert atomic_energies([], ["O", "H"], E0) == [E0["O"], E0["H"]]
    with pytest.raises(RaceError, match="elements without E0; expected H N; got H C O"):
        atomic_energies([], ["H", "N"], E0)
    isolated = [ase.Atoms(symbol, info={"energy": value}) for symbol, value in E0.items()]
    ase.io.write(tmp_path / "iso.xyz", isolated, format="extxyz")
    assert atomic_energies([], ["C", "H"], tmp_path / "iso.xyz") == [E0["C"], E0["H"]]
    ase.io.write(
        tmp_path / "iso.xyz",
        [*isolated, ase.Atoms("H2", [[0, 0, 0], [0, 0, 1]], info={"energy": 0.0})],
        format="extxyz",
    )
    with pytest.raises(RaceError, match="iso.xyz, frame 3: not an isolated atom"):
        atomic_energies([], ["C", "H"], tmp_path / "iso.xyz")


def test_scales():
    frames = molecules(["CH4", "H2O"], E0)
    forces = np.concatenate([atoms.arrays["forces"] for atoms in frames])
    assert force_scale(frames) == pytest.approx(np.sqrt(np.mean(forces**2)))
    with pytest.raises(RaceError, match="no force scale"):
        force_scale([ase.Atoms("H")])


def test_average_neighbors():
    """Simple cubic: 6 neighbours within 1.2 lattice constants, none for the lone atom of the
    second frame.
    """
    cubic = ase.Atoms("Po", cell=np.eye(3) * 3, pbc=True)
    assert average_neighbors(Dataset([cubic], ["Po"], 3.6, torch.float32)) == 6
    assert average_neighbors(Dataset([cubic, ase.Atoms("Po")], ["Po"], 3.6, torch.float32)) == 3


def test_summary():
    frames = molecules(["OH2", "CO"], E0, n_each=1)
    report = json.loads(json.dumps(summary(frames)))
    assert (
        report["elements"] == ["H", "C", "O"] and report["n_frames"] == 2 and report["n_atoms"] == 5
    )
    step = np.hypot(1.1, 0.2)  # atoms on a line: O H H and C O
    assert report["min_distance"] == pytest.approx({"H-O": step, "H-H": step, "C-O": step})
    assert report["cutoff"] == 4.0 and report["n_neighbors"] == {
        "H": [2, 2],
        "C": [1, 1],
        "O": [1, 2],
    }
    assert summary(frames, 1.2)["n_neighbors"] == {"H": [1, 2], "C": [1, 1], "O": [1, 1]}
    assert (
        report["labels"] == {"energy": 2, "forces": 2, "stress": 0}
        and report["volume_per_atom"] is None
    )
    oxygen = np.stack([frames[0].arrays["forces"][0], frames[1].arrays["forces"][1]])
    assert report["per_element"]["O"]["force_max"] == pytest.approx(
        np.linalg.norm(oxygen, axis=1).max()
    )
    assert report["per_element"]["O"]["force_rms"] == pytest.approx(np.sqrt(np.mean(oxygen**2)))
    assert summary([ase.Atoms("He")])["per_element"] == {"He": {"n_atoms": 1}}


def test_splits():
    parts = split_indices(20, [5, 10], seed=3)
    assert [len(part) for part in parts] == [5, 10] and len(set(np.concatenate(parts))) == 15
    # Written out: the split of a run must not move when a library does.
    assert parts[0].tolist() == [1, 2, 4, 14, 17]
    assert split_indices(20, [5, 10], seed=4)[0].tolist() != parts[0].tolist()
    training, validation = validation_split(list("abcdefghij"), 0.2, seed=0)
    assert (
        len(validation) == 2
        and sorted(training + validation) == list("abcdefghij")
        and training == sorted(training)
    )
    assert [len(part) for part in validation_split([1, 2], 0.01, seed=0)] == [1, 1]
    with pytest.raises(RaceError, match="too few frames"):
        validation_split([1], 0.5, seed=0)
    with pytest.raises(RaceError, match="split does not fit"):
        split_indices(3, [2, 2], seed=0)
