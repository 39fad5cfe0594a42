"""The inputs of examples/lammps as they stand, on two ranks."""

from pathlib import Path

import ase.io
import numpy as np
import pytest
import torch

from race.data.graph import build_graph

from .conftest import ELEMENTS, ROOT
from .harness import thermo, write_data
from .systems import b2o3

EXAMPLES = ROOT / "examples" / "lammps"


@pytest.fixture
def example(lammps_run, artifacts):
    """Runs examples/lammps/NAME with the test's model on two ranks, in the test's folder."""
    write_data(lammps_run.folder / "b2o3.data", b2o3(), ["B", "O"])

    frames = []
    for seed in range(5):
        frame = b2o3()
        frame.rattle(0.05, seed=seed)
        frames.append(build_graph(frame, ELEMENTS, 3.2, torch.float64))

    def run(name: str, *more: str) -> str:
        training = {
            "cutoff": 3.2,
            "min_distance": {"B-B": 1.2, "B-O": 1.2, "O-O": 1.2},
            "n_neighbors": {"B": [8, 16], "O": [8, 16]},
        }
        model = artifacts("example", training=training, training_set=frames, leaders=True)
        arguments = (
            "-var",
            "plugin",
            str(lammps_run.plugin),
            "-var",
            "model",
            str(model),
            "-var",
            "data",
            "b2o3.data",
        )
        finished = lammps_run.run(
            (EXAMPLES / name).read_text(), 2, arguments=(*arguments, *more, "-var", "steps", "20")
        )
        assert finished.status == 0 and not finished.hung, finished.output
        return finished.output

    return run


def test_example_covariance_dump(example, lammps_run):
    example("in.covariance")
    frames = ase.io.read(lammps_run.folder / "b2o3.lammpstrj", ":", format="lammps-dump-text")
    assert len(frames) == 3 and frames[0].get_chemical_symbols().count("O") == 24
    names = [f"f_cov_{name}" for name in ("xx", "yy", "zz", "xy", "xz", "yz")]
    cov = np.stack([frames[-1].arrays[name].ravel() for name in names], axis=1)
    assert np.all(cov[:, :3] > 0) and np.allclose(
        np.sqrt(cov[:, :3].mean(1)), frames[-1].arrays["f_std"].ravel(), rtol=1e-5
    )


def test_example_watch(example, lammps_run):
    rows = thermo(example("in.watch"))
    assert rows[-1]["Step"] == 20 and all(row["c_U[2]"] > 0 for row in rows)
    flagged = ase.io.read(lammps_run.folder / "uncertain.lammpstrj", ":", format="lammps-dump-text")
    assert flagged and all(len(frame) and np.all(frame.arrays["f_std"] > 0.05) for frame in flagged)


def read_profile(path: Path) -> np.ndarray:
    """fix ave/chunk: [times, bins, columns]."""
    lines = [line.split() for line in path.read_text().splitlines() if not line.startswith("#")]
    n_bins = int(lines[0][1])
    return np.array(
        [[row for row in lines[k + 1 : k + 1 + n_bins]] for k in range(0, len(lines), n_bins + 1)],
        dtype=float,
    )


def test_example_profile(example, lammps_run):
    """Averages over the samples, the mean over the box from either, and no snapshot while
    every force is certain.
    """
    rows = thermo(example("in.profile"))
    assert all(0 < row["c_U[1]"] <= row["c_U[2]"] for row in rows)
    frames = ase.io.read(lammps_run.folder / "uncertain.lammpstrj", ":", format="lammps-dump-text")
    profile = read_profile(lammps_run.folder / "profile.dat")
    assert profile.shape == (4, 4, 5) and len(frames) == 5
    for frame, bins in zip(frames[1:], profile, strict=True):
        for column, name in ((3, "f_std_mean"), (4, "f_epistemic_mean")):
            assert np.average(bins[:, column], weights=bins[:, 2]) == pytest.approx(
                frame.arrays[name].mean(), rel=1e-4
            )
        assert np.all(frame.arrays["f_std_mean"] > frame.arrays["f_epistemic_mean"])
    (lammps_run.folder / "uncertain.lammpstrj").unlink()
    example("in.profile", "-var", "limit", "1000")
    assert (lammps_run.folder / "uncertain.lammpstrj").read_text() == ""


