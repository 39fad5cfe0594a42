"""Named datasets: found, verified, refused; and the published files themselves where they
are at hand.
"""

import hashlib

import ase.io
import numpy as np
import pytest

from race.conventions import HARTREE, KCAL_PER_MOL
from race.data import public, read_frames
from race.errors import RaceError

from .conftest import labelled
from .test_io import QM9_WATER, write_npz, write_qm9


def test_every_checksum_belongs_to_a_file_of_its_source():
    for entry, digest in public._checksums().items():
        name, file_name = entry.split("/")
        assert (
            file_name in public.DATASETS[name].files.values() and len(bytes.fromhex(digest)) == 32
        )
    for name in ("psb3", "obn25"):
        assert all(
            f"{name}/{file_name}" in public._checksums()
            for file_name in public.DATASETS[name].files.values()
        )


def test_load_finds_verifies_and_refuses(tmp_path, monkeypatch):
    (tmp_path / "deep").mkdir()
    path = tmp_path / "deep" / "liquid_bn_test.traj"
    ase.io.write(path, labelled(4))
    with pytest.raises(
        RaceError,
        match=r"liquid_bn_test.traj: is not the published file; expected sha256 "
        r"f160bfb3.*check=False",
    ):
        public.load("obn25", "liquid_test", tmp_path)
    monkeypatch.setenv("RACE_DATA", str(tmp_path))
    assert len(public.load("obn25", "liquid_test", check=False)) == 1
    published = {"obn25/liquid_bn_test.traj": hashlib.sha256(path.read_bytes()).hexdigest()}
    monkeypatch.setattr(public, "_checksums", lambda: published)
    assert public.verify("obn25", path) and len(public.load("obn25", "liquid_test")) == 1
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    with pytest.raises(RaceError, match="is not the published file"):
        public.verify("obn25", path)
    published.clear()
    assert public.verify("obn25", path) is False  # nothing recorded, nothing verified


def test_what_is_missing_is_named(tmp_path, monkeypatch):
    monkeypatch.delenv("RACE_DATA", raising=False)
    with pytest.raises(RaceError, match="unknown dataset; expected 3bpa rmd17"):
        public.load("md22", "all", tmp_path)
    with pytest.raises(RaceError, match="unknown split of 3bpa; expected train_300K"):
        public.load("3bpa", "train", tmp_path)
    with pytest.raises(
        RaceError, match="set RACE_DATA; the files are at https://github.com/davkovacs"
    ):
        public.load("3bpa", "train_300K")
    with pytest.raises(RaceError, match="no train_300K.xyz; fetch it from https"):
        public.load("3bpa", "train_300K", tmp_path)
    (tmp_path / "new_solid.traj").write_text(
        "version https://git-lfs.github.com/spec/v1\noid sha256:345c\nsize 1\n"
    )
    with pytest.raises(RaceError, match="git LFS pointer.*git lfs pull"):
        public.load("obn25", "solid", tmp_path)


def test_rmd17_split_from_the_published_index(tmp_path):
    data = write_npz(tmp_path / "rmd17_ethanol.npz")
    (tmp_path / "index_train_02.csv").write_text("3\n0\n")
    frames = public.load("rmd17", "ethanol_train_02", tmp_path)
    assert [atoms.info["energy"] for atoms in frames] == pytest.approx(
        list(data["energies"][[0, 3]] * KCAL_PER_MOL)
    )


def test_qm9_leaves_out_uncharacterized_molecules(tmp_path):
    write_qm9(tmp_path / "dsgdb9nsd.xyz.tar.bz2", QM9_WATER)
    (atoms,) = public.load("qm9", "all", tmp_path, energy_key="gap_Ha")
    assert atoms.info["energy"] == pytest.approx(0.3615 * HARTREE)
    (tmp_path / "uncharacterized.txt").write_text("Index  SMILES\n     3  O  O\n")
    assert public.load("qm9", "all", tmp_path) == []


@pytest.fixture
def published(reference_data):
    """`public.load` on the reference folder; skips where it lacks the file."""

    def load(name, split, **options):
        if public._find(reference_data, public.DATASETS[name].files[split]) is None:
            pytest.skip(f"{name} {split} is not on this machine")
        return public.load(name, split, reference_data, **options)

    return load


def test_published_3bpa(published):
    isolated = published("3bpa", "iso_atoms")
    assert [str(atoms.symbols) for atoms in isolated] == ["C", "H", "N", "O"]
    frames = published("3bpa", "train_300K", frames=slice(3))
    assert {len(atoms) for atoms in frames} == {27} and frames[0].info["energy"] == pytest.approx(
        -17660.461737861464
    )


def test_published_rmd17(published):
    """Aspirin's binding energy per atom must come out in eV: kcal/mol taken for eV would be
    23 times off.
    """
    frames = published("rmd17", "aspirin_train_01", frames=slice(5))
    assert {atoms.get_chemical_formula() for atoms in frames} == {"C9H8O4"}
    assert frames[0].info["energy"] == pytest.approx(-17617.697, abs=1e-2)
    rms = np.sqrt(np.mean([atoms.arrays["forces"] ** 2 for atoms in frames]))
    assert 0.5 < rms < 3  # eV/A at 500 K


def test_published_qm9_isomers(published):
    (atoms,) = published("qm9", "c7h10o2", frames=slice(1), energy_key="homo_Ha")
    assert atoms.info["energy"] == pytest.approx(-0.21236 * HARTREE) and len(atoms) == 19


def test_published_stress_sign(reference_data):
    """The 40 GPa polymorph: compressed, so ASE's stress is negative, and about as large as
    its name says.
    """
    path = reference_data / "b2o3" / "B2O3_crystal_highP_40GPa_val.extxyz"
    if not path.is_file():
        pytest.skip("B2O3 frames are not on this machine")
    pressure = [-atoms.info["stress"][:3].mean() * 160.2176634 for atoms in read_frames(path)]
    assert 20 < np.mean(pressure) < 60
