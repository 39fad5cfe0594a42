"""What is read, where labels may hide, and what is refused, with the message a user gets."""

import io
import tarfile

import ase
import ase.io
import numpy as np
import pytest
import torch
from ase.calculators.singlepoint import SinglePointCalculator

from race.conventions import HARTREE, KCAL_PER_MOL
from race.data import build_graph, read_frames
from race.data.labels import normalize
from race.errors import RaceError

from .conftest import labelled

SIX = [0, 1, 2, 5, 4, 3]  # ASE's Voigt -> SIX_ORDER
KEYS = {"energy": "energy", "forces": "forces", "stress": "stress"}
EV = {"energy": 1.0, "forces": 1.0, "stress": 1.0}


@pytest.mark.parametrize("suffix", ["extxyz", "traj"])
def test_labels_survive_ase_formats(tmp_path, suffix):
    frames = [labelled(n, seed=n) for n in (4, 6)]
    ase.io.write(tmp_path / f"a.{suffix}", frames)
    for atoms, original in zip(
        read_frames(tmp_path / f"a.{suffix}", require=("energy", "forces", "stress")),
        frames,
        strict=True,
    ):
        results = original.calc.results
        assert atoms.calc is None
        assert atoms.info["energy"] == pytest.approx(results["energy"], abs=1e-8)
        np.testing.assert_allclose(atoms.arrays["forces"], results["forces"], atol=1e-7)
        np.testing.assert_allclose(atoms.info["stress"], results["stress"][SIX], atol=1e-7)
        np.testing.assert_allclose(atoms.positions, original.positions, atol=1e-7)


def test_labels_under_other_keys(tmp_path):
    atoms = labelled(4)
    results, atoms.calc = atoms.calc.results, None
    atoms.info |= {
        "REF_energy": results["energy"],
        "REF_virial": -results["stress"] * atoms.get_volume(),
        "energy": 99.0,
    }
    atoms.arrays["REF_forces"] = results["forces"]
    ase.io.write(tmp_path / "a.xyz", atoms, format="extxyz")
    (read,) = read_frames(
        tmp_path / "a.xyz",
        energy_key="REF_energy",
        forces_key="REF_forces",
        stress_key="REF_virial",
    )
    assert read.info["energy"] == pytest.approx(results["energy"])
    np.testing.assert_allclose(read.arrays["forces"], results["forces"], atol=1e-7)
    np.testing.assert_allclose(read.info["stress"], results["stress"][SIX], atol=1e-7)


def test_constraints_do_not_zero_the_forces(tmp_path):
    atoms = labelled(4)
    atoms.set_constraint(ase.constraints.FixAtoms([0]))
    ase.io.write(tmp_path / "a.traj", atoms)
    np.testing.assert_allclose(
        read_frames(tmp_path / "a.traj")[0].arrays["forces"], atoms.calc.results["forces"]
    )


def test_frames_from_memory_and_from_disk_make_the_same_graph():
    """build_graph reads a calculator itself; both paths must agree on the order of stress."""
    atoms = labelled(5)
    direct = build_graph(atoms, ["B", "O"], 3.0, torch.float64)
    read = build_graph(normalize(atoms, KEYS, EV), ["B", "O"], 3.0, torch.float64)
    assert torch.equal(direct.stress, read.stress) and torch.equal(direct.forces, read.forces)


def write_npz(path, **changes):
    random = np.random.RandomState(0)
    coords = np.array([[0, 0, 0], [0, 0, 1.1], [0, 1.0, 0]]) + random.normal(0, 0.01, (4, 3, 3))
    data = {
        "nuclear_charges": np.array([8, 1, 1], np.uint8),
        "coords": coords,
        "energies": random.normal(size=4),
        "forces": coords * 3,
    }
    np.savez(path, **{key: value for key, value in (data | changes).items() if value is not None})
    return data


def test_rmd17_is_converted(tmp_path):
    data = write_npz(tmp_path / "a.npz")
    frames = read_frames(tmp_path / "a.npz", frames=[3, 1])
    assert (
        len(frames) == 2 and frames[0].get_chemical_formula() == "H2O" and not frames[0].pbc.any()
    )
    assert frames[0].info["energy"] == pytest.approx(data["energies"][1] * KCAL_PER_MOL)
    np.testing.assert_allclose(frames[1].arrays["forces"], data["forces"][3] * KCAL_PER_MOL)
    assert read_frames(tmp_path / "a.npz", units="eV")[0].info["energy"] == pytest.approx(
        data["energies"][0]
    )


