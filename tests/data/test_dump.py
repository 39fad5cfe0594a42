"""LAMMPS dumps: against ASE's reader, in every form that LAMMPS writes, and what is refused."""

import gzip

import ase.io
import numpy as np
import pytest

from race.data.dump import is_dump, read_dump
from race.data.fingerprint import fingerprint
from race.errors import RaceError

ROWS = """2 1 2.5 1.5 3.5 0.25
1 2 0.5 0.25 0.125 -1.5"""
FRAME = """ITEM: TIMESTEP
{step}
ITEM: NUMBER OF ATOMS
2
ITEM: BOX BOUNDS {box}
ITEM: ATOMS {columns}
{rows}
"""
BOX = "pp pp ff\n-1 9\n0 8\n0.5 7"
TRICLINIC = "xy xz yz pp pp pp\n-1.5 11.5 1.5\n0 9 -0.5\n0 7 1"
LEANING = "xy xz yz pp pp pp\n-3.5 11.5 -1.5\n-1 9 -0.5\n0 7 -1"  # both shifts of x to one side


def dump(path, box=BOX, columns="id type x y z c_u", rows=ROWS, steps=(0, 50)):
    path.write_text(
        "".join(FRAME.format(step=step, box=box, columns=columns, rows=rows) for step in steps)
    )
    return path


@pytest.mark.parametrize("box", [BOX, TRICLINIC, LEANING])
def test_agrees_with_ase(tmp_path, box):
    path = dump(tmp_path / "x.dump", box)
    assert is_dump(path)
    ours, theirs = (
        list(read_dump(path, ["N", "B"])),
        ase.io.read(path, ":", format="lammps-dump-text", specorder=["N", "B"]),
    )
    assert [atoms.info["timestep"] for atoms in ours] == [0, 50] and len(theirs) == 2
    for a, b in zip(ours, theirs, strict=True):
        assert str(a.symbols) == str(b.symbols) == "BN"
        np.testing.assert_allclose(a.cell.array, b.cell.array, atol=1e-12)
        np.testing.assert_allclose(a.get_all_distances(), b.get_all_distances(), atol=1e-12)
        np.testing.assert_allclose(a.arrays["c_u"], b.arrays["c_u"].ravel())
        assert (a.pbc == b.pbc).all()


def test_positions_count_from_the_corner(tmp_path):
    (atoms,) = read_dump(dump(tmp_path / "x.dump", steps=[0]), ["N", "B"])
    # Ids 1, 2; corner (-1, 0, 0.5)
    np.testing.assert_allclose(atoms.positions, [[1.5, 0.25, -0.375], [3.5, 1.5, 3.0]])
    np.testing.assert_allclose(atoms.arrays["c_u"], [-1.5, 0.25])


@pytest.mark.parametrize("box", [BOX, TRICLINIC])
def test_scaled_positions_are_the_same_structure(tmp_path, box):
    (atoms,) = read_dump(dump(tmp_path / "x.dump", box, steps=[0]), ["N", "B"])
    scaled = atoms.get_scaled_positions(wrap=False)
    rows = "\n".join(
        f"{k + 1} {kind} " + " ".join(f"{s:.16g}" for s in scaled[k])
        for k, kind in enumerate((2, 1))
    )
    (other,) = read_dump(
        dump(tmp_path / "y.dump", box, "id type xs ys zs", rows, steps=[0]), ["N", "B"]
    )
    np.testing.assert_allclose(other.positions, atoms.positions, atol=1e-12)


def test_general_triclinic_units_elements_and_compression(tmp_path):
    text = FRAME.format(
        step=7,
        box="abc origin pp pp pp\n3 0 1 0.5\n0 4 0 0\n1 1 5 0",
        columns="id element x y z",
        rows="1 B 0.5 0 0\n2 N 1 1 1",
    )
    path = tmp_path / "x.dump.gz"
    with gzip.open(path, "wt") as stream:
        stream.write("ITEM: UNITS\nmetal\nITEM: TIME\n0.0035\n" + text)
    assert is_dump(path)
    (atoms,) = read_dump(path)
    assert str(atoms.symbols) == "BN" and atoms.info == {"timestep": 7}
    np.testing.assert_allclose(atoms.cell.array, [[3, 0, 1], [0, 4, 0], [1, 1, 5]])
    np.testing.assert_allclose(atoms.positions, [[0, 0, 0], [0.5, 1, 1]])


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(rows="1 1 0 0 0 1"), "frame 0: the dump ends inside this frame"),
        (dict(rows="1 1 0 0 0 1\n2 2 1 1"), "the dump ends inside this frame"),
        (dict(columns="id type vx vy vz c_u"), "no positions"),
        (dict(columns="id mol x y z c_u"), "no elements"),
        (
            dict(rows="1 3 0 0 0 1\n2 2 1 1 1 1"),
            "a type without element; expected types 1 to 2; got 3",
        ),
        (dict(rows="1 1 0 0 0 1\n2 2 1 1 1 x"), "column c_u is not numeric"),
        (dict(box="pp pp pp\n0 1\n0 a\n0 1"), "box bounds are not readable"),
    ],
)
def test_refusals(tmp_path, change, message):
    with pytest.raises(RaceError, match=message):
        list(read_dump(dump(tmp_path / "x.dump", **{"steps": [0], **change}), ["N", "B"]))


def test_a_dump_without_elements_or_in_other_units(tmp_path):
    path = dump(tmp_path / "x.dump")
    with pytest.raises(RaceError, match="only LAMMPS types.*--elements"):
        list(read_dump(path))
    (tmp_path / "real.dump").write_text("ITEM: UNITS\nreal\n" + path.read_text())
    with pytest.raises(RaceError, match="another unit system; expected units metal .*; got real"):
        list(read_dump(tmp_path / "real.dump", ["N", "B"]))
    (tmp_path / "cut.dump").write_text(path.read_text()[:-40])
    with pytest.raises(RaceError, match="frame 1: the dump ends inside"):
        list(read_dump(tmp_path / "cut.dump", ["N", "B"]))
    assert not is_dump(tmp_path / "none") and not is_dump(tmp_path)


def test_fingerprints_survive_the_rounding_of_files(tmp_path):
    rng = np.random.default_rng(0)
    frames = [
        ase.Atoms("B20", rng.uniform(0, 9, size=(20, 3)), cell=[9.0, 9.1, 9.2], pbc=True)
        for _ in range(40)
    ]
    # What a file makes of it lies on the other side of the sixth decimal
    frames[0].positions[:, 0] = 0.1234565 - 3e-9
    ase.io.write(tmp_path / "x.extxyz", frames)
    again = ase.io.read(tmp_path / "x.extxyz", ":")
    names = [fingerprint(atoms) for atoms in frames]
    assert [fingerprint(atoms) for atoms in again] == names and len(set(names)) == 40
    naive = [
        np.round(a.positions, 6).tobytes() == np.round(b.positions, 6).tobytes()
        for a, b in zip(frames, again, strict=True)
    ]
    assert not all(naive)  # rounding once would not do
    moved = frames[1].copy()
    moved.positions[3, 2] += 2e-6
    assert fingerprint(moved) != names[1]
    for change in ({"pbc": False}, {"cell": [9.0, 9.1, 9.3]}):
        other = frames[1].copy()
        for key, value in change.items():
            getattr(other, f"set_{key}")(value)
        assert fingerprint(other) != names[1]
