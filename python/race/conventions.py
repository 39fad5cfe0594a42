"""Every convention of the project, written once. Mirrored by cpp/include/race/conventions.h.

Units: eV, Angstrom, eV/Angstrom; force covariance (eV/Angstrom)^2; stress eV/Angstrom^3
with ASE's sign (stress = dE/dstrain / volume, negative under compression of a solid);
virial = -stress * volume, in eV.

Graph: edge e runs from its sender i = edge_index[0] to its receiver j = edge_index[1];
edge_vector = r_sender - r_receiver + shift @ cell, the rows of cell being the lattice
vectors. Messages flow from sender to receiver, and edges are sorted by receiver (CSR).

Features: flat rows [n_nodes, dim]; irrep block after irrep block; inside a block [2l+1,
n_members, n_channels], so that the channel axis is last and contiguous. Spherical
harmonics are e3nn's real ones, `component` normalised; l = 1 is ordered x, y, z (e3nn >=
0.5 calls the axes so when the input vector is given as x, y, z).
"""

import numpy as np

# Symmetric 3x3 tensors are stored as six columns in LAMMPS's order.
SIX_ORDER = ("xx", "yy", "zz", "xy", "xz", "yz")
SIX_ROWS = (0, 1, 2, 0, 0, 1)
SIX_COLUMNS = (0, 1, 2, 1, 2, 2)
# ASE's Voigt order is xx, yy, zz, yz, xz, xy: ase_voigt = six[..., SIX_TO_VOIGT], and the
# map is its own inverse.
SIX_TO_VOIGT = (0, 1, 2, 5, 4, 3)

KCAL_PER_MOL = 0.0433641042  # eV
HARTREE = 27.211386245988  # eV
GPA = 0.006241509074460763  # eV/Angstrom^3

# The unit of errors of energies, by model.pooling
ENERGY_ERROR = {"sum": "meV/atom", "mean": "1e-3 of the target's unit"}


def six_from_matrix(matrix: np.ndarray) -> np.ndarray:
    """[..., 3, 3] symmetric -> [..., 6] in SIX_ORDER."""
    return matrix[..., SIX_ROWS, SIX_COLUMNS]


def matrix_from_six(six: np.ndarray) -> np.ndarray:
    """[..., 6] in SIX_ORDER -> [..., 3, 3] symmetric."""
    out = np.empty((*six.shape[:-1], 3, 3), dtype=six.dtype)
    for k, (a, b) in enumerate(zip(SIX_ROWS, SIX_COLUMNS, strict=True)):
        out[..., a, b] = out[..., b, a] = six[..., k]
    return out
