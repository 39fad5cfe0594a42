"""`race init`: the config that it writes learns from the data as the data is."""

import json

import ase.io
import numpy as np
import pytest
import yaml
from ase.calculators.emt import EMT

from race.cli import main
from race.config import read_config
from race.train.force_histogram import force_histogram
from race.train.prepare import prepare

from .conftest import labelled


def under_other_names(seed: int, energy: str = "dft_energy", unit: float = 1.0) -> ase.Atoms:
    atoms = labelled(seed)
    results, atoms.calc = atoms.calc.results, None
    atoms.info[energy] = results["energy"] * unit
    atoms.arrays["dft_forces"] = results["forces"] * unit
    atoms.info["dft_stress"] = results["stress"] * unit
    return atoms


def init(capsys, *words) -> tuple[dict, str]:
    assert main(["init", *map(str, words)]) == 0
    out = words[words.index("-o") + 1]
    return yaml.safe_load(out.read_text()), capsys.readouterr().out


def test_keys_are_found_and_the_config_reads_the_data(tmp_path, capsys):
    frames = [under_other_names(seed) for seed in range(12)]
    for atoms in frames[:5]:  # a worse energy in some frames, which is not the one
        atoms.info["energy"] = 1.0
    ase.io.write(tmp_path / "a.extxyz", frames)
    raw, text = init(capsys, tmp_path / "a.extxyz", "-o", tmp_path / "config.yaml")
    assert raw["data"]["train"] == ["a.extxyz"]
    assert [raw["data"][f"{k}_key"] for k in ("energy", "forces", "stress")] == [
        "dft_energy",
        "dft_forces",
        "dft_stress",
    ]
    assert "in 12 of 12 frames; beside it energy" in text and "race train" in text
    assert raw["train"]["stress_weight"] == 1 and raw["model"] == "medium"
    prepared = prepare(read_config(tmp_path / "config.yaml"))
    energies = sorted(
        a.info["energy"] for a in (*prepared.train.frames, *prepared.validation.frames)
    )
    assert energies == pytest.approx(sorted(a.info["dft_energy"] for a in frames))


def test_units_are_guessed_from_forces(tmp_path, capsys):
    for name, factor, unit in (("kcal", 1 / 0.0433641, "kcal/mol"), ("hartree", 0.0194469, "auto")):
        frames = [under_other_names(seed, unit=factor) for seed in range(12)]
        ase.io.write(tmp_path / f"{name}.xyz", frames, format="extxyz")
        raw, text = init(capsys, tmp_path / f"{name}.xyz", "-o", tmp_path / f"{name}.yaml")
        assert raw["data"]["units"] == unit
        assert ("Hartree/Bohr?" in text) == (name == "hartree")


def test_frames_of_one_atom_are_the_atomic_energies(tmp_path, capsys):
    frames = [labelled(seed) for seed in range(12)]
    for symbol in ("Cu", "Au"):
        atom = ase.Atoms(symbol, positions=[[0, 0, 0]], calculator=EMT())
        atom.get_potential_energy(), atom.get_forces()
        frames.append(atom)
    ase.io.write(tmp_path / "a.extxyz", frames)
    raw, _ = init(capsys, tmp_path / "a.extxyz", "-o", tmp_path / "config.yaml")
    expected = {str(a.symbols[0]): a.get_potential_energy() for a in frames[-2:]}
    assert raw["data"]["atomic_energies"] == pytest.approx(expected)


def test_atomic_energies_are_in_ev_whatever_the_file_has(tmp_path, capsys):
    kcal = 1 / 0.0433641
    frames = [under_other_names(seed, unit=kcal) for seed in range(12)]
    for symbol, energy in (("Cu", -3.0), ("Au", -2.0)):
        atom = ase.Atoms(symbol, positions=[[0, 0, 0]])
        atom.info["dft_energy"], atom.arrays["dft_forces"] = energy * kcal, np.zeros((1, 3))
        frames.append(atom)
    ase.io.write(tmp_path / "a.extxyz", frames)
    raw, _ = init(capsys, tmp_path / "a.extxyz", "-o", tmp_path / "config.yaml")
    assert raw["data"]["units"] == "kcal/mol"
    assert raw["data"]["atomic_energies"] == pytest.approx({"Cu": -3.0, "Au": -2.0}, rel=1e-4)


