"""The accuracy benchmark: its sets, its errors, its plan, and one tiny training of RACE that
goes through all of it. The peers are tried by `make accuracy QUICK=1`.
"""

import dataclasses
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import ase
import ase.build
import ase.io
import numpy as np
import pytest
import yaml
from ase.calculators.lj import LennardJones
from ase.calculators.singlepoint import SinglePointCalculator

ACCURACY = Path(__file__).parents[1] / "benchmarks" / "accuracy"
sys.path[:0] = [str(ACCURACY), str(ACCURACY.parent)]

import codes  # noqa: E402
import figures  # noqa: E402
import run  # noqa: E402
import sets  # noqa: E402

FIELDS = (
    "set code size members minutes us_per_atom split mae_e mae_f rmse_e rmse_f rmse_s "
    "processor commit date versions cpu_minutes"
).split()


def argon(seed: int, stress: bool = True) -> ase.Atoms:
    """Eight "silicon" atoms of a Lennard-Jones crystal."""
    atoms = ase.build.bulk("Si", "fcc", a=5.2, cubic=True) * (2, 1, 1)
    atoms.rattle(0.1, seed=seed)
    atoms.calc = LennardJones(sigma=3.3, epsilon=0.05, rc=4.5, smooth=True)
    labels = {"energy": atoms.get_potential_energy(), "forces": atoms.get_forces()}
    if stress:
        labels["stress"] = atoms.get_stress()
    atoms.calc = SinglePointCalculator(atoms, **labels)
    return atoms


@pytest.fixture
def data(tmp_path) -> Path:
    folder = tmp_path / "data" / "mlearn"
    folder.mkdir(parents=True)
    frames = [argon(seed, stress=seed != 3) for seed in range(20)]
    ase.io.write(folder / "Si_training.extxyz", frames)
    ase.io.write(folder / "Si_test.extxyz", [argon(seed, stress=seed != 31) for seed in (30, 31)])
    return tmp_path / "data"


def test_labels_reach_every_code_in_its_order_and_sign(data, tmp_path):
    about = sets.prepare(data, "Si", tmp_path / "Si")
    assert about["n_train"] == 18 and about["splits"] == ["test"] and about["stress"]
    known = [
        atoms
        for file in ("train.xyz", "validation.xyz")
        for atoms in ase.io.read(tmp_path / "Si" / file, ":")
    ]
    original = {frame.positions[0].tobytes(): frame for frame in map(argon, range(20))}
    n_without = 0
    for atoms in known:
        same = min(original.values(), key=lambda a: np.abs(a.positions - atoms.positions).max())
        assert atoms.info["REF_energy"] == pytest.approx(same.get_potential_energy(), abs=1e-7)
        assert np.allclose(atoms.arrays["REF_forces"], same.get_forces(), atol=1e-7)
        if "REF_stress" in atoms.info:
            assert np.allclose(atoms.info["REF_stress"], same.get_stress(), atol=1e-7)
        else:
            n_without += 1
            assert np.isnan(atoms.calc.results["stress"]).all()
    assert n_without == 1


def test_hot_frames_that_were_chosen_are_not_in_the_unbiased_splits(tmp_path):
    folder = tmp_path / "3bpa"
    folder.mkdir()
    about = (
        {"source": "train_mixedT.xyz"},
        {"source": "RACE_AL", "random_selected": True},
        {"source": "RACE_AL", "random_selected": False},
    )
    frames = [argon(seed) for seed in range(3)]
    for frame, info in zip(frames, about, strict=True):
        frame.info.update(info)
    for name in ("train_300K.xyz", "test300K_mixedT_not_in_train.extxyz"):
        ase.io.write(folder / name, frames)
    for kelvin in (600, 1200):
        ase.io.write(folder / f"test{kelvin}K_mixedT_plus_AL.extxyz", frames)
    tests = sets.threebpa(tmp_path).tests
    counts = {split: len(frames) for split, frames in tests.items()}
    hot = {"600 K": 2, "1200 K": 2, "600 K, chosen too": 3, "1200 K, chosen too": 3}
    assert counts == {"300 K": 3, **hot}
    assert len({sets.file_of(split) for split in tests}) == 5


def job(tmp_path, **changes) -> codes.Job:
    about = {
        "elements": ["Si"],
        "atomic_energies": {"Si": -1.0},
        "n_train": 100,
        "r_max": 5.0,
        "stress": True,
        "splits": ["test"],
    }
    one = codes.Job("Si", "RACE", "small", 1, 1.0, about, tmp_path, tmp_path / "run", 7)
    return dataclasses.replace(one, **changes)


def test_errors_are_those_of_the_definitions(tmp_path):
    frames = [sets.labelled(from_labels(argon(k)), True) for k in range(2)]
    del frames[1].info["REF_stress"]
    predicted = {
        "energy_0": np.array([a.info["REF_energy"] for a in frames]) + [0.008, -0.024],
        "forces_0": np.concatenate([a.arrays["REF_forces"] for a in frames]),
        "stress_0": np.full((2, 6), frames[0].info["REF_stress"]),
    }
    predicted["forces_0"][0, 0] += 0.048
    predicted["stress_0"][0] += [0.006, 0, 0, 0, 0, 0]
    predicted["stress_0"][1] = 1e9  # a frame without a reference
    found = run.errors(frames, predicted, 0, job(tmp_path))
    assert found["mae_e"] == pytest.approx(2.0) and found["rmse_e"] == pytest.approx(
        np.sqrt(5), 1e-4
    )
    assert found["mae_f"] == pytest.approx(1.0) and found["rmse_f"] == pytest.approx(
        48 / 48**0.5, 1e-4
    )
    assert found["rmse_s"] == pytest.approx(6 / 6**0.5, 1e-4) and found["n_frames"] == 2


