#pragma once
// race::edge_basis: schemas, and the arguments checked, the same for every device.
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>

#include "check.h"
#include "edge_rows.h"

namespace race {

inline constexpr const char* kEdgeBasisSchemas[] = {
    // edge_vector [E, 3] -> x = r / r_max [E, 1], Y [E, S], S = (lmax + 1)^2
    "edge_basis(Tensor edge_vector, int lmax, float r_max) -> (Tensor, Tensor)",
    // adjoints of x [E, G, 1] and Y [E, G, S] -> adjoint of edge_vector [E, G, 3]
    "edge_basis_vjp(Tensor edge_vector, int lmax, float r_max, Tensor bar_x, Tensor bar_sh) "
    "-> Tensor",
    // its transpose: tangents of edge_vector [E, G, 3] -> tangents of x [E, G, 1] and Y [E, G, S]
    "edge_basis_jvp(Tensor edge_vector, int lmax, float r_max, Tensor tangent) -> (Tensor, Tensor)",
};

namespace edge_basis {

// Checks the arguments that every map has, and returns S.
inline int64_t check_edges(const char* op, const at::Tensor& edge_vector, int64_t lmax,
                           double r_max) {
  RACE_CHECK(op, edge_vector.dim() == 2 && edge_vector.size(1) == 3, "edge_vector", "[n_edges, 3]",
             edge_vector.sizes());
  RACE_CHECK(op,
             edge_vector.scalar_type() == at::kFloat || edge_vector.scalar_type() == at::kDouble,
             "edge_vector", "float32 or float64", edge_vector.scalar_type());
  RACE_CHECK(op, lmax >= 0 && lmax <= 3, "lmax", "0 to 3", lmax);
  RACE_CHECK(op, r_max > 0, "r_max", "a positive length", r_max);
  return (lmax + 1) * (lmax + 1);
}

// Checks for the shape [n_edges, n_groups, width] and the edge vectors' type.
inline void check_rows(const char* op, const char* name, const at::Tensor& rows,
                       const at::Tensor& edge_vector, int64_t n_groups, int64_t width) {
  RACE_CHECK(op,
             rows.dim() == 3 && rows.size(0) == edge_vector.size(0) &&
                 (n_groups < 0 || rows.size(1) == n_groups) && rows.size(2) == width,
             name,
             c10::str("[", edge_vector.size(0), ", ",
                      n_groups < 0 ? "n_groups" : std::to_string(n_groups), ", ", width, "]"),
             rows.sizes());
  RACE_CHECK(op, rows.scalar_type() == edge_vector.scalar_type(), name, edge_vector.scalar_type(),
             rows.scalar_type());
}

inline int64_t check_values(const at::Tensor& edge_vector, int64_t lmax, double r_max) {
  return check_edges("edge_basis", edge_vector, lmax, r_max);
}

inline int64_t check_vjp(const at::Tensor& edge_vector, int64_t lmax, double r_max,
                         const at::Tensor& bar_x, const at::Tensor& bar_sh) {
  const int64_t S = check_edges("edge_basis_vjp", edge_vector, lmax, r_max);
  check_rows("edge_basis_vjp", "bar_x", bar_x, edge_vector, -1, 1);
  check_rows("edge_basis_vjp", "bar_sh", bar_sh, edge_vector, bar_x.size(1), S);
  return S;
}

inline int64_t check_jvp(const at::Tensor& edge_vector, int64_t lmax, double r_max,
                         const at::Tensor& tangent) {
  const int64_t S = check_edges("edge_basis_jvp", edge_vector, lmax, r_max);
  check_rows("edge_basis_jvp", "tangent", tangent, edge_vector, -1, 3);
  return S;
}

// A new tensor [E, G, width].
inline at::Tensor rows_like(const at::Tensor& edge_vector, int64_t n_groups, int64_t width) {
  return at::empty({edge_vector.size(0), n_groups, width}, edge_vector.options());
}

}  // namespace edge_basis
}  // namespace race
