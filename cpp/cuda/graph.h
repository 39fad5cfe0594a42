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
struct Transposed {
  at::Tensor row_ptr;   // int64 [n_nodes + 1]
  at::Tensor order;     // int64 [E]
  at::Tensor receiver;  // int64 [E], the receiver of edge order[k]
};

class Graph {
 public:
  // Checks the graph, and waits for the device to do so.
  Graph(const at::Tensor& sender, const at::Tensor& row_ptr, int64_t n_nodes, cudaStream_t stream);
  const Transposed& transposed() const;

  const at::Tensor sender, row_ptr;  // contiguous

 private:
  const int64_t n_nodes_;
  at::Tensor receiver_;
  mutable std::once_flag sorted_;
  mutable Transposed transposed_;
};

// Returns one graph for the same tensors, while these live and nobody writes to them. Thread safe.
std::shared_ptr<const Graph> graph_for(const at::Tensor& sender, const at::Tensor& row_ptr,
                                       int64_t n_nodes, cudaStream_t stream);

// cg [n], float64, cast to the type of the data, likewise remembered. (Another stream may read it
// too: it is made once, long before.)
at::Tensor coefficients_for(const at::Tensor& cg, at::ScalarType dtype);

}  // namespace race::cuda
