#include "edge_forces.h"

#include <ATen/Dispatch.h>

namespace race {
namespace {

/// Rows [E, ...], sorted by segment, -> [n, ...]; segment k ends where k + 1 begins, offsets [n + 1].
at::Tensor segment_sum(const at::Tensor& rows, const at::Tensor& offsets) {
  return at::segment_reduce(rows, "sum", std::nullopt, std::nullopt, offsets, /*axis=*/0, /*unsafe=*/true, 0.0);
}

/// On a device only the sums travel, not the edges: 24 G bytes of each would take longer than the network. Sums of segments have an
/// order, sums by index on a GPU have none.
void accumulate_on_device(const Graph& graph, const at::Tensor& edge_grad, bool atom_virial, Prediction& prediction) {
  const at::Tensor grad = edge_grad.to(at::kDouble), vector = graph.edge_vector;
  const int64_t G = grad.size(1), n_ghosts = graph.n_total - graph.n_owned;
  const auto [sender, order] = at::sort(graph.sender, /*stable=*/true, 0, /*descending=*/false);
  const at::Tensor from = at::searchsorted(sender, at::arange(graph.n_total + 1, sender.options()));
  const auto to_host = [](const at::Tensor& tensor) { return tensor.to(at::kCPU).contiguous(); };
  const auto with_ghosts = [&](const at::Tensor& owned) { return at::cat({owned, owned.new_zeros({n_ghosts, owned.size(1)})}); };

  const at::Tensor flat = grad.reshape({-1, 3 * G});
  prediction.forces = to_host(with_ghosts(segment_sum(flat, graph.row_ptr)) - segment_sum(flat.index_select(0, order), from)).view({-1, G, 3});
  prediction.virial = to_host(-at::matmul(vector.t(), flat).view({3, G, 3}).transpose(0, 1)).reshape({G, 9});
  if (!atom_virial) return;
  const at::Tensor half = (vector.unsqueeze(2) * grad.mean(1).unsqueeze(1)).mul_(-0.5).view({-1, 9});
  prediction.atom_virial = to_host(with_ghosts(segment_sum(half, graph.row_ptr)) + segment_sum(half.index_select(0, order), from));
}

// On the host, where every caller wants the result: one pass over the edges, in order, whatever the number of threads. What a receiver
// gets and the virial stay in registers along its edges.
template <class T>
void accumulate(const Graph& graph, const T* grad, int64_t G, Prediction& prediction) {
  const at::Tensor vector_host = graph.edge_vector.to(at::kCPU, at::kDouble).contiguous();
  const at::Tensor sender_host = graph.sender.to(at::kCPU).contiguous();
  const at::Tensor row_ptr_host = graph.row_ptr.to(at::kCPU).contiguous();
  const double* vector = vector_host.const_data_ptr<double>();
  const int64_t* sender = sender_host.const_data_ptr<int64_t>();
  const int64_t* row_ptr = row_ptr_host.const_data_ptr<int64_t>();
  double* forces = prediction.forces.data_ptr<double>();
  double* virial = prediction.virial.data_ptr<double>();
  double* virials = prediction.atom_virial.defined() ? prediction.atom_virial.data_ptr<double>() : nullptr;
  const double share = 0.5 / static_cast<double>(G);  // half to each end, mean over groups

  for (int64_t j = 0; j < graph.n_owned; ++j) {
    for (int64_t m = 0; m < G; ++m) {
      double to[3] = {}, of_receiver[9] = {};
      for (int64_t e = row_ptr[j]; e < row_ptr[j + 1]; ++e) {
        const double* r = vector + 3 * e;  // r_sender - r_receiver
        const T* g = grad + 3 * (G * e + m);
        const double dE[3] = {static_cast<double>(g[0]), static_cast<double>(g[1]), static_cast<double>(g[2])};
        double* from = forces + 3 * (G * sender[e] + m);
        for (int b = 0; b < 3; ++b) from[b] -= dE[b], to[b] += dE[b];
        for (int a = 0; a < 3; ++a)
          for (int b = 0; b < 3; ++b) of_receiver[3 * a + b] -= r[a] * dE[b];
        for (int k = 0; virials && k < 9; ++k) virials[9 * sender[e] + k] -= share * r[k / 3] * dE[k % 3];
      }
      for (int b = 0; b < 3; ++b) forces[3 * (G * j + m) + b] += to[b];
      for (int k = 0; k < 9; ++k) virial[9 * m + k] += of_receiver[k];
      for (int k = 0; virials && k < 9; ++k) virials[9 * j + k] += share * of_receiver[k];
    }
  }
}

}  // namespace

void accumulate_edges(const Graph& graph, const at::Tensor& edge_grad, bool atom_virial, Prediction& prediction) {
  if (!edge_grad.is_cpu()) return accumulate_on_device(graph, edge_grad, atom_virial, prediction);
  const at::Tensor grad = edge_grad.contiguous();
  const int64_t G = grad.size(1);
  const auto options = at::TensorOptions().dtype(at::kDouble);
  prediction.forces = at::zeros({graph.n_total, G, 3}, options);
  prediction.virial = at::zeros({G, 9}, options);
  if (atom_virial) prediction.atom_virial = at::zeros({graph.n_total, 9}, options);
  AT_DISPATCH_FLOATING_TYPES(grad.scalar_type(), "race::accumulate_edges",
                             [&] { accumulate(graph, grad.const_data_ptr<scalar_t>(), G, prediction); });
}

}  // namespace race
