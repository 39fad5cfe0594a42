#pragma once
// The readout of a deployed model: from a layer's hidden channels to energies and the channels of
// the heads, and back. None has a derivative: a deployed model runs without autograd. The schemas
// are part of the artifact format.
//
//   race::readout(Tensor z, Tensor tensor, Tensor weight, int n_scalars) -> Tensor
//
//   z       [n, T H]              hidden channels of T trunks, before their activation
//   tensor  [n, 5 T R Q]          viewed [n, 5, T, R, Q]: Q quadrupoles of R members per trunk
//   weight  [T, H, R n_scalars]
//   result  [n, R T, n_scalars + 5 Q]: silu(z) weight, then the quadrupoles, five components
//           each. Member r T + t reads trunk t
//
//   race::readout_vjp(Tensor bar_energy, Tensor weight, Tensor z) -> Tensor
//
//   bar_energy [n, R T], weight [R, T, H]: the adjoint of z from that of the energy (the first
//   scalar) of every member
//
//   race::node_energy(Tensor out, Tensor species, Tensor scale, Tensor shift) -> Tensor
//
//   out [n, M, K], scale and shift float64 [S]: float64 [n, M], shift + scale out[:, :, 0]
//
//   race::node_energy_vjp(Tensor species, Tensor scale, Tensor bar_energy, Tensor like) -> Tensor
//
//   bar_energy float64 [M]: the adjoint [n, M] of out[:, :, 0], in the dtype of `like`
//
// Rows of z and tensor may be columns of wider tensors. On CUDA, rows of atoms whose species is
// outside [0, S) are NaN.
#include <ATen/core/Tensor.h>

#include "check.h"

namespace race::readout {

constexpr const char* kSchemas[] = {
    "readout(Tensor z, Tensor tensor, Tensor weight, int n_scalars) -> Tensor",
    "readout_vjp(Tensor bar_energy, Tensor weight, Tensor z) -> Tensor",
    "node_energy(Tensor out, Tensor species, Tensor scale, Tensor shift) -> Tensor",
    "node_energy_vjp(Tensor species, Tensor scale, Tensor bar_energy, Tensor like) -> Tensor",
};

struct Sizes {
  int64_t n_atoms, n_trunks, n_hidden, n_readouts, n_scalars, n_quadrupoles;
  int64_t n_members() const { return n_trunks * n_readouts; }
  int64_t n_out() const { return n_scalars + 5 * n_quadrupoles; }
};

inline void check_rows(const char* op, const char* name, const at::Tensor& t, int64_t n,
                       int64_t width, const at::Tensor& like) {
  RACE_CHECK(op,
             t.dim() == 2 && t.size(0) == n && t.size(1) == width &&
                 t.scalar_type() == like.scalar_type() && t.device() == like.device(),
             name, c10::str(like.scalar_type(), " [", n, ", ", width, "] on ", like.device()),
             t.scalar_type(), " ", t.sizes(), " on ", t.device());
}

inline void check_weight(const char* op, const at::Tensor& weight) {
  RACE_CHECK(op,
             weight.dim() == 3 && weight.numel() > 0 &&
                 (weight.scalar_type() == at::kFloat || weight.scalar_type() == at::kDouble),
             "weight", "float32 or float64, three dimensions", weight.scalar_type(), " ",
             weight.sizes());
}

inline Sizes check(const at::Tensor& z, const at::Tensor& tensor, const at::Tensor& weight,
                   int64_t n_scalars) {
  check_weight("readout", weight);
  const int64_t T = weight.size(0), H = weight.size(1), n = z.size(0);
  RACE_CHECK("readout", n_scalars >= 1 && weight.size(2) % n_scalars == 0, "n_scalars",
             c10::str("a divisor of ", weight.size(2)), n_scalars);
  check_rows("readout", "z", z, n, T * H, weight);
  const int64_t R = weight.size(2) / n_scalars, five = 5 * T * R;
  RACE_CHECK("readout", tensor.dim() == 2 && tensor.size(1) % five == 0, "tensor",
             c10::str("[n, a multiple of ", five, "]"), tensor.sizes());
  check_rows("readout", "tensor", tensor, n, tensor.size(1), weight);
  return {n, T, H, R, n_scalars, tensor.size(1) / five};
}

inline Sizes check_vjp(const at::Tensor& bar_energy, const at::Tensor& weight,
                       const at::Tensor& z) {
  check_weight("readout_vjp", weight);
  const int64_t R = weight.size(0), T = weight.size(1), H = weight.size(2), n = z.size(0);
  check_rows("readout_vjp", "z", z, n, T * H, weight);
  check_rows("readout_vjp", "bar_energy", bar_energy, n, R * T, weight);
  return {n, T, H, R, 1, 0};
}

inline void check_species(const char* op, const at::Tensor& species, int64_t n) {
  RACE_CHECK(op, species.dim() == 1 && species.size(0) == n && species.scalar_type() == at::kLong,
             "species", c10::str("int64 [", n, "]"), species.scalar_type(), " ", species.sizes());
}

inline void check_doubles(const char* op, const char* name, const at::Tensor& t,
                          const at::Tensor& species) {
  RACE_CHECK(op, t.dim() == 1 && t.scalar_type() == at::kDouble && t.device() == species.device(),
             name, c10::str("float64, one dimension, on ", species.device()), t.scalar_type(), " ",
             t.sizes(), " on ", t.device());
}

inline void check_energy(const at::Tensor& out, const at::Tensor& species, const at::Tensor& scale,
                         const at::Tensor& shift) {
  RACE_CHECK("node_energy",
             out.dim() == 3 && out.size(2) >= 1 &&
                 (out.scalar_type() == at::kFloat || out.scalar_type() == at::kDouble),
             "out", "float32 or float64 [n, M, K]", out.scalar_type(), " ", out.sizes());
  check_species("node_energy", species, out.size(0));
  check_doubles("node_energy", "scale", scale, species);
  check_doubles("node_energy", "shift", shift, species);
  RACE_CHECK("node_energy", shift.sizes() == scale.sizes(), "shift", scale.sizes(), shift.sizes());
}

inline void check_energy_vjp(const at::Tensor& species, const at::Tensor& scale,
                             const at::Tensor& bar_energy) {
  check_species("node_energy_vjp", species, species.numel());
  check_doubles("node_energy_vjp", "scale", scale, species);
  check_doubles("node_energy_vjp", "bar_energy", bar_energy, species);
}

}  // namespace race::readout
