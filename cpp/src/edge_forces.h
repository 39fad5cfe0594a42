#pragma once

#include "race/predict.h"

namespace race {

/// Consecutive owned rows and the edges that they receive; the whole domain, or a part of it.
struct Receivers {
  int64_t begin = 0, n = 0;  ///< owned rows [begin, begin + n)
  at::Tensor edge_vector;    ///< float64 [E, 3], of these edges only
  at::Tensor sender;         ///< int64 [E], rows of the domain
  at::Tensor row_ptr;        ///< int64 [n + 1], from 0
  double to_sender = 0.5;    ///< share of an edge's virial that atom virials have at its sender
};

/// Sets forces, virial and, if requested, atom virials of a domain to zero for accumulate_edges; on
/// `device`, that of the edges.
void start_forces(const Graph& graph, int64_t n_groups, bool atom_virial, at::Device device,
                  Prediction& prediction);

/// Adds the contributions of dE/d edge_vector to forces, virial and, if defined, atom virials (see
/// predict.h for shapes and signs). edge_grad: [E, G, 3], float32 or float64; all tensors are on
/// one device. Sums are in float64 and in a fixed order: the same bits at every call.
void accumulate_edges(const Receivers& receivers, const at::Tensor& edge_grad,
                      Prediction& prediction);

/// Adds the part that edges carry to heat_flux [G, 3]: -edge_vector (edge_grad . v_sender + power).
/// power [E, G] is the part of their senders' features, or undefined. velocity: float64 [n_total,
/// 3].
void accumulate_flux(const Receivers& receivers, const at::Tensor& edge_grad,
                     const at::Tensor& power, const at::Tensor& velocity, at::Tensor& heat_flux);

}  // namespace race