def test_scalar_targets(tmp_path):
    atoms = ase.Atoms("OH", positions=[[0, 0, 0], [0, 0, 1]])
    atoms.info |= {"homo_Ha": -0.25, "mu_D": 1.5, "gap_eV": 2.0}
    ase.io.write(tmp_path / "a.xyz", atoms, format="extxyz")
    for key, value in {"homo_Ha": -0.25 * HARTREE, "mu_D": 1.5, "gap_eV": 2.0}.items():
        (read,) = read_frames(tmp_path / "a.xyz", energy_key=key, require=("energy",))
        assert read.info["energy"] == pytest.approx(value)
        assert build_graph(read, ["H", "O"], 3.0, torch.float32).forces is None


QM9_WATER = (
    "3\ngdb "
    "3\t799.58812\t437.90386\t282.94545\t1.8511\t6.31\t-0.2928\t0.0687\t0.3615\t19.0002\t0.021375"
    "\t-76.404702\t-76.401867\t-76.400922\t-76.422349\t6.002\t\n"
    "O\t-0.0343604951\t 0.9775395708\t 7.6015923*^-3\t-0.589706\nH\t 0.0647664923\t 0.0205721989\t "
    "0.0015346341\t 0.294853\n"
    "H\t 0.8717903737\t 1.3007924048\t 0.0006931336\t 0.294853\n1671.4222\t3803.6305\t3907.698\n"
    "O\tO\nInChI=1S/H2O/h1H2\tInChI=1S/H2O/h1H2\n"
)


def write_qm9(path, text=QM9_WATER):
    with tarfile.open(path, "w:bz2") as archive:
        member = tarfile.TarInfo("dsgdb9nsd_000003.xyz")
        member.size = len(text)
        archive.addfile(member, io.BytesIO(text.encode()))


def test_qm9_archive(tmp_path):
    write_qm9(tmp_path / "q.tar.bz2")
    (atoms,) = read_frames(tmp_path / "q.tar.bz2", energy_key="U0_Ha", require=("energy",))
    assert atoms.get_chemical_formula() == "H2O" and atoms.positions[0, 2] == pytest.approx(
        7.6015923e-3
    )
    assert (
        atoms.info["energy"] == pytest.approx(-76.404702 * HARTREE)
        and atoms.info["Cv_cal_molK"] == 6.002
    )
    write_qm9(tmp_path / "q.tar.bz2", QM9_WATER.replace("gdb 3", "3"))
    with pytest.raises(RaceError, match="q.tar.bz2, dsgdb9nsd_000003.xyz: not a QM9 molecule"):
        read_frames(tmp_path / "q.tar.bz2", require=())


def spoil(what):
    """A frame with one defect, and the words its refusal must contain."""
    atoms = labelled(4)
    results = atoms.calc.results
    if what == "nan energy":
        results["energy"] = np.nan
        return atoms, "no energy under the key 'energy'; got NaN"
    if what == "inf energy":
        results["energy"] = np.inf
        return atoms, "energy is not finite"
    if what == "nan in one component":
        results["forces"][2, 1] = np.nan
        return atoms, r"forces is not finite at \[2, 1\]"
    if what == "inf force":
        results["forces"][2, 1] = np.inf
        return atoms, r"forces is not finite at \[2, 1\]"
    if what == "nan position":
        atoms.positions[1] = np.nan
        return atoms, "a position is NaN or infinite; got x of atom 1: nan"
    if what == "missing forces":
        del results["forces"]
        return (
            atoms,
            "no forces under the key 'forces'; got keys energy stress; set data.forces_key",
        )
    if what == "missing energy":
        del results["energy"]
        return atoms, "no energy under the key 'energy'"
    if what == "force shape":
        results["forces"] = np.zeros((4, 2))
        return atoms, r"forces has the wrong shape; expected \[4, 3\]; got \[4, 2\]"
    if what == "stress shape":
        results["stress"] = np.zeros(5)
        return atoms, r"stress has the wrong shape; expected \[6\].*got \[5\]"
    if what == "asymmetric stress":
        results["stress"] = np.arange(9.0).reshape(3, 3)
        return atoms, "stress is not symmetric"
    if what == "vector energy":
        results["energy"] = np.zeros(3)
        return atoms, "energy is not one number"
    if what == "text energy":
        atoms.info["energy"] = "n/a"
        return atoms, "energy is not numeric; got 'n/a'"
    if what == "duplicate":
        atoms.positions[3] = atoms.positions[0] + 0.02
        return atoms, "atoms 0 and 3 coincide; expected at least 0.1 A"
    if what == "duplicate image":
        atoms.positions[3] = atoms.positions[0] + atoms.cell[1] - atoms.cell[2]
        return atoms, "atoms 0 and 3 coincide"
    if what == "flat cell":
        atoms.cell[2] = atoms.cell[0] + atoms.cell[1]
        return atoms, "span no volume"
    if what == "no cell":
        atoms.cell[:] = 0
        return atoms, "span no volume"
    if what == "no element":
        atoms.numbers[1] = 0
        return atoms, "no element"
    assert what == "empty"
    return ase.Atoms(), "empty frame"


