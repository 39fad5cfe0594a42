#include "sorted_edges.h"

#include <utility>

#include <ATen/ops/arange.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/searchsorted.h>
#include <ATen/ops/sort.h>
#include <ATen/ops/zeros.h>
#include <c10/cuda/CUDAException.h>

#include "../src/check.h"
#include "../src/recent.h"
#include "crossings.h"
#include "remembered.h"
#include "sorted_edges_kernels.h"

namespace race::cuda {
namespace {

constexpr size_t kKept = 4;  // graphs of one rank: the step's, and a few for code that alternates

struct Key {
  Remembered sender, row_ptr;
  int64_t n_nodes;
  cudaStream_t stream;  // that of the sorting: another one would have to wait for it

  bool gone() const { return sender.gone() || row_ptr.gone(); }
};

}  // namespace

// The tensors are detached, which makes other objects: the end of the caller's own is then seen.
SortedEdges::SortedEdges(const at::Tensor& sender_in, const at::Tensor& row_ptr_in, int64_t n_nodes,
                         cudaStream_t stream)
    : sender(sender_in.contiguous().detach()),
      row_ptr(row_ptr_in.contiguous().detach()),
      n_nodes_(n_nodes),
      receiver_(at::empty_like(sender)) {
  const int64_t n_edges = sender.size(0), n_receivers = row_ptr.size(0) - 1;
  RACE_CHECK("conv", n_receivers > 0 || n_edges == 0, "row_ptr",
             c10::str("to run from 0 to ", n_edges), "no receivers");
  const at::Tensor fault = at::zeros({3}, sender.options());
  const CsrEdges args{.row_ptr = row_ptr.const_data_ptr<int64_t>(),
                      .sender = sender.const_data_ptr<int64_t>(),
                      .n_receivers = n_receivers,
                      .n_edges = n_edges,
                      .n_nodes = n_nodes,
                      .receiver = receiver_.mutable_data_ptr<int64_t>(),
                      .fault = fault.mutable_data_ptr<int64_t>()};
  C10_CUDA_CHECK(launch_receivers(args, stream));
  const at::Tensor host = read_back(fault);
  const int64_t* found = host.const_data_ptr<int64_t>();
  RACE_CHECK("conv", found[0] != 1, "row_ptr",
             c10::str("to run from 0 to ", n_edges, ", non-decreasing"), found[2], " at ",
             found[1] + 1);
  RACE_CHECK("conv", found[0] != 2, "sender", c10::str("[0, ", n_nodes, ")"), found[2], " at edge ",
             found[1]);
}

const BySender& SortedEdges::by_sender() const {
  std::call_once(sorted_, [this] {
    const auto [key, order] =
        at::sort(sender.to(at::kInt), /*stable=*/true, 0, /*descending=*/false);
    const at::Tensor nodes = at::arange(n_nodes_ + 1, key.options());
    by_sender_ = {.row_ptr = at::searchsorted(key, nodes),
                  .order = order,
                  .receiver = receiver_.index_select(0, order)};
  });
  return by_sender_;
}

std::shared_ptr<const SortedEdges> edges_for(const at::Tensor& sender, const at::Tensor& row_ptr,
                                             int64_t n_nodes, cudaStream_t stream) {
  RACE_CHECK("conv", n_nodes <= INT32_MAX, "g", c10::str("at most ", INT32_MAX, " nodes"), n_nodes);
  const auto make = [&] {
    return std::make_shared<const SortedEdges>(sender, row_ptr, n_nodes, stream);
  };
  if (sender.is_inference() || row_ptr.is_inference()) return make();  // they have no versions
  static auto& graphs = *new Recent<Key, std::shared_ptr<const SortedEdges>>(kKept);
  return graphs.get(
      [&](const Key& key) {
        return key.n_nodes == n_nodes && key.stream == stream && key.sender.is(sender) &&
               key.row_ptr.is(row_ptr);
      },
      [&] {
        return std::pair{Key{Remembered(sender), Remembered(row_ptr), n_nodes, stream}, make()};
      });
}

}  // namespace race::cuda
