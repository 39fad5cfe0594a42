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
void accumulate_on_device(const Receivers& receivers, const at::Tensor& edge_grad, Prediction& prediction) {
  const at::Tensor grad = edge_grad.to(at::kDouble), vector = receivers.edge_vector;
  const int64_t G = grad.size(1), n_total = prediction.forces.size(0);
  const auto [sender, order] = at::sort(receivers.sender, /*stable=*/true, 0, /*descending=*/false);
  const at::Tensor from = at::searchsorted(sender, at::arange(n_total + 1, sender.options()));
  const auto to_host = [](const at::Tensor& tensor) { return tensor.to(at::kCPU).contiguous(); };
  const auto add = [&](at::Tensor& sums, const at::Tensor& edges, double sign) {  // sums [n_total, ...]
    at::Tensor rows = segment_sum(edges.index_select(0, order), from).mul_(sign);
    rows.narrow(0, receivers.begin, receivers.n).add_(segment_sum(edges, receivers.row_ptr));
    sums.add_(rows.to(sums.device()).view(sums.sizes()));
  };

  const at::Tensor flat = grad.reshape({-1, 3 * G});
  add(prediction.forces, flat, -1);
  prediction.virial.sub_(to_host(at::matmul(vector.t(), flat).view({3, G, 3}).transpose(0, 1)).reshape({G, 9}));
  if (!prediction.atom_virial.defined()) return;
  add(prediction.atom_virial, (vector.unsqueeze(2) * grad.mean(1).unsqueeze(1)).mul_(-0.5).view({-1, 9}), 1);
}

// On the host, where every caller wants the result: one pass over the edges, in order, whatever the number of threads. What a receiver
// gets and the virial stay in registers along its edges.
template <class T>
void accumulate(const Receivers& receivers, const T* grad, int64_t G, Prediction& prediction) {
  const at::Tensor vector_host = receivers.edge_vector.to(at::kCPU, at::kDouble).contiguous();
  const at::Tensor sender_host = receivers.sender.to(at::kCPU).contiguous();
  const at::Tensor row_ptr_host = receivers.row_ptr.to(at::kCPU).contiguous();
  const double* vector = vector_host.const_data_ptr<double>();
  const int64_t* sender = sender_host.const_data_ptr<int64_t>();
  const int64_t* row_ptr = row_ptr_host.const_data_ptr<int64_t>();
  double* forces = prediction.forces.data_ptr<double>();
  double* virial = prediction.virial.data_ptr<double>();
  double* virials = prediction.atom_virial.defined() ? prediction.atom_virial.data_ptr<double>() : nullptr;
  const double share = 0.5 / static_cast<double>(G);  // half to each end, mean over groups

  for (int64_t k = 0; k < receivers.n; ++k) {
    const int64_t j = receivers.begin + k;
    for (int64_t m = 0; m < G; ++m) {
      double to[3] = {}, of_receiver[9] = {};
      for (int64_t e = row_ptr[k]; e < row_ptr[k + 1]; ++e) {
        const double* r = vector + 3 * e;  // r_sender - r_receiver
        const T* g = grad + 3 * (G * e + m);
        const double dE[3] = {static_cast<double>(g[0]), static_cast<double>(g[1]), static_cast<double>(g[2])};
        double* from = forces + 3 * (G * sender[e] + m);
        for (int b = 0; b < 3; ++b) from[b] -= dE[b], to[b] += dE[b];
        for (int a = 0; a < 3; ++a)
          for (int b = 0; b < 3; ++b) of_receiver[3 * a + b] -= r[a] * dE[b];
        for (int c = 0; virials && c < 9; ++c) virials[9 * sender[e] + c] -= share * r[c / 3] * dE[c % 3];
      }
      for (int b = 0; b < 3; ++b) forces[3 * (G * j + m) + b] += to[b];
      for (int c = 0; c < 9; ++c) virial[9 * m + c] += of_receiver[c];
      for (int c = 0; virials && c < 9; ++c) virials[9 * j + c] += share * of_receiver[c];
    }
  }
}

}  // namespace

void start_forces(const Graph& graph, int64_t n_groups, bool atom_virial, at::Device device, Prediction& prediction) {
  const auto options = at::TensorOptions().dtype(at::kDouble).device(device);
  prediction.forces = at::zeros({graph.n_total, n_groups, 3}, options);
  prediction.virial = at::zeros({n_groups, 9}, at::kDouble);
  if (atom_virial) prediction.atom_virial = at::zeros({graph.n_total, 9}, options);
}

void accumulate_edges(const Receivers& receivers, const at::Tensor& edge_grad, Prediction& prediction) {
  if (!edge_grad.is_cpu()) return accumulate_on_device(receivers, edge_grad, prediction);
  const at::Tensor grad = edge_grad.contiguous();
  AT_DISPATCH_FLOATING_TYPES(grad.scalar_type(), "race::accumulate_edges",
                             [&] { accumulate(receivers, grad.const_data_ptr<scalar_t>(), grad.size(1), prediction); });
}

}  // namespace race