DEFECTS = [
    "nan energy",
    "inf energy",
    "nan in one component",
    "inf force",
    "nan position",
    "missing forces",
    "missing energy",
    "force shape",
    "stress shape",
    "asymmetric stress",
    "vector energy",
    "text energy",
    "duplicate",
    "duplicate image",
    "flat cell",
    "no cell",
    "no element",
    "empty",
]


@pytest.mark.parametrize("what", DEFECTS)
def test_bad_frame_is_refused(what):
    atoms, message = spoil(what)
    with pytest.raises(RaceError, match=f"^a.xyz, frame 7: .*{message}"):
        normalize(atoms, KEYS, EV, require=("energy", "forces"), where="a.xyz, frame 7")
    # The same frame unspoiled passes
    normalize(labelled(4), KEYS, EV, require=("energy", "forces"), where="a.xyz, frame 7")


def test_file_and_frame_are_named(tmp_path):
    bad = labelled(4)
    bad.calc.results["forces"][0, 0] = np.nan
    ase.io.write(tmp_path / "a.extxyz", [labelled(4), labelled(5), bad])
    with pytest.raises(RaceError, match=r"a\.extxyz, frame 2: forces is not finite"):
        read_frames(tmp_path / "a.extxyz")
    assert len(read_frames(tmp_path / "a.extxyz", frames=slice(2))) == 2
    with pytest.raises(RaceError, match="frame 2"):
        read_frames(tmp_path / "a.extxyz", frames=slice(1, 3))


def test_stress_forms_agree():
    atoms = labelled(4)
    voigt = atoms.calc.results["stress"].copy()
    expected = voigt[SIX]
    for form in (voigt, atoms.get_stress(voigt=False), atoms.get_stress(voigt=False).ravel()):
        atoms.calc.results["stress"] = form
        np.testing.assert_allclose(normalize(atoms, KEYS, EV).info["stress"], expected)


def test_stress_of_a_slab():
    atoms = labelled(4)
    atoms.pbc = (True, True, False)
    atoms.calc = SinglePointCalculator(
        atoms, energy=0.0, forces=np.zeros((4, 3)), stress=np.ones(6)
    )
    assert "stress" not in normalize(atoms, KEYS, EV).info
    with pytest.raises(RaceError, match="not periodic in 3D"):
        normalize(atoms, KEYS, EV, require=("stress",))


