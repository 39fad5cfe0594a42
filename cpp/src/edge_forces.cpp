#include "edge_forces.h"

#include <ATen/Dispatch.h>

#include <algorithm>
#include <vector>

#include "../simd/simd.h"
#include "edge_sums.h"
#include "operators.h"

namespace race {
namespace {

/// Rows [E, ...], sorted by segment, -> [n, ...]; segment k ends at the beginning of k + 1, offsets
/// [n + 1].
at::Tensor segment_sum(const at::Tensor& rows, const at::Tensor& offsets) {
  return at::segment_reduce(rows, "sum", std::nullopt, std::nullopt, offsets, /*axis=*/0,
                            /*unsafe=*/true, 0.0);
}

/// The sums in operations of torch alone. Sums of segments have an order, sums by index on a GPU
/// have none.
void edge_sums_aten(const at::Tensor& edge_grad, const at::Tensor& vector, const at::Tensor& sender,
                    const at::Tensor& row_ptr, int64_t begin, double to_sender,
                    const at::Tensor& forces, const at::Tensor& virial,
                    const std::optional<at::Tensor>& atom_virial) {
  edge_sums::check(edge_grad, vector, sender, row_ptr, begin, forces, virial, atom_virial);
  const at::Tensor grad = edge_grad.to(at::kDouble);
  const int64_t G = grad.size(1), n_total = forces.size(0);
  const auto [sorted, order] = at::sort(sender, /*stable=*/true, 0, /*descending=*/false);
  const at::Tensor from = at::searchsorted(sorted, at::arange(n_total + 1, sorted.options()));
  // Adds to the rows of senders and of receivers: sums [n_total, ...]
  const auto add = [&](const at::Tensor& sums, const at::Tensor& edges, double at_sender,
                       double at_receiver) {
    at::Tensor rows = segment_sum(edges.index_select(0, order), from).mul_(at_sender);
    rows.narrow(0, begin, row_ptr.size(0) - 1).add_(segment_sum(edges, row_ptr), at_receiver);
    sums.add_(rows.view(sums.sizes()));
  };

  const at::Tensor flat = grad.reshape({-1, 3 * G});
  add(forces, flat, -1, 1);
  virial.sub_(at::matmul(vector.t(), flat).view({3, G, 3}).transpose(0, 1).reshape({G, 9}));
  if (atom_virial)
    add(*atom_virial, (vector.unsqueeze(2) * grad.mean(1).unsqueeze(1)).view({-1, 9}), -to_sender,
        to_sender - 1);
}

// The sums on the CPU: one pass over the edges, in order, whatever the number of threads.
struct Sums {
  const double* vector;  // [E, 3], r_sender - r_receiver
  const int64_t *sender, *row_ptr;
  int64_t begin, n, width;            // receivers; 3 G numbers per edge gradient
  double to_sender;                   // share of an edge's virial
  double *forces, *virial, *virials;  // [n_total, 3 G], [G, 9], [n_total, 9] or null
  double* scratch;  // [4, 3 G], for one receiver: its forces and the rows of its virials
};

// `known` is the width if it is known at compile time, else 0.
template <int known, class T>
RACE_INLINE void add_edges(const Sums& sums, const T* grad) {
  const int64_t W = known ? known : sums.width;
  const double groups = static_cast<double>(W) / 3;  // atom virials are means over them
  const double at_sender = sums.to_sender / groups, at_receiver = (1 - sums.to_sender) / groups;
  double* __restrict to = sums.scratch, * __restrict v0 = to + W, * __restrict v1 = v0 + W, * __restrict v2 = v1 + W;
  const double* rows[3] = {v0, v1, v2};
  for (int64_t k = 0; k < sums.n; ++k) {
    const int64_t j = sums.begin + k;
    std::fill_n(to, 4 * W, 0.0);
    for (int64_t e = sums.row_ptr[k]; e < sums.row_ptr[k + 1]; ++e) {
      const double x = sums.vector[3 * e], y = sums.vector[3 * e + 1], z = sums.vector[3 * e + 2];
      const T* __restrict g = grad + W * e;
      double* __restrict from = sums.forces + W * sums.sender[e];
      for (int64_t c = 0; c < W; ++c) {
        const double dE = static_cast<double>(g[c]);
        from[c] -= dE, to[c] += dE;
        v0[c] -= x * dE, v1[c] -= y * dE, v2[c] -= z * dE;
      }
      if (!sums.virials) continue;
      double dE[3] = {};
      for (int64_t c = 0; c < W; ++c) dE[c % 3] += static_cast<double>(g[c]);
      for (int c = 0; c < 9; ++c)
        sums.virials[9 * sums.sender[e] + c] -= at_sender * sums.vector[3 * e + c / 3] * dE[c % 3];
    }
    for (int64_t c = 0; c < W; ++c) sums.forces[W * j + c] += to[c];
    for (int64_t c = 0; c < W; ++c)
      for (int a = 0; a < 3; ++a) {
        sums.virial[c / 3 * 9 + 3 * a + c % 3] += rows[a][c];
        if (sums.virials) sums.virials[9 * j + 3 * a + c % 3] += at_receiver * rows[a][c];
      }
  }
}

RACE_EVERY_ISA void add(const Sums& sums, const float* grad) {
  sums.width == 3 ? add_edges<3>(sums, grad) : add_edges<0>(sums, grad);
}
RACE_EVERY_ISA void add(const Sums& sums, const double* grad) {
  sums.width == 3 ? add_edges<3>(sums, grad) : add_edges<0>(sums, grad);
}

void edge_sums_cpu(const at::Tensor& edge_grad, const at::Tensor& vector, const at::Tensor& sender,
                   const at::Tensor& row_ptr, int64_t begin, double to_sender,
                   const at::Tensor& forces, const at::Tensor& virial,
                   const std::optional<at::Tensor>& atom_virial) {
  edge_sums::check(edge_grad, vector, sender, row_ptr, begin, forces, virial, atom_virial);
  const at::Tensor grad = edge_grad.contiguous();
  std::vector<double> scratch(12 * grad.size(1));
  const Sums sums{.vector = vector.const_data_ptr<double>(),
                  .sender = sender.const_data_ptr<int64_t>(),
                  .row_ptr = row_ptr.const_data_ptr<int64_t>(),
                  .begin = begin,
                  .n = row_ptr.size(0) - 1,
                  .width = 3 * grad.size(1),
                  .to_sender = to_sender,
                  .forces = forces.data_ptr<double>(),
                  .virial = virial.data_ptr<double>(),
                  .virials = atom_virial ? atom_virial->data_ptr<double>() : nullptr,
                  .scratch = scratch.data()};
  AT_DISPATCH_FLOATING_TYPES(grad.scalar_type(), "race::edge_sums",
                             [&] { add(sums, grad.const_data_ptr<scalar_t>()); });
}

void edge_sums_meta(const at::Tensor& grad, const at::Tensor& vector, const at::Tensor& sender,
                    const at::Tensor& row_ptr, int64_t begin, double, const at::Tensor& forces,
                    const at::Tensor& virial, const std::optional<at::Tensor>& atom_virial) {
  edge_sums::check(grad, vector, sender, row_ptr, begin, forces, virial, atom_virial);
}

const bool registered =
    register_operators("race::edge_sums", __FILE__, __LINE__, [](torch::Library* library) {
      Operator(library, kEdgeSumsSchema)
          .cpu(TORCH_FN(edge_sums_cpu))
          .portable(TORCH_FN(edge_sums_aten))
          .meta(TORCH_FN(edge_sums_meta));
    });

}  // namespace

void start_forces(const Graph& graph, int64_t n_groups, bool atom_virial, at::Device device,
                  Prediction& prediction) {
  const int64_t of_forces = graph.n_total * n_groups * 3, of_virial = n_groups * 9,
                of_atoms = atom_virial ? graph.n_total * 9 : 0;
  const at::Tensor zero = at::zeros({of_forces + of_virial + of_atoms},
                                    at::TensorOptions().dtype(at::kDouble).device(device));
  prediction.forces = zero.narrow(0, 0, of_forces).view({graph.n_total, n_groups, 3});
  prediction.virial = zero.narrow(0, of_forces, of_virial).view({n_groups, 9});
  if (atom_virial)
    prediction.atom_virial =
        zero.narrow(0, of_forces + of_virial, of_atoms).view({graph.n_total, 9});
}

void accumulate_edges(const Receivers& receivers, const at::Tensor& edge_grad,
                      Prediction& prediction) {
  static const auto handle = find_operator<EdgeSumsFunction>("race::edge_sums");
  const auto& atoms = prediction.atom_virial;
  handle.call(edge_grad, receivers.edge_vector.contiguous(), receivers.sender.contiguous(),
              receivers.row_ptr.contiguous(), receivers.begin, receivers.to_sender,
              prediction.forces, prediction.virial,
              atoms.defined() ? std::optional(atoms) : std::nullopt);
}

void accumulate_flux(const Receivers& receivers, const at::Tensor& edge_grad,
                     const at::Tensor& power, const at::Tensor& velocity, at::Tensor& heat_flux) {
  const at::Tensor of_sender = velocity.index_select(0, receivers.sender).unsqueeze(1);
  at::Tensor carried = (edge_grad.to(at::kDouble) * of_sender).sum(2);  // [E, G]
  if (power.defined()) carried = carried + power;
  heat_flux.sub_(at::matmul(carried.t(), receivers.edge_vector));
}

}  // namespace race
