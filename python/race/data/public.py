"""Public datasets by name: where they come from, whether a local copy is the published one,
and how to read it.

Nothing is downloaded here. Unpack a dataset anywhere and name the folder, or set
RACE_DATA to a folder of folders.
"""

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import ase
import numpy as np

from race.data.io import read_frames
from race.data.qm9 import uncharacterized
from race.errors import RaceError

# Lines of `sha256sum`. Those of psb3 and obn25 are the publisher's own (git LFS object
# ids); the others were computed from copies of the published files. A file that has no
# line here cannot be verified: `verify` then returns False.
CHECKSUMS = Path(__file__).with_name("checksums.sha256")


@dataclass(frozen=True)
class PublicDataset:
    """One public dataset.

    Attributes:
        title: what it is; levels of theory are in the cited paper.
        url: where the files are published.
        files: split -> file name.
        options: how `read_frames` must read them.
    """

    title: str
    url: str
    files: Mapping[str, str]
    options: Mapping[str, Any] = field(default_factory=dict)


_RMD17 = (
    "aspirin azobenzene benzene ethanol malonaldehyde naphthalene paracetamol salicylic "
    "toluene uracil"
).split()
_RMD17_SPLITS = [f"{part}_{k:02d}" for part in ("train", "test") for k in range(1, 6)]

DATASETS = {
    "3bpa": PublicDataset(
        title="3BPA, a flexible drug-like molecule at 300, 600 and 1200 K (Kovacs et al. 2021, "
        "doi:10.1021/acs.jctc.1c00647)",
        url="https://github.com/davkovacs/BOTNet-datasets/tree/main/dataset_3BPA",
        files={
            k: f"{k}.xyz"
            for k in (
                "train_300K",
                "train_mixedT",
                "test_300K",
                "test_600K",
                "test_1200K",
                "test_dih",
                "iso_atoms",
            )
        },
    ),
    "rmd17": PublicDataset(
        title="revised MD17 (Christensen and von Lilienfeld 2020), kcal/mol",
        url="https://figshare.com/articles/dataset/Revised_MD17_dataset_rMD17_/12672038",
        # A molecule, or one of the five published 1000-frame splits of it.
        files={m: f"rmd17_{m}.npz" for m in _RMD17}
        | {f"{m}_{s}": f"rmd17_{m}_{s}.npz" for m in _RMD17 for s in _RMD17_SPLITS},
    ),
    "qm9": PublicDataset(
        title="QM9 (Ramakrishnan et al. 2014, doi:10.1038/sdata.2014.22); energy_key picks the "
        "property, U0 by default",
        url="https://doi.org/10.6084/m9.figshare.c.978904",
        files={"all": "dsgdb9nsd.xyz.tar.bz2", "c7h10o2": "qm9_C7H10O2_6095.extxyz"},
        options={"energy_key": "U0_Ha", "require": ("energy",)},
    ),
    "psb3": PublicDataset(
        title="penta-2,4-dieniminium cation, SSR(2,2): PPS and OSS energies, squared coupling "
        "(delta_sq, in the file's unit)",
        url="https://github.com/myung-group/Data_BAM_RACE/tree/main/Data/PSB3/dataset",
        files={
            f"{s}_{part}": f"psb3_{s}_{part}_lattice.traj"
            for s in ("pps", "oss", "delta_sq")
            for part in ("train", "test")
        },
    ),
    "obn25": PublicDataset(
        title="oBN25, liquid and solid boron nitride (doi:10.5281/zenodo.17404713); liquids train, "
        "solids are out of distribution",
        url="https://github.com/myung-group/Data_BAM_RACE/tree/main/Data/oBN25/dataset",
        files={f"liquid_{part}": f"liquid_bn_{part}.traj" for part in ("train", "valid", "test")}
        | {"solid": "new_solid.traj"},
    ),
}