def test_example_guard(example, lammps_run):
    rows = thermo(example("in.guard", "-var", "limit", "0.05"))
    assert rows[-1]["Step"] == 20 and rows[0]["f_learn[5]"] > 0
    frames = ase.io.read(lammps_run.folder / "learn.extxyz", ":")
    assert [frame.info["step"] for frame in frames] == [0, 10, 20] and not (
        lammps_run.folder / "stopped.extxyz"
    ).exists()


def test_example_collision(example):
    """The core is met, and turns the atom back without a loss of energy."""
    rows, without = (
        thermo(example("in.collision", "-var", "steps", "80", "-var", "core", core))
        for core in ("on", "off")
    )
    assert abs(rows[-1]["PotEng"] - without[-1]["PotEng"]) > 0.1
    total = [row["TotEng"] for row in rows]
    assert max(total) - min(total) < 0.05


def test_example_lead(example, lammps_run):
    """Member 1 moves the atoms: the potential energy is its own on the evaluated steps, and
    conserved with the kinetic one; uncertainties stand still between evaluations.
    """
    rows = thermo(example("in.lead"))
    assert [row["Step"] for row in rows] == [0, 10, 20]
    for row in rows:
        std, largest, grade, *members = (row[f"c_U[{k}]"] for k in range(1, 7))
        assert members[0] == pytest.approx(row["PotEng"], abs=1e-4) and min(std, grade) > 0
        assert abs(members[1] - members[0]) > 1e-2
    total = [row["TotEng"] for row in rows]
    assert np.ptp(total) < 0.1 * np.ptp([row["PotEng"] for row in rows])
    frames = ase.io.read(lammps_run.folder / "lead.lammpstrj", ":", format="lammps-dump-text")
    for frame, row in zip(frames, rows, strict=True):
        assert frame.arrays["f_std"].max() == pytest.approx(row["c_U[2]"], rel=1e-4)
        assert frame.arrays["f_grade"].max() == pytest.approx(row["c_U[3]"], rel=1e-4)


def test_example_integration(example):
    """The sum that is printed, from the rows of each point of the path."""
    output = example("in.integration")
    points, weights = np.polynomial.legendre.leggauss(5)
    rows = thermo(output)
    assert len(rows) == 2 * 2 * 5
    slopes, errors = [], []
    for k, point in enumerate((points + 1) / 2):
        last = rows[4 * k + 3]
        assert last["v_lambda"] == pytest.approx(point, abs=1e-7)
        whole = last["c_model"] + last["c_fluid"]
        assert whole == pytest.approx(last["PotEng"], rel=1e-5)
        slope = last["c_model"] / point - last["c_fluid"] / (1 - point)
        assert last["v_slope"] == pytest.approx(slope, rel=1e-4)
        slopes.append(last["v_slope"])
        errors.append(last["v_unsure"])
    (said,) = [line for line in output.splitlines() if line.startswith("free energy less")]
    free, error = (float(said.split(": ")[k].split(" eV")[0]) for k in (1, 2))
    assert free == pytest.approx(weights @ slopes / 2, rel=1e-4)
    assert error == pytest.approx(weights @ errors / 2, rel=1e-4) and error > 0


def test_every_example_is_tested():
    text = Path(__file__).read_text()
    assert all(f'"{path.name}"' in text for path in EXAMPLES.glob("in.*"))


def test_example_heat_flux(example, lammps_run):
    """The flux of every sample, each member's beside it, and a conductivity (of 20 steps)."""
    (*_, last) = thermo(example("in.heatflux"))
    flux = np.loadtxt(lammps_run.folder / "flux.dat")
    assert flux.shape == (5, 4) and np.isfinite(last["v_kappa"])
    np.testing.assert_allclose(flux[-1, 1:], [last[f"c_J[{k}]"] for k in (1, 2, 3)], rtol=1e-4)
    rows = [
        line.split()
        for line in (lammps_run.folder / "members.dat").read_text().splitlines()
        if not line.startswith("#")
    ]
    members = np.array([row[1:] for row in rows if len(row) == 4][-3:], dtype=float)
    np.testing.assert_allclose(members.mean(0), flux[-1, 1:], rtol=1e-4)
