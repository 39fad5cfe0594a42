"""QM9 as its authors publish it: 133,885 small text files in one archive (Ramakrishnan et
al. 2014, doi:10.1038/sdata.2014.22).
"""

import tarfile
from collections.abc import Iterator
from pathlib import Path

import ase
import numpy as np

from race.errors import RaceError

# The numbers of a file's second line, after "gdb N"; each name carries its unit, and
# `_Ha` is converted on reading.
PROPERTIES = (
    "A_GHz",
    "B_GHz",
    "C_GHz",
    "mu_D",
    "alpha_a03",
    "homo_Ha",
    "lumo_Ha",
    "gap_Ha",
    "r2_a02",
    "zpve_Ha",
    "U0_Ha",
    "U_Ha",
    "H_Ha",
    "G_Ha",
    "Cv_cal_molK",
)
TARGETS = PROPERTIES[3:]  # the twelve that are learned


def qm9_frames(path: Path) -> Iterator[ase.Atoms]:
    """The molecules of dsgdb9nsd.xyz.tar.bz2 in its order, the fifteen properties in info.

    Raises:
        RaceError: not such an archive, or a damaged member.
    """
    try:
        archive = tarfile.open(path, "r:bz2")
    except (tarfile.TarError, OSError, EOFError) as error:
        raise RaceError(f"not a readable tar.bz2 ({error})", where=path) from error
    with archive:
        for member in archive:
            if not member.name.endswith(".xyz"):
                continue
            stream = archive.extractfile(member)
            text = "" if stream is None else stream.read().decode()
            try:
                yield parse_molecule(text)
            except (ValueError, IndexError, KeyError) as error:
                raise RaceError(
                    f"not a QM9 molecule ({error})",
                    where=f"{path}, {member.name}",
                    got=text[:60] or "nothing",
                ) from error


def parse_molecule(text: str) -> ase.Atoms:
    """One dsgdb9nsd_*.xyz file: atom count; "gdb N" and 15 properties; element, x, y, z,
    charge per atom; ...

    Numbers may be written the Mathematica way, as in 6.2*^-6.
    """
    lines = text.replace("*^", "e").splitlines()
    n_atoms = int(lines[0])
    tag, number, *values = lines[1].split()
    if tag != "gdb" or len(values) != len(PROPERTIES):
        raise ValueError("the second line is not 'gdb', a number and 15 properties")
    rows = [line.split() for line in lines[2 : 2 + n_atoms]]
    atoms = ase.Atoms(
        [row[0] for row in rows], positions=np.array([row[1:4] for row in rows], dtype=np.float64)
    )
    if len(atoms) != n_atoms:
        raise ValueError(f"{n_atoms} atoms announced, {len(atoms)} found")
    atoms.info["name"] = f"gdb_{int(number):06d}"
    atoms.info.update(zip(PROPERTIES, map(float, values), strict=True))
    return atoms


def uncharacterized(path: Path) -> frozenset[str]:
    """Names of the molecules in uncharacterized.txt: relaxation turned them into another
    molecule, and they are left out.
    """
    first = (line.split()[:1] for line in path.read_text().splitlines())
    return frozenset(f"gdb_{int(word[0]):06d}" for word in first if word and word[0].isdigit())
