#pragma once

#include <cstdint>

// Mirror of python/race/conventions.py, where each convention is explained.
//
// Units: eV, Angstrom, eV/Angstrom; force covariance (eV/Angstrom)^2; virial eV.
// Edge e runs from its sender i to its receiver j: edge_vector = r_i - r_j + shift @ cell. Edges
// are sorted by receiver.

namespace race {

/// Symmetric 3x3 tensors are six columns xx, yy, zz, xy, xz, yz (LAMMPS's order); column k is
/// element (row[k], column[k]).
inline constexpr int64_t six_rows[6] = {0, 1, 2, 0, 0, 1};
inline constexpr int64_t six_columns[6] = {0, 1, 2, 1, 2, 2};

/// 3x3 matrices are nine columns xx, xy, xz, yx, yy, yz, zx, zy, zz (row-major); six_to_nine[k] is
/// the place of column k of six.
inline constexpr int six_to_nine[6] = {0, 4, 8, 1, 2, 5};

}  // namespace race
