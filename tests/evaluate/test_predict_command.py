"""race predict: what the calculator gives, for frames without labels, in one file."""

import fcntl
import os

import ase.build
import ase.io
import numpy as np
import pytest
from tests.deploy.conftest import make_model

import race
from race.cli import main
from race.conventions import six_from_matrix
from race.deploy.export import export_model


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("predict")
    export_model(make_model(), folder / "x.race.pt")
    frames = []
    for k in range(3):
        atoms = ase.build.bulk("BN", "zincblende", a=3.6) * (k + 1, 1, 1)
        atoms.rattle(0.05, seed=k)
        frames.append(atoms)
    frames.append(ase.Atoms("BN", [[0, 0, 0], [0, 0, 1.4]]))
    frames[0].info["name"] = "first"
    ase.io.write(folder / "frames.extxyz", frames)
    return folder


def test_equals_the_calculator(files, capsys):
    command = ["predict", str(files / "x.race.pt"), str(files / "frames.extxyz")]
    assert main([*command, "-o", str(files / "out.extxyz")]) == 0
    assert "4 frames" in capsys.readouterr().out
    found = ase.io.read(files / "out.extxyz", ":")
    calculator = race.Calculator(files / "x.race.pt")
    assert found[0].info["name"] == "first"
    for atoms in found:
        get = calculator.get_property
        bare = atoms.copy()
        assert atoms.get_potential_energy() == pytest.approx(get("energy", bare), abs=1e-7)
        np.testing.assert_allclose(atoms.get_forces(), get("forces", bare), atol=1e-7)
        assert atoms.info["energy_std"] == pytest.approx(get("energy_std", bare), rel=1e-6)
        np.testing.assert_allclose(
            atoms.arrays["forces_cov"], six_from_matrix(get("forces_cov", bare)), atol=1e-7
        )
        np.testing.assert_allclose(atoms.arrays["forces_std"], get("forces_std", bare), atol=1e-7)
        np.testing.assert_allclose(atoms.arrays["bald"], get("bald", bare), atol=1e-6)
        if atoms.pbc.all():
            np.testing.assert_allclose(atoms.get_stress(), get("stress", bare), atol=1e-7)
        else:
            assert "stress" not in atoms.calc.results and "stress_std" not in atoms.info


def test_refusals_leave_everything_as_it_was(files, capsys):
    frames = files / "frames.extxyz"
    before = frames.read_bytes()
    assert main(["predict", str(files / "x.race.pt"), str(frames), "-o", str(frames)]) == 2
    assert "the output is one of the inputs" in capsys.readouterr().err
    ase.io.write(files / "copper.extxyz", ase.build.bulk("Cu"))
    out = files / "none.extxyz"
    command = ["predict", str(files / "x.race.pt"), str(files / "copper.extxyz"), "-o", str(out)]
    assert main(command) == 2
    assert "Cu" in capsys.readouterr().err
    assert frames.read_bytes() == before and not out.exists()
    assert not list(files.glob(".*.tmp"))


def test_links_and_streams(files, capfd):
    """A link stays one, a stream is written to, and - is no name."""
    model, frames = str(files / "x.race.pt"), str(files / "frames.extxyz")
    (files / "link.extxyz").symlink_to(files / "target.extxyz")
    assert main(["predict", model, frames, "-o", str(files / "link.extxyz")]) == 0
    assert (files / "link.extxyz").is_symlink()
    whole = (files / "target.extxyz").read_text()
    capfd.readouterr()
    pipe = files / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    fcntl.fcntl(reader, fcntl.F_SETPIPE_SZ, 1 << 20)  # room for all of it
    assert main(["predict", model, frames, "-o", str(pipe)]) == 0
    assert os.read(reader, 10**6).decode() == whole
    os.close(reader)
    assert main(["predict", model, frames, "-o", "-"]) == 2
    assert "for standard output write /dev/stdout" in capfd.readouterr().err