def test_unreadable_files(tmp_path):
    with pytest.raises(RaceError, match=r"none\.xyz: no such file"):
        read_frames(tmp_path / "none.xyz")
    with pytest.raises(RaceError, match="is a folder"):
        read_frames(tmp_path)
    contents = {
        "empty.xyz": b"",
        "noise.extxyz": b"\x80\x02" * 50,
        "noise.traj": b"not a trajectory",
        "a.npz": b"PK\x03\x04",
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(RaceError, match=name):
            read_frames(tmp_path / name)


def test_truncated_extxyz_is_refused(tmp_path):
    ase.io.write(tmp_path / "a.extxyz", [labelled(4), labelled(4)])
    text = (tmp_path / "a.extxyz").read_text().splitlines(keepends=True)
    for keep in (len(text) - 1, len(text) - 3):
        (tmp_path / "a.extxyz").write_text("".join(text[:keep]))
        with pytest.raises(RaceError, match="a.extxyz, frame 1, line .*: the file ends"):
            read_frames(tmp_path / "a.extxyz")


def test_npz_defects(tmp_path):
    path = tmp_path / "a.npz"
    write_npz(path, energies=np.zeros(3))
    with pytest.raises(RaceError, match="array energies has the wrong length; expected 4; got 3"):
        read_frames(path)
    write_npz(path, coords=None)
    with pytest.raises(RaceError, match="arrays are missing; expected nuclear_charges and coords"):
        read_frames(path)
    write_npz(path, forces=np.full((4, 3, 3), np.nan))
    with pytest.raises(RaceError, match="a.npz, frame 0: no forces under .*; got NaN"):
        read_frames(path)
    write_npz(path, coords=np.zeros((4, 2, 3)))
    with pytest.raises(RaceError, match="coordinates have the wrong shape"):
        read_frames(path)


def test_unknown_units(tmp_path):
    atoms = labelled(4)
    atoms.info["energy_units"] = "Rydberg"
    ase.io.write(tmp_path / "a.extxyz", atoms)
    with pytest.raises(
        RaceError,
        match=r"info\['energy_units'\] names another unit; expected eV and Angstrom; got Rydberg",
    ):
        read_frames(tmp_path / "a.extxyz")
    with pytest.raises(RaceError, match="unknown unit; expected auto or eV or kcal/mol; got 'Ry'"):
        read_frames(tmp_path / "a.extxyz", units="Ry")


def test_labels_in_the_columns_of_a_database(tmp_path):
    """Key-value pairs and data, which ASE's reader leaves out."""
    import ase.db

    atoms = labelled(4)
    energy, forces = atoms.get_potential_energy(), atoms.get_forces()
    with ase.db.connect(tmp_path / "a.db") as database:
        for _ in range(2):
            plain = atoms.copy()
            data = {"dft_forces": forces, "hessian": np.zeros((12, 12))}
            database.write(plain, key_value_pairs={"dft_energy": energy, "run": 7}, data=data)
        database.write(atoms)
    keys = {"energy_key": "dft_energy", "forces_key": "dft_forces"}
    with pytest.raises(RaceError, match="frame 2: no energy under the key 'dft_energy'"):
        read_frames(tmp_path / "a.db", **keys)
    one, two = read_frames(tmp_path / "a.db", frames=slice(0, 2), **keys)
    assert one.info["energy"] == two.info["energy"] == energy
    np.testing.assert_array_equal(one.arrays["forces"], forces)
    assert one.info["run"] == 7 and "hessian" not in one.info
    (last,) = read_frames(tmp_path / "a.db", frames=[2])
    assert last.info["energy"] == energy


@pytest.mark.parametrize("name", ["a.zip", "a.lmp", "a.pkl", "a.tar"])
def test_a_name_of_no_format(tmp_path, name):
    (tmp_path / name).write_bytes(b"PK\x03\x04 what")
    with pytest.raises(RaceError, match=f"{name}: no format is known by this name; .*extxyz") as e:
        read_frames(tmp_path / name)
    assert "whole" not in str(e.value)


@pytest.mark.parametrize(
    "line",
    [
        "  convergence NOT achieved after 100 iterations: stopping",
        " *** WARNING in qs_scf.F:598 :: SCF run NOT converged ***",
        "-------- aborting loop EDIFF was not reached (unconverged)  --------",
        "*Warning* max. SCF cycles performed but system has not reached the groundstate.",
    ],
)
def test_an_output_that_says_it_did_not_converge(tmp_path, caplog, line):
    path = tmp_path / "a.res"
    ase.io.write(path, labelled(4))
    read_frames(path, require=())
    assert not caplog.text
    path.write_text(path.read_text().replace("END", f"REM {line}\nREM {line}\nEND"))
    read_frames(path, require=())
    assert "a.res: says " in caplog.text and "(2 times)" in caplog.text
    caplog.clear()
    path.write_text(path.read_text().replace(line, "Self-consistency cycle not yet converged"))
    read_frames(path, require=())
    assert not caplog.text
