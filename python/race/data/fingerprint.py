"""The identity of a structure: a digest of elements, positions, cell and periodicity."""

import hashlib

import ase
import numpy as np


def fingerprint(atoms: ase.Atoms) -> str:
    """64 hexadecimal digits, the same for positions and cells (Angstrom) that agree to six
    decimals, however the file rounded them.

    Rounded to the eight decimals of extended xyz first: a coordinate such as
    0.1234564999999 and its copy from a file, 0.12345650, would otherwise fall on two
    sides of a boundary.
    """

    def millionths(values: np.ndarray) -> np.ndarray:
        return np.rint(np.asarray(values, dtype=np.float64) * 1e8).astype(np.int64) // 100

    # A vector along which nothing repeats is no part of the structure
    cell = np.asarray(atoms.cell.array) * atoms.pbc[:, None]
    content = [
        atoms.numbers.astype(np.int64),
        millionths(atoms.positions),
        millionths(cell),
        atoms.pbc,
    ]
    return hashlib.sha256(
        b"".join(np.ascontiguousarray(values).tobytes() for values in content)
    ).hexdigest()
