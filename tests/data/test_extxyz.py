"""Extended xyz as people write it: read as meant, said, or refused by the line; never in
silence as something else.
"""

import bz2
import gzip
import logging
import lzma

import ase
import ase.io
import numpy as np
import pytest

from race.data import read_frames
from race.data.extxyz import parse_pbc
from race.data.io import Tolerance, raw_frames
from race.errors import RaceError

from .conftest import labelled


def text_of(n_frames=2):
    """Frames of 4 atoms in 6 lines each."""
    import io

    stream = io.StringIO()
    ase.io.write(stream, [labelled(4, seed=k) for k in range(n_frames)], format="extxyz")
    return stream.getvalue()


def read(tmp_path, text, name="a.xyz", **options):
    data = text if isinstance(text, bytes) else text.encode()
    (tmp_path / name).write_bytes(data)
    return read_frames(tmp_path / name, **options)


def same(frames, text, tmp_path):
    (tmp_path / "plain.xyz").write_text(text)
    whole = ase.io.read(tmp_path / "plain.xyz", ":")
    assert len(frames) == len(whole)
    for mine, other in zip(frames, whole, strict=True):
        np.testing.assert_array_equal(mine.pbc, other.pbc)
        np.testing.assert_allclose(mine.cell.array, other.cell.array)
        np.testing.assert_allclose(mine.positions, other.positions)
        np.testing.assert_allclose(mine.arrays["forces"], other.calc.results["forces"])
        assert mine.info["energy"] == pytest.approx(other.calc.results["energy"])