def test_what_training_will_refuse_is_said(tmp_path, capsys):
    frames = [labelled(seed) for seed in range(12)]
    ase.io.write(tmp_path / "a.extxyz", frames)
    ase.io.write(tmp_path / "b.extxyz", frames[:4])
    words = ["init", tmp_path / "a.extxyz", "--validation", tmp_path / "b.extxyz"]
    assert main([*map(str, words), "-o", str(tmp_path / "c.yaml")]) == 0
    assert "will refuse this data" in (text := capsys.readouterr().out)
    assert "validation-is-training" in text and (tmp_path / "c.yaml").exists()


def with_an_outlier() -> list[ase.Atoms]:
    """Twelve frames; one atom of the last has 800 times the usual force, and one frame is there
    twice.
    """
    frames = [under_other_names(seed) for seed in range(12)]
    frames[-1].arrays["dft_forces"][2] = [0.0, 300.0, 400.0]
    return [*frames, frames[3].copy()]


def test_the_outlier_is_alone_in_the_last_bar(tmp_path, capsys):
    path = tmp_path / "a.extxyz"
    ase.io.write(path, with_an_outlier())
    _, text = init(capsys, path, "-o", tmp_path / "c.yaml")
    comments = [line.removeprefix("#   ") for line in text.splitlines() if line.startswith("#   ")]
    *bars, largest = comments
    *name, bar, n = bars[-1].split()
    assert name == ["320", "to", "1000"] and set(bar) == {"#"} and n == "1"
    assert "#" not in bars[-2]
    assert sum(int(bar.split()[-1]) for bar in bars) == 4 * 13
    assert largest == f"largest: 500, {path.name}, frame 11, atom 2"
    assert "1 frames have the structure of a frame before them" in text
    assert "in 13 of 13 frames" in text


def test_what_was_found_as_json(tmp_path, capsys):
    ase.io.write(tmp_path / "a.extxyz", with_an_outlier())
    words = ["init", str(tmp_path / "a.extxyz"), "-o", str(tmp_path / "c.yaml"), "--json"]
    assert main(words) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["config"] == str(tmp_path / "c.yaml") and found["duplicates"] == 1
    assert found["keys"]["forces"] == {"name": "dft_forces", "n": 13, "others": []}
    bars = found["forces"]["bars"]
    assert bars[-1]["n"] == 1 and bars[-1]["low"] <= 500 < bars[-1]["high"]
    assert sum(bar["n"] for bar in bars) == 4 * 13
    assert found["refused"].startswith("training data: ")
    ase.io.write(tmp_path / "b.extxyz", [labelled(seed) for seed in range(12)])
    words = ["init", str(tmp_path / "b.extxyz"), "-o", str(tmp_path / "d.yaml"), "--json"]
    assert main(words) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["refused"] is None and found["duplicates"] == 0
    assert dict(found["checks"])["forces"].startswith("11 of 11 frames")


def test_forces_without_a_size_are_counted_apart():
    frames = [ase.Atoms("Cu3", positions=np.eye(3) * 3)]
    rows = np.array([[0.0, 0, 0], [np.nan, 0, 0], [0, 0.02, 0]])
    found = force_histogram(frames, [rows])
    assert found.n_zero == 1 and [bar.n for bar in found.bars] == [1] and found.atom == 2
    assert found.lines()[0].split()[-1] == "1" and "largest: 0.02" in found.lines()[-1]
    assert force_histogram(frames, [0 * rows]) is None
    # Many decades: rows of whole ones
    wide = np.zeros((9, 3))
    wide[:, 0] = 10.0 ** np.arange(-4.5, 4.5)
    bars = force_histogram([ase.Atoms("Cu9")], [wide]).bars
    assert [bar.n for bar in bars] == [1] * 9 and bars[0].high == pytest.approx(1e-4)


def test_refusals(tmp_path, capsys):
    path = tmp_path / "a.extxyz"
    ase.io.write(path, [ase.Atoms("Cu2", positions=np.eye(3)[:2] * 3)])
    out = tmp_path / "c.yaml"
    assert main(["init", str(path), "-o", str(out)]) == 2 and not out.exists()
    assert "no energies and no forces" in capsys.readouterr().err
    out.write_text("mine")
    assert main(["init", str(path), "-o", str(out)]) == 2 and out.read_text() == "mine"
    assert "exists already" in capsys.readouterr().err
    assert main(["init", str(tmp_path / "none.xyz"), "-o", str(tmp_path / "d.yaml")]) == 2
