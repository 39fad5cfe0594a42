"""race predict: what the calculator gives, for frames without labels, in one file."""

import fcntl
import os
import shutil

import ase.build
import ase.io
import numpy as np
import pytest
from ase.constraints import FixAtoms
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


def predict(files, frames, *options, model="x.race.pt", output="out.extxyz"):
    command = ["predict", str(files / model), str(files / frames), "-o", str(files / output)]
    return main([*command, *options])


def test_a_frame_keeps_what_it_had(files):
    """All but labels and earlier predictions, which would stand beside those of another model."""
    atoms = ase.io.read(files / "frames.extxyz", 0)
    n = len(atoms)
    atoms.set_tags(range(n))
    atoms.set_velocities(np.full((n, 3), 0.01))
    atoms.set_initial_magnetic_moments(np.ones(n))
    atoms.arrays |= {"site": np.arange(n), "DFT_forces": np.ones((n, 3))}
    atoms.arrays |= {"forces_cov": np.ones((n, 6)), "bald": np.ones(n), "grade": np.ones(n)}
    atoms.info |= {"DFT_energy": -1.0, "energy_std": 77.0, "stress_std": np.ones(6)}
    atoms.set_constraint(FixAtoms([0]))
    ase.io.write(files / "rich.extxyz", atoms)
    export_model(make_model(head="point", n_members=1), files / "point.race.pt")
    assert predict(files, "rich.extxyz", model="point.race.pt") == 0
    found = ase.io.read(files / "out.extxyz")
    assert set(found.arrays) >= {"tags", "momenta", "initial_magmoms", "site", "DFT_forces"}
    assert (found.get_tags() == range(n)).all() and found.info["DFT_energy"] == -1.0
    assert not {"forces_cov", "bald", "grade"} & set(found.arrays)
    assert not {"energy_std", "stress_std"} & set(found.info)
    assert found.constraints[0].index.tolist() == [0]
    bare = race.Calculator(files / "point.race.pt").get_property("forces", atoms.copy())
    np.testing.assert_allclose(found.calc.results["forces"], bare, atol=1e-6)


def test_no_one_looks_at_labels(files):
    """Infinities, words and sizes that are none say nothing of a structure."""
    text = (files / "frames.extxyz").read_text()
    for label in ("energy=inf", "energy=none", 'energy="1 2"', "forces=1"):
        (files / "junk.extxyz").write_text(text.replace("pbc=", f"{label} pbc="))
        assert predict(files, "junk.extxyz") == 0
        assert len(ase.io.read(files / "out.extxyz", ":")) == 4


def test_positions_in_another_unit_are_refused(files, capsys):
    text = (files / "frames.extxyz").read_text()
    (files / "unit.extxyz").write_text(text.replace("pbc=", "length_unit=bohr pbc="))
    assert predict(files, "unit.extxyz") == 2
    assert "frame 0: info['length_unit'] names another unit" in capsys.readouterr().err
    (files / "unit.extxyz").write_text(text.replace("pbc=", "energy_unit=Hartree pbc="))
    assert predict(files, "unit.extxyz") == 0


DUMP = """ITEM: TIMESTEP
0
ITEM: NUMBER OF ATOMS
2
ITEM: BOX BOUNDS pp pp pp
0 5
0 5
0 5
ITEM: ATOMS id type x y z
1 1 0 0 0
2 2 1.4 0 0
"""


def test_a_dump_of_types(files, capsys):
    (files / "a.lammpstrj").write_text(DUMP)
    assert predict(files, "a.lammpstrj") == 2
    assert "only LAMMPS types, no elements" in capsys.readouterr().err
    assert predict(files, "a.lammpstrj", "--elements", "B", "N") == 0
    assert str(ase.io.read(files / "out.extxyz").symbols) == "BN"


def test_bad_frames_are_left_out_and_named(files, capsys, caplog):
    good = ase.io.read(files / "frames.extxyz", 0)
    lost, other = good.copy(), good.copy()
    lost.positions[1] = np.nan
    other.symbols[0] = "Cu"
    ase.io.write(files / "some.extxyz", [lost, good, other])
    (files / "out.extxyz").write_text("as it was")
    assert predict(files, "some.extxyz", "--skip-bad-frames", "1") == 2
    assert "more bad frames than --skip-bad-frames" in capsys.readouterr().err
    assert (files / "out.extxyz").read_text() == "as it was"
    caplog.clear()
    assert predict(files, "some.extxyz", "--skip-bad-frames", "2") == 0
    assert "frame 0: a position is NaN" in caplog.text
    assert "frame 2: element Cu is unknown" in caplog.text
    assert len(ase.io.read(files / "out.extxyz", ":")) == 1


def test_nothing_is_written_over_or_under_a_wrong_name(files, capsys):
    model = (files / "x.race.pt").read_bytes()
    shutil.copy(files / "x.race.pt", files / "model.xyz")
    assert predict(files, "frames.extxyz", model="model.xyz", output="model.xyz") == 2
    assert "the output is one of the inputs" in capsys.readouterr().err
    assert (files / "model.xyz").read_bytes() == model
    for name in ("y.race.pt", "out.traj", "out.db", "out.xyz.gz", "out.npz"):
        assert predict(files, "frames.extxyz", output=name) == 2
        assert "is the suffix of another format" in capsys.readouterr().err
    assert (files / "x.race.pt").read_bytes() == model
