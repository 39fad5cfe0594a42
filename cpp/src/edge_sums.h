#pragma once
// race::edge_sums: forces and virials from the gradients of edges, summed in a fixed order.
//
//   grad         [E, G, 3]  dE/d edge_vector of each group, float32 or float64
//   edge_vector  [E, 3]     float64, r_sender - r_receiver, Angstrom
//   sender       int64 [E]  rows of the domain
//   row_ptr      int64 [n + 1]  CSR, from 0: the receivers are rows begin .. begin + n
//   to_sender    share of an edge's virial that atom virials have at its sender
//   forces       float64 [n_total, G, 3]: += grad at the receiver, -= grad at the sender
//   virial       float64 [G, 9], row-major: -= edge_vector_a grad_b
//   atom_virial  float64 [n_total, 9] or none: the same, mean over groups, shared out to both ends
#include <optional>

#include <ATen/core/Tensor.h>

#include "check.h"

namespace race {

inline constexpr const char* kEdgeSumsSchema =
    "edge_sums(Tensor grad, Tensor edge_vector, Tensor sender, Tensor row_ptr, int begin, "
    "float to_sender, Tensor(a!) forces, Tensor(b!) virial, Tensor(c!)? atom_virial) -> ()";

using EdgeSumsFunction = void(const at::Tensor& grad, const at::Tensor& edge_vector,
                              const at::Tensor& sender, const at::Tensor& row_ptr, int64_t begin,
                              double to_sender, const at::Tensor& forces, const at::Tensor& virial,
                              const std::optional<at::Tensor>& atom_virial);

namespace edge_sums {

inline void check(const at::Tensor& grad, const at::Tensor& edge_vector, const at::Tensor& sender,
                  const at::Tensor& row_ptr, int64_t begin, const at::Tensor& forces,
                  const at::Tensor& virial, const std::optional<at::Tensor>& atom_virial) {
  const auto expect = [&](const char* name, const at::Tensor& t, at::ScalarType dtype,
                          c10::IntArrayRef sizes) {
    RACE_CHECK("edge_sums",
               t.scalar_type() == dtype && t.sizes() == sizes && t.device() == grad.device() &&
                   t.is_contiguous(),
               name, c10::str("contiguous ", dtype, " ", sizes, " on ", grad.device()),
               t.scalar_type(), " ", t.sizes(), " with strides ", t.strides(), " on ", t.device());
  };
  RACE_CHECK("edge_sums",
             grad.dim() == 3 && grad.size(2) == 3 &&
                 (grad.scalar_type() == at::kFloat || grad.scalar_type() == at::kDouble),
             "grad", "float32 or float64 [n_edges, n_groups, 3]", grad.scalar_type(), " ",
             grad.sizes());
  RACE_CHECK("edge_sums", forces.dim() == 3, "forces", "[n_total, n_groups, 3]", forces.sizes());
  const int64_t E = grad.size(0), G = grad.size(1), n_total = forces.size(0),
                n = row_ptr.dim() == 1 ? row_ptr.size(0) - 1 : -1;
  RACE_CHECK("edge_sums", begin >= 0 && n >= 0 && begin + n <= n_total, "row_ptr",
             c10::str("receivers inside ", n_total, " rows"), row_ptr.sizes(), " from row ", begin);
  expect("edge_vector", edge_vector, at::kDouble, {E, 3});
  expect("sender", sender, at::kLong, {E});
  expect("row_ptr", row_ptr, at::kLong, {n + 1});
  expect("forces", forces, at::kDouble, {n_total, G, 3});
  expect("virial", virial, at::kDouble, {G, 9});
  if (atom_virial) expect("atom_virial", *atom_virial, at::kDouble, {n_total, 9});
}

}  // namespace edge_sums
}  // namespace race
