"""Systems of DeePMD-kit, written by hand in the layout of its manual and of dpdata."""

import ase.build
import ase.io
import numpy as np
import pytest
from ase.calculators.emt import EMT

from race.cli import main
from race.data.io import read_frames

ALLOY = 5


@pytest.fixture
def frames() -> list[ase.Atoms]:
    """Strained cells of a copper-gold alloy, with EMT's labels."""
    rng, out = np.random.default_rng(0), []
    for _ in range(ALLOY):
        atoms = ase.build.bulk("Cu", cubic=True).repeat((2, 1, 1))
        atoms.symbols[[1, 4]] = "Au"
        atoms.set_cell(atoms.cell @ (np.eye(3) + 0.03 * rng.normal(size=(3, 3))), scale_atoms=True)
        atoms.rattle(0.1, rng=rng)
        atoms.calc = EMT()
        atoms.get_potential_energy(), atoms.get_stress()
        out.append(atoms)
    return out


def rows(frames) -> dict[str, np.ndarray]:
    """DeePMD's arrays, a row for each frame; the virial is dpdata's -volume * stress."""
    return {
        "coord": np.array([a.positions.ravel() for a in frames]),
        "box": np.array([a.cell.array.ravel() for a in frames]),
        "energy": np.array([a.get_potential_energy() for a in frames]),
        "force": np.array([a.get_forces().ravel() for a in frames]),
        "virial": np.array([(-a.get_volume() * a.get_stress(voigt=False)).ravel() for a in frames]),
    }


def write_system(folder, frames, form: str):
    """`npy`: two sets; `raw`: text; `mixed`: an order of its own for each frame, padded."""
    folder.mkdir(parents=True)
    types = np.array([["Au", "Cu"].index(s) for s in frames[0].symbols])
    arrays = rows(frames)
    (folder / "type_map.raw").write_text("Au\nCu\n")
    if form == "mixed":
        width = len(types) + 1
        np.savetxt(folder / "type.raw", np.zeros(width), fmt="%d")
        (folder / "set.000").mkdir()
        for name in ("coord", "force"):
            cube = arrays[name].reshape(len(frames), -1, 3)
            arrays[name] = np.pad(cube, ((0, 0), (0, 1), (0, 0))).reshape(len(frames), -1)
        arrays["real_atom_types"] = np.tile(np.append(types, -1), (len(frames), 1))
        for name, values in arrays.items():
            np.save(folder / "set.000" / f"{name}.npy", values)
        return
    np.savetxt(folder / "type.raw", types, fmt="%d")
    for name, values in arrays.items():
        if form == "raw":
            np.savetxt(folder / f"{name}.raw", values, fmt="%.17g")
            continue
        for k, part in enumerate((slice(0, 3), slice(3, None))):
            (folder / f"set.{k:03}").mkdir(exist_ok=True)
            np.save(folder / f"set.{k:03}" / f"{name}.npy", values[part])


@pytest.mark.parametrize("form", ["npy", "raw", "mixed"])
def test_frames_come_back(form, frames, tmp_path, capsys):
    write_system(tmp_path / "systems" / "alloy", frames, form)
    out = tmp_path / "train.extxyz"
    assert main(["convert-data", str(tmp_path / "systems"), "-o", str(out)]) == 0
    assert f"{ALLOY} frames" in capsys.readouterr().out
    got = ase.io.read(out, ":")
    assert len(read_frames(out)) == len(got) == ALLOY
    for want, atoms in zip(frames, got, strict=True):
        assert str(atoms.symbols) == str(want.symbols) and atoms.info["system"] == "alloy"
        np.testing.assert_allclose(atoms.positions, want.positions, atol=1e-7)
        np.testing.assert_allclose(atoms.cell, want.cell, atol=1e-7)
        assert atoms.get_potential_energy() == pytest.approx(want.get_potential_energy())
        np.testing.assert_allclose(atoms.get_forces(), want.get_forces(), atol=1e-7)
        np.testing.assert_allclose(atoms.get_stress(), want.get_stress(), atol=1e-8)


def test_a_cluster_has_no_cell(frames, tmp_path):
    write_system(tmp_path / "alloy", frames, "npy")
    (tmp_path / "alloy" / "nopbc").touch()
    assert main(["convert-data", str(tmp_path / "alloy"), "-o", str(tmp_path / "x.extxyz")]) == 0
    (atoms, *_) = ase.io.read(tmp_path / "x.extxyz", ":")
    assert not atoms.pbc.any() and "stress" not in atoms.calc.results


def _no_map(system):
    (system / "type_map.raw").unlink()


def _short_forces(system):
    np.save(system / "set.000" / "force.npy", np.zeros((3, 5)))


def _type_beyond(system):
    (system / "type_map.raw").write_text("Cu\n")


def _no_symbol(system):
    (system / "type_map.raw").write_text("A\nB\n")


def _no_cells(system):
    (system / "set.001" / "box.npy").unlink()


def _broken(system):
    (system / "set.000" / "coord.npy").write_bytes(b"\x93NUMPY")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_no_map, "--elements"),
        (_short_forces, "force.npy: does not fit the system; expected 3 frames of 24 numbers"),
        (_type_beyond, "frame 0: a type without an element"),
        (_no_symbol, "not a chemical symbol; got A"),
        (_no_cells, "set.001: no cells"),
        (_broken, "coord.npy: cannot be read"),
    ],
)
def test_what_does_not_fit_is_refused(damage, message, frames, tmp_path, capsys):
    write_system(tmp_path / "alloy", frames, "npy")
    damage(tmp_path / "alloy")
    out = tmp_path / "x.extxyz"
    assert main(["convert-data", str(tmp_path / "alloy"), "-o", str(out)]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1 and not out.exists()


def test_elements_of_unnamed_types(frames, tmp_path):
    write_system(tmp_path / "alloy", frames, "npy")
    _no_map(tmp_path / "alloy")
    arguments = ["convert-data", str(tmp_path / "alloy"), "-o", str(tmp_path / "x.extxyz")]
    assert main([*arguments, "--elements", "Au", "Cu"]) == 0
    assert str(ase.io.read(tmp_path / "x.extxyz").symbols) == str(frames[0].symbols)
    assert main([*arguments[:2], "-o", str(tmp_path), "--elements", "Au", "Cu"]) == 2


def test_a_folder_without_systems(tmp_path, capsys):
    assert main(["convert-data", str(tmp_path), "-o", str(tmp_path / "x.extxyz")]) == 2
    assert "no DeePMD system" in capsys.readouterr().err


def test_parameters_of_frames_are_named(frames, tmp_path, capsys):
    write_system(tmp_path / "alloy", frames, "npy")
    np.save(tmp_path / "alloy" / "set.000" / "fparam.npy", np.zeros((3, 1)))
    assert main(["convert-data", str(tmp_path / "alloy"), "-o", str(tmp_path / "x.extxyz")]) == 0
    assert "fparam is not read" in capsys.readouterr().err