def load(
    name: str, split: str, folder: str | Path | None = None, *, check: bool = True, **options: Any
) -> list[ase.Atoms]:
    """Frames of a named dataset from a local folder.

    Args:
        name: a key of DATASETS.
        split: a key of its `files`. A split of rMD17 is also read from the molecule's
            file and the published index_*.csv. QM9's "all" leaves out the molecules of
            uncharacterized.txt, if that file is in the folder.
        folder: searched with all its subfolders; the environment's RACE_DATA when None.
        check: refuse a file whose sha256 is known and differs.
        options: passed on to `read_frames`.

    Raises:
        RaceError: unknown name or split, no folder, no file, a file that is not the
            published one, bad data.
    """
    dataset = _dataset(name)
    if split not in dataset.files:
        raise RaceError(f"unknown split of {name}", expected=_short(dataset.files), got=repr(split))
    root = _root(name, folder)
    options = {**dataset.options, **options}
    if split == "iso_atoms":
        options.setdefault("require", ("energy",))
    path = _find(root, dataset.files[split])
    if path is None and name == "rmd17" and "_" in split:
        molecule, part = split.split("_", 1)
        path, index = _find(root, dataset.files[molecule]), _find(root, f"index_{part}.csv")
        if path is not None and index is not None:
            options["frames"] = np.loadtxt(index, dtype=np.int64, ndmin=1)
    if path is None:
        raise RaceError(
            f"no {dataset.files[split]}", where=root, remedy=f"fetch it from {dataset.url}"
        )
    if check:
        verify(name, path)
    frames = read_frames(path, **options)
    if split == "all" and (listed := _find(root, "uncharacterized.txt")) is not None:
        left_out = uncharacterized(listed)
        frames = [atoms for atoms in frames if atoms.info["name"] not in left_out]
    return frames


def verify(name: str, path: str | Path) -> bool:
    """True when the file's sha256 is the recorded one, False when none is recorded for its name.

    Raises:
        RaceError: they differ, or the file is a git LFS pointer instead of the data.
    """
    path = Path(path)
    with path.open("rb") as stream:
        if stream.read(40).startswith(b"version https://git-lfs.github.com"):
            raise RaceError(
                "is a git LFS pointer, not the data",
                where=path,
                remedy="run `git lfs pull` in that repository",
            )
        stream.seek(0)
        expected = _checksums().get(f"{name}/{path.name}")
        if expected is None:
            return False
        found = _sha256(stream)
    if found != expected:
        remedy = (
            f"fetch it again from {_dataset(name).url}, or pass check=False to read it as it is"
        )
        raise RaceError(
            "is not the published file",
            where=path,
            expected=f"sha256 {expected}",
            got=found,
            remedy=remedy,
        )
    return True


def _sha256(stream: Any) -> str:
    digest = hashlib.sha256()
    while block := stream.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()


@cache
def _checksums() -> dict[str, str]:
    lines = (line.split() for line in CHECKSUMS.read_text().splitlines())
    return {name: digest for digest, name in lines}


def _dataset(name: str) -> PublicDataset:
    if name not in DATASETS:
        raise RaceError("unknown dataset", expected=" ".join(DATASETS), got=repr(name))
    return DATASETS[name]


def _root(name: str, folder: str | Path | None) -> Path:
    folder = folder if folder is not None else os.environ.get("RACE_DATA")
    if not folder:
        raise RaceError(
            f"no folder to find {name} in",
            remedy=f"pass one or set RACE_DATA; the files are at {DATASETS[name].url}",
        )
    root = Path(folder)
    if not root.is_dir():
        raise RaceError("no such folder", where=root)
    return root


def _find(root: Path, file_name: str) -> Path | None:
    return min(root.rglob(file_name), default=None)


def _short(names: Mapping[str, str]) -> str:
    listed = list(names)
    return " ".join(listed[:12]) + (f" ... ({len(listed)} in all)" if len(listed) > 12 else "")
