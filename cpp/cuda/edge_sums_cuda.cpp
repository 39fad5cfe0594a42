#include <algorithm>

#include <ATen/Dispatch.h>
#include <ATen/ops/empty.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#include "../src/edge_sums.h"
#include "edge_sums_kernels.h"
#include "register.h"
#include "sorted_edges.h"

namespace race::cuda {
namespace {

using at::Tensor;

constexpr int64_t kEdgesOfPart = 1024, kParts = 4096;  // parts of a virial's sum: enough to fill a
                                                       // device

// Without float atomics: the same bits at every call.
void sum_edges(const Tensor& grad_in, const Tensor& edge_vector, const Tensor& sender,
               const Tensor& row_ptr, int64_t begin, double to_sender, const Tensor& forces,
               const Tensor& virial, const std::optional<Tensor>& atom_virial) {
  edge_sums::check(grad_in, edge_vector, sender, row_ptr, begin, forces, virial, atom_virial);
  const c10::cuda::OptionalCUDAGuard guard(grad_in.device());
  const cudaStream_t stream = c10::cuda::getCurrentCUDAStream();
  const Tensor grad = grad_in.contiguous();
  const int64_t n_rows = forces.size(0), n_edges = grad.size(0), G = grad.size(1);
  // The edges are the convolution's: checked and sorted once for both.
  const auto edges = edges_for(sender, row_ptr, n_rows, stream);
  const BySender& sent = edges->by_sender();
  const int64_t n_parts = std::clamp<int64_t>(n_edges / kEdgesOfPart, 1, kParts);
  const Tensor parts = at::empty({n_parts, G, 9}, virial.options());
  AT_DISPATCH_FLOATING_TYPES(grad.scalar_type(), "race::edge_sums", [&] {
    const auto* g = grad.const_data_ptr<scalar_t>();
    const auto* vector = edge_vector.const_data_ptr<double>();
    const ForceSums<scalar_t> force_sums{
        .n_rows = n_rows,
        .n_groups = G,
        .begin = begin,
        .n_receivers = row_ptr.size(0) - 1,
        .grad = g,
        .edge_vector = vector,
        .row_ptr = row_ptr.const_data_ptr<int64_t>(),
        .sent_begin = sent.row_ptr.const_data_ptr<int64_t>(),
        .sent = sent.order.const_data_ptr<int64_t>(),
        .to_sender = to_sender,
        .forces = forces.mutable_data_ptr<double>(),
        .atom_virial = atom_virial ? atom_virial->mutable_data_ptr<double>() : nullptr};
    C10_CUDA_CHECK(launch_force_sums(force_sums, stream));
    const VirialSums<scalar_t> virial_sums{.n_edges = n_edges,
                                           .n_groups = G,
                                           .n_parts = n_parts,
                                           .grad = g,
                                           .edge_vector = vector,
                                           .parts = parts.mutable_data_ptr<double>()};
    C10_CUDA_CHECK(launch_virial_sums(virial_sums, stream));
  });
  virial.add_(n_parts == 1 ? parts.squeeze(0) : parts.sum(0));
}

const bool registered = register_kernels("race::edge_sums", [](torch::Library& library) {
  library.impl("edge_sums", TORCH_FN(sum_edges));
});

}  // namespace
}  // namespace race::cuda
