#pragma once
// Data that the kernels need of a graph beside sender and row_ptr. All layers of a model, forward
// and backward, share one graph, so it is checked and sorted once per step.
#include <memory>
#include <mutex>

#include <ATen/core/Tensor.h>
#include <cuda_runtime.h>

namespace race::cuda {

// Edges sorted by sender: those of node i are order[row_ptr[i]] .. order[row_ptr[i + 1]], in their
// original order.
struct BySender {
  at::Tensor row_ptr;   // int64 [n_nodes + 1]
  at::Tensor order;     // int64 [E]
  at::Tensor receiver;  // int64 [E], the receiver of edge order[k]
};

// The edges of a graph, sorted by receiver and, when asked, by sender.
class SortedEdges {
 public:
  // Checks the graph, and waits for the device to do so.
  SortedEdges(const at::Tensor& sender, const at::Tensor& row_ptr, int64_t n_nodes,
              cudaStream_t stream);
  const BySender& by_sender() const;

  const at::Tensor sender, row_ptr;  // contiguous

 private:
  const int64_t n_nodes_;
  at::Tensor receiver_;
  mutable std::once_flag sorted_;
  mutable BySender by_sender_;
};

// Returns one object for the same tensors, while these live and nobody writes to them. Thread safe.
std::shared_ptr<const SortedEdges> edges_for(const at::Tensor& sender, const at::Tensor& row_ptr,
                                             int64_t n_nodes, cudaStream_t stream);

}  // namespace race::cuda
