#include "graph.h"

#include <list>

#include <ATen/ops/arange.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/searchsorted.h>
#include <ATen/ops/sort.h>
#include <ATen/ops/zeros.h>
#include <c10/cuda/CUDAException.h>

#include "../src/check.h"
#include "kernels.h"
#include "remembered.h"

namespace race::cuda {
namespace {

constexpr size_t kGraphs = 4;  // graphs of one rank: the step's, and a few for code that alternates
constexpr size_t kCoefficients = 256;

struct KeptGraph {
  Remembered sender, row_ptr;
  int64_t n_nodes;
  cudaStream_t stream;  // its stream: another one would have to wait for it
  std::shared_ptr<const Graph> graph;
};

struct KeptCoefficients {
  Remembered source;
  at::ScalarType dtype;
  at::Tensor cast;
};

}  // namespace

Graph::Graph(const at::Tensor& sender_in, const at::Tensor& row_ptr_in, int64_t n_nodes,
             cudaStream_t stream)
    : sender(sender_in.contiguous()
                 .detach()),  // another object: the end of the caller's own tensor is then seen
      row_ptr(row_ptr_in.contiguous().detach()),
      n_nodes_(n_nodes),
      receiver_(at::empty_like(sender)) {
  const int64_t n_edges = sender.size(0), n_receivers = row_ptr.size(0) - 1;
  RACE_CHECK("conv", n_receivers > 0 || n_edges == 0, "row_ptr",
             c10::str("to run from 0 to ", n_edges), "no receivers");
  const at::Tensor fault = at::zeros({3}, sender.options());
  C10_CUDA_CHECK(launch_receivers(
      row_ptr.const_data_ptr<int64_t>(), sender.const_data_ptr<int64_t>(), n_receivers, n_edges,
      n_nodes, receiver_.mutable_data_ptr<int64_t>(), fault.mutable_data_ptr<int64_t>(), stream));
  const at::Tensor host = fault.cpu();
  const int64_t* found = host.const_data_ptr<int64_t>();
  RACE_CHECK("conv", found[0] != 1, "row_ptr",
             c10::str("to run from 0 to ", n_edges, ", non-decreasing"), found[2], " at ",
             found[1] + 1);
  RACE_CHECK("conv", found[0] != 2, "sender", c10::str("[0, ", n_nodes, ")"), found[2], " at edge ",
             found[1]);
}

const Transposed& Graph::transposed() const {
  std::call_once(sorted_, [this] {
    const auto [key, order] =
        at::sort(sender.to(at::kInt), /*stable=*/true, 0, /*descending=*/false);
    const at::Tensor nodes = at::arange(n_nodes_ + 1, key.options());
    transposed_ = {at::searchsorted(key, nodes), order, receiver_.index_select(0, order)};
  });
  return transposed_;
}

std::shared_ptr<const Graph> graph_for(const at::Tensor& sender, const at::Tensor& row_ptr,
                                       int64_t n_nodes, cudaStream_t stream) {
  RACE_CHECK("conv", n_nodes <= INT32_MAX, "g", c10::str("at most ", INT32_MAX, " nodes"), n_nodes);
  if (sender.is_inference() || row_ptr.is_inference())
    return std::make_shared<Graph>(sender, row_ptr, n_nodes, stream);  // inference tensors have no
                                                                       // versions
  static std::mutex mutex;
  static auto& kept =
      *new std::list<KeptGraph>;  // never destroyed: at the process's end CUDA may be gone
  const std::lock_guard lock(mutex);
  kept.remove_if([](const KeptGraph& k) { return k.sender.gone() || k.row_ptr.gone(); });
  for (auto k = kept.begin(); k != kept.end(); ++k)
    if (k->n_nodes == n_nodes && k->stream == stream && k->sender.is(sender) &&
        k->row_ptr.is(row_ptr)) {
      kept.splice(kept.begin(), kept, k);
      return k->graph;
    }
  auto graph = std::make_shared<Graph>(sender, row_ptr, n_nodes, stream);
  kept.push_front({Remembered(sender), Remembered(row_ptr), n_nodes, stream, graph});
  if (kept.size() > kGraphs) kept.pop_back();
  return graph;
}

at::Tensor coefficients_for(const at::Tensor& cg, at::ScalarType dtype) {
  if (cg.is_inference()) return cg.to(dtype).contiguous();
  static std::mutex mutex;
  static auto& kept = *new std::list<KeptCoefficients>;
  const std::lock_guard lock(mutex);
  kept.remove_if([](const KeptCoefficients& k) { return k.source.gone(); });
  for (auto k = kept.begin(); k != kept.end(); ++k)
    if (k->dtype == dtype && k->source.is(cg)) {
      kept.splice(kept.begin(), kept, k);
      return k->cast;
    }
  at::Tensor cast = cg.detach().to(dtype).contiguous().clone();
  kept.push_front({Remembered(cg), dtype, cast});
  if (kept.size() > kCoefficients) kept.pop_back();
  return cast;
}

}  // namespace race::cuda