def from_labels(atoms: ase.Atoms) -> ase.Atoms:
    """As `read_frames` gives it: labels in info and arrays, stress in LAMMPS's order."""
    xx, yy, zz, yz, xz, xy = atoms.get_stress()
    atoms.info |= {"energy": atoms.get_potential_energy(), "stress": [xx, yy, zz, xy, xz, yz]}
    atoms.arrays["forces"] = atoms.get_forces()
    return atoms


def test_epochs_fill_the_minutes(tmp_path, monkeypatch):
    """Start-up of 10 s and 0.2 s a frame: (60 - 10) / (0.2 (100 + 0.35 * 20)) = 2.3 epochs."""
    ase.io.write(tmp_path / "validation.xyz", [argon(k) for k in range(20)])
    trials = []
    monkeypatch.setattr(codes, "_trial", lambda code, one, n: trials.append(n) or 10.0 + 0.2 * n)
    code = codes.CODES["RACE"]
    known = tmp_path / "probes.json"
    assert codes.epochs_of(code, job(tmp_path), known) == 2
    assert codes.epochs_of(code, job(tmp_path, minutes=5), known) == 14
    assert trials == list(codes.TRIALS), "trials are kept"
    with pytest.raises(codes.TooSlow, match=r"one epoch takes 0\.4 minutes"):
        codes.epochs_of(code, job(tmp_path, minutes=0.3), known)


def test_a_training_that_fails_leaves_no_record_and_one_that_cannot_fit_says_why(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(run, "execute", lambda *_: codes.Spent(1.0, 1))
    monkeypatch.setattr(run, "epochs_of", lambda *_: 3)
    with pytest.raises(RuntimeError, match="no model: see .*log.txt"):
        run.run(job(tmp_path, code="MACE"))

    def too_slow(*_):
        raise codes.TooSlow("one epoch takes 9.0 minutes")

    monkeypatch.setattr(run, "epochs_of", too_slow)
    (record,) = run.run(job(tmp_path, code="MACE"))
    assert record["omitted"] == "one epoch takes 9.0 minutes" and record["split"] is None
    assert "omitted: one epoch" in figures.line(record)
    assert any("omitted: one epoch" in line for line in figures.section([record]))


def test_commands_of_the_peers(tmp_path):
    one = job(tmp_path, minutes=15.0, size="large")
    codes.CODES["NequIP"].command(one)
    config = yaml.safe_load((one.folder / "nequip.yaml").read_text())
    module = config["training_module"]
    assert config["trainer"]["callbacks"][-1]["seconds"] == 900
    assert module["lr_scheduler"]["scheduler"]["seconds"] == 900
    assert module["model"]["compile_mode"] == "compile" and module["model"]["l_max"] == 3
    assert module["loss"]["ignore_nan"] == {"stress": True}

    words = codes.CODES["MACE"].command(one)
    assert {
        "--max_num_epochs=7",
        "--swa",
        "--start_swa=5",
        "--loss=stress",
        "--E0s={14: -1.0}",
    } <= {*words}
    assert "--swa" not in codes.CODES["MACE"].command(job(tmp_path, epochs=2))


@pytest.mark.parametrize(
    ("only", "expected"),
    [
        ([], True),
        (["Si"], True),
        (["Si/RACE/1"], True),
        (["*/RACE/*/small"], True),
        (["Mo", "Si/RACE/5"], False),
        (["Si/MACE"], False),
    ],
)
def test_what_is_chosen(only, expected):
    assert run.chosen(("Si", "RACE", "1", "small"), only) == expected


def test_another_race_than_the_checkouts_is_refused(data, tmp_path, monkeypatch):
    """Records have the commit of the checkout: an hour's training of other code got a wrong one."""
    other = tmp_path / "other"
    for path in [*ACCURACY.parent.glob("*.py"), *ACCURACY.glob("*.py"), ACCURACY / "race.yaml"]:
        copied = other / path.relative_to(ACCURACY.parents[1])
        copied.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, copied)
    command = [sys.executable, other / "benchmarks" / "accuracy" / "run.py", "--data", data]
    command += ["--quick", "--seconds", "12", "--only", "Si/RACE", "--build", tmp_path / "build"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1 and "Si, RACE" not in done.stdout
    (line,) = done.stderr.splitlines()
    start = f"the package `race`: trainings would be recorded.*; expected {other}/python/race; got "
    found = re.match(start + "(.*); install this checkout", line)
    assert found, line
    with monkeypatch.context() as patch:  # a build whose files lie there is right
        patch.setattr(run, "PACKAGE", Path(found[1]))
        run.refuse_other_race(tmp_path)


def test_a_training_of_race_and_not_twice(data, tmp_path):
    command = [sys.executable, ACCURACY / "run.py", "--data", data, "--quick", "--seconds", "12"]
    command += ["--only", "Si/RACE", "--frames", "8", "--build", tmp_path / "build"]
    out = tmp_path / "results.json"
    command += ["--results", out]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert out.exists(), done.stdout + done.stderr
    records = json.loads(out.read_text())
    assert len(records) == 1 and set(FIELDS) <= records[0].keys(), done.stdout
    one = records[0]
    assert one["rmse_f"] > 0 and one["rmse_s"] > 0 and one["us_per_atom"] > 0
    for name in ("error-over-minutes.png", "error-over-inference.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
    before = out.read_text()
    again = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "minutes" not in again.stdout and out.read_text() == before


def test_committed_page_is_that_of_the_committed_records():
    records = json.loads(run.RESULTS.read_text()) if run.RESULTS.exists() else []
    page = (ACCURACY / "README.md").read_text()
    assert page == run.fill(page, {"records": figures.section(records)})