HARMLESS = {
    "as ASE writes it": lambda text: text,
    "blank lines between frames": lambda text: (
        "\n" + text[: len(text) // 2] + text[len(text) // 2 :]
    ),
    "Windows line ends": lambda text: text.replace("\n", "\r\n"),
    "tabs": lambda text: text.replace("       ", "\t"),
    "byte order mark": lambda text: b"\xef\xbb\xbf" + text.encode(),
    "no newline at the end": lambda text: text.rstrip("\n"),
    "blanks at the end": lambda text: text + "\n  \n\t\n",
    "gzip": lambda text: gzip.compress(text.encode()),
    "bzip2": lambda text: bz2.compress(text.encode()),
    "xz": lambda text: lzma.compress(text.encode()),
    "another character set in a remark": lambda text: text.replace("pbc=", "by=Å pbc=").encode(
        "latin-1"
    ),
    "words of the header in another order": lambda text: text.replace(' pbc="T T T"', "").replace(
        "Lattice", 'pbc="T T T" Lattice'
    ),
}


@pytest.mark.parametrize("what", HARMLESS)
def test_harmless_differences(tmp_path, what):
    text = text_of(3)
    same(read(tmp_path, HARMLESS[what](text)), text, tmp_path)


def test_files_joined_by_an_empty_line(tmp_path):
    joined = text_of(2) + "\n" + text_of(3) + "\n\n" + text_of(1)
    assert len(read(tmp_path, joined)) == 6
    assert len(list(raw_frames(tmp_path / "a.xyz"))) == 6  # what pools are read with


def test_file_names_are_names(tmp_path):
    for name in ("train@300K.xyz", "train@0.xyz", "a b.xyz", "a.XYZ", "a.extxyz.gz", "a@:.xyz"):
        text = text_of(3)
        data = gzip.compress(text.encode()) if name.endswith("gz") else text
        same(read(tmp_path, data, name), text, tmp_path)
    ase.io.write(tmp_path / "b.traj", [labelled(4), labelled(5)])
    (tmp_path / "b.traj").rename(tmp_path / "b@1.traj")
    assert len(read_frames(tmp_path / "b@1.traj")) == 2


RESPELLED = {
    "lattice": ("Lattice=", "lattice="),
    "LATTICE": ("Lattice=", "LATTICE="),
    "PBC": ("pbc=", "PBC="),
    "Pbc": ("pbc=", "Pbc="),
    "properties": ("Properties=", "properties="),
    "column Species": ("species:S:1", "Species:S:1"),
    "column POS": ("pos:R:3", "POS:R:3"),
    "types in lower case": ("species:S:1:pos:R:3", "species:s:1:pos:r:3"),
}


@pytest.mark.parametrize("what", RESPELLED)
def test_words_in_another_case_are_read_as_meant_and_said(tmp_path, caplog, what):
    text = text_of(2)
    with caplog.at_level(logging.WARNING, "race.data"):
        same(read(tmp_path, text.replace(*RESPELLED[what])), text, tmp_path)
    if what != "types in lower case":
        assert "read as" in caplog.text and caplog.text.count("\n") == 1  # once a file


@pytest.mark.parametrize(
    ("written", "meant"),
    {
        "T T F": "TTF", "1 1 0": "TTF", "TTF": "TTF", "ttf": "TTF", "True True False": "TTF",
        "[T, T, F]": "TTF", "p p f": "TTF", "ppf": "TTF", "pp pp fs": "TTF", "p p s": "TTF",
        "xy": "TTF", "XY": "TTF", "T": "TTT", "none": "FFF", "NONE": "FFF", "xyz": "TTT",
        ".true. .true. .false.": "TTF", "yes yes no": "TTF", "0 0 0": "FFF", "periodic": "TTT",
        "110": "TTF",
        "2": None, "T T": None, "slab": None, "T T T T": None, "": None, "3": None, "xx": None,
    }.items(),
)  # fmt: skip
def test_pbc_in_words_of_other_codes(tmp_path, written, meant):
    pbc = parse_pbc(written)
    assert pbc == (None if meant is None else [letter == "T" for letter in meant])
    text = text_of(1).replace('pbc="T T T"', f'pbc="{written}"')
    if meant is None:
        with pytest.raises(RaceError, match="frame 0: pbc is not understood; expected T or F"):
            read(tmp_path, text)
    else:
        assert list(read(tmp_path, text)[0].pbc) == pbc


REFUSED = {
    "misspelt lattice": (("Lattice=", "Latice="), r"Latice= is no word.*did you mean Lattice="),
    "cell": (("Lattice=", "cell="), r"cell= is no word.*did you mean Lattice="),
    "box": (("Lattice=", "Box="), r"Box= is no word.*did you mean Lattice="),
    "periodic": (('pbc="T T T"', 'periodic="T T F"'), "did you mean pbc="),
    "pcb": (('pbc="T T T"', 'pcb="T T F"'), "did you mean pbc="),
    "misspelt properties": (("Properties=", "Propertys="), "did you mean Properties="),
    "six numbers of a lattice": (('Lattice="4.0 0.1 0.0', 'Lattice="'), "nine numbers"),
    "an open quote": (('5.0" Prop', "5.0 Prop"), "quote is not closed|not understood|not readable"),
    "twice": (("pbc=", 'pbc="F F F" pbc='), "pbc stands twice in the header"),
    "two energies": (("energy=", "energy=5 energy="), "energy stands twice"),
    "two spellings": (("pbc=", 'PBC="F F F" pbc='), "PBC and pbc differ"),
    "a column twice": (("pos:R:3", "pos:R:3:pos:R:3"), "names a column twice"),
    "a row too wide": (("forces:R:3", "forces:R:2"), "a row is too wide; expected 6, as Prop"),
    "a row too short": (("forces:R:3", "forces:R:4"), "a row has too few columns; expected 8"),
    "no positions": (("pos:R:3", "coords:R:3"), "names no positions; expected a column pos"),
    "no elements": (("species:S:1", "label:S:1"), "names no elements"),
    "no type": (("pos:R:3", "pos:3"), "Properties is not understood"),
    "no element": (("\nB ", "\nB1 "), r"line \d+: not a chemical element; got 'B1'"),
    "text between frames": (("\n4\n", "\nnext\n4\n"), "line 7: not the start of a frame; .*'next'"),
    "a row too many": (("\n4\n", "\nB 1 1 1 1 1 1\n4\n"), "line 7: not the start of a frame"),
    "fewer atoms announced": (("\n4\n", "\n3\n"), "line 12: not the start of a frame"),
    "more atoms announced": (("\n4\n", "\n5\n"), "line 12: the file ends inside this frame"),
    "six numbers of stress": (None, "stress has 6 numbers; expected nine, row by row"),
    "stars for a number": (None, "not readable|not numeric"),
    "null bytes at the end": (None, "line 13: not the start of a frame"),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_refused_by_the_line(tmp_path, what):
    import re

    text, (change, message) = text_of(2), REFUSED[what]
    if change is not None:
        assert change[0] in text
        spoiled = text.replace(*change)
    elif what == "six numbers of stress":
        spoiled = re.sub('stress="[^"]*"', 'stress="1 2 3 4 5 6"', text)
    elif what == "stars for a number":
        spoiled = re.sub("energy=[^ ]*", "energy=*****", text)
    else:
        spoiled = text + "\0" * 100
    read(tmp_path, text)
    with pytest.raises(RaceError, match=f"a.xyz, frame .*({message})"):
        read(tmp_path, spoiled)


def test_words_that_mean_nothing_else_pass(tmp_path):
    """Remarks beside the standard's words, and words that agree with what is read."""
    text = text_of(1).replace("pbc=", 'cell="1 2 3" periodic=T comment="PBC=F lattice=none" pbc=')
    (atoms,) = read(tmp_path, text)
    assert atoms.pbc.all() and atoms.info["comment"] == "PBC=F lattice=none"


def test_plain_xyz_is_said_to_be_a_molecule(tmp_path, caplog):
    text = "3\nwater\nO 0 0 0\nH 0 0 1\nH 0 1 0\n" * 2
    with caplog.at_level(logging.WARNING, "race.data"):
        frames = read(tmp_path, text, require=())
    assert len(frames) == 2 and not frames[0].pbc.any()
    assert "a.xyz: no Lattice and no pbc: read as molecules in vacuum" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.WARNING, "race.data"):
        read(tmp_path, text.replace("water", 'pbc="F F F"'), require=())
        read(tmp_path, text_of(2))
    assert not caplog.text
    mixed = text + text_of(2)
    with caplog.at_level(logging.WARNING, "race.data"):
        read(tmp_path, mixed, require=())
    assert "frames 0-1: no Lattice" in caplog.text


@pytest.mark.parametrize(
    ("was", "now", "hint"),
    [
        ("forces:R:3", "force:R:3", "data.forces_key: force"),
        ("forces:R:3", "REF_forces:R:3", "data.forces_key: REF_forces"),
        ("forces:R:3", "Forces:R:3", "data.forces_key: Forces"),
        (" energy=", " Energy=", "data.energy_key: Energy"),
        (" energy=", " DFT_energy=", "data.energy_key: DFT_energy"),
        (" energy=", " free_energy=", "data.energy_key: free_energy"),
        (" stress=", " virial=", "data.stress_key: virial"),
        (" stress=", " virials=", "data.stress_key: virials"),
        (" stress=", " REF_stress=", "data.stress_key: REF_stress"),
    ],
)
def test_a_label_under_another_name(tmp_path, was, now, hint):
    text = text_of(2).replace(was, now)
    with pytest.raises(RaceError, match=f"did you mean {hint}"):
        read(tmp_path, text, require=("energy", "forces", "stress"))
    with pytest.raises(RaceError, match=f"did you mean {hint}"):
        read(tmp_path, text, require=(), wanted=("energy", "forces", "stress"))
    read(tmp_path, text, require=())
    other = ("stress",) if "forces" in was else ("forces",)
    assert len(read(tmp_path, text, require=(), wanted=other)) == 2


def test_two_energies_are_said(tmp_path, caplog):
    text = text_of(2).replace(" energy=", " REF_energy=-3 energy=")
    with caplog.at_level(logging.WARNING, "race.data"):
        read(tmp_path, text)
    assert "REF_energy stands beside energy and differs: energy is read" in caplog.text


def test_missing_labels(tmp_path):
    """NaN, none and absent are one thing; of the wanted labels a frame needs one."""
    import re

    text = text_of(2)
    wanted = ("energy", "forces", "stress")
    for nothing in ("nan " * 9, "nan", "None"):
        spoiled = re.sub('stress="[^"]*"', f'stress="{nothing}"', text)
        assert all("stress" not in atoms.info for atoms in read(tmp_path, spoiled))
    part = re.sub("energy=[^ ]*", "energy=nan", text, count=1)
    one, two = read(tmp_path, part, require=(), wanted=wanted)
    assert "energy" not in one.info and "energy" in two.info and "forces" in one.arrays
    with pytest.raises(RaceError, match="frame 0: no label; expected energy"):
        read(tmp_path, part, require=(), wanted=("energy",))


def test_forces_of_fixed_atoms(tmp_path, caplog):
    atoms = labelled(6)
    atoms.set_constraint(ase.constraints.FixAtoms([0, 2]))
    forces = atoms.calc.results["forces"]
    ase.io.write(tmp_path / "a.xyz", atoms, format="extxyz", columns=None)
    for zero in (False, True):
        if zero:
            forces[[0, 2]] = 0.0
        ase.io.write(tmp_path / "a.traj", atoms)
        with caplog.at_level(logging.WARNING, "race.data"):
            (read_back,) = read_frames(tmp_path / "a.traj")
        assert list(np.flatnonzero(read_back.arrays["fixed"])) == [0, 2]
        assert np.isnan(read_back.arrays["forces"]).any() == zero
        assert ("written as zero" in caplog.text) == zero
    assert list(np.flatnonzero(np.isnan(read_back.arrays["forces"]).all(1))) == [0, 2]


def test_tolerance_leaves_out_and_lists(tmp_path):
    text = text_of(6)
    lines = text.splitlines(keepends=True)
    lines[6 + 3] = "B 1 2\n"  # a short row in frame 1
    lines[3 * 6 + 1] = lines[3 * 6 + 1].replace("pbc=", "pbcs=")  # frame 3: pbcs="T T T" agrees
    lines[4 * 6 + 4] = lines[4 * 6 + 4].replace(lines[4 * 6 + 4].split()[1], "nan", 1)  # frame 4
    spoiled = "".join(lines[:-1])  # frame 5 is cut short
    tolerance = Tolerance(3)
    assert len(read(tmp_path, spoiled, tolerance=tolerance)) == 3
    assert [error.split(":")[0].split(", ")[1] for error in tolerance.left_out] == [
        "frame 1",
        "frame 4",
        "frame 5",
    ]
    with pytest.raises(RaceError, match="more bad frames than data.skip_bad_frames; the last: .*f"):
        read(tmp_path, spoiled, tolerance=Tolerance(2))
    with pytest.raises(RaceError, match="frame 1, line 10: a row has too few columns"):
        read(tmp_path, spoiled, tolerance=Tolerance(0))


@pytest.mark.parametrize("cut", [1, 7, 30])
def test_compressed_file_cut_short(tmp_path, cut):
    data = gzip.compress(text_of(40).encode())
    with pytest.raises(RaceError, match="a.xyz.gz: cannot be read to its end"):
        read(tmp_path, data[:-cut], "a.xyz.gz")


ONE = (
    '{n}\nLattice="4 0 0 0 4 0 0 0 4" Properties=species:S:1:pos:R:3:forces:R:3 {energy} '
    'pbc="T T T"{more}\nCu 0 0 0 0.1 0 0\nCu 2 2 0 -0.1 0 0\n'
)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"energy": "energy=T"}, "energy is true or false, not a number"),
        ({"energy": "energy: -1.0"}, r"energy: is no entry of the header; expected energy=VALUE"),
        ({"more": ' stress="1 5 0 0 1 0 0 0 1"'}, "stress is not symmetric"),
        ({"n": 10**14}, "the file ends inside this frame; expected 100000000000000 atoms"),
        ({"n": 10**20}, "not the start of a frame"),
    ],
)
def test_nothing_is_made_of_what_is_no_label(tmp_path, changes, message):
    """Truth values, the colon of other formats, one of two unlike halves of a matrix, and
    numbers of atoms that no file has.
    """
    text = ONE.format(**{"n": 2, "energy": "energy=-1.0", "more": ""} | changes)
    with pytest.raises(RaceError, match=message):
        read(tmp_path, text, require=(), wanted=("energy", "forces"))


def test_remarks_may_have_colons(tmp_path):
    (atoms,) = read(tmp_path, ONE.format(n=2, energy="energy=-1.0 Step: 5", more=""))
    assert atoms.info["energy"] == -1.0


def test_symbols_in_another_case_are_said(tmp_path, caplog):
    """CA is an alpha carbon as often as it is calcium."""
    text = text_of(2)
    with caplog.at_level(logging.WARNING, "race.data"):
        frames = read(tmp_path, text.replace("\nB ", "\nCA ").replace("\nO ", "\no "))
    assert {*frames[0].symbols} == {"Ca", "O"}
    assert "a.xyz: CA is read as Ca" in caplog.text and "a.xyz: o is read as O" in caplog.text
    assert caplog.text.count("\n") == 2
