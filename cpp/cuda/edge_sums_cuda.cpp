#include "edge_sums_cuda.h"

#include <algorithm>

#include <ATen/Dispatch.h>
#include <ATen/ops/empty.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#include "edge_sums_kernels.h"
#include "graph.h"
#include "groups.h"

namespace race {
namespace {

using at::Tensor;
using namespace cuda;

constexpr int64_t kEdgesOfPart = 1024, kParts = 4096;  // parts of a virial's sum: enough to fill a
                                                       // device

}  // namespace

void edge_sums_cuda(const Tensor& grad_in, const Tensor& edge_vector, const Tensor& sender,
                    const Tensor& row_ptr, int64_t begin, double to_sender, const Tensor& forces,
                    const Tensor& virial, const std::optional<Tensor>& atom_virial) {
  edge_sums::check(grad_in, edge_vector, sender, row_ptr, begin, forces, virial, atom_virial);
  const c10::cuda::OptionalCUDAGuard guard(grad_in.device());
  const cudaStream_t stream = c10::cuda::getCurrentCUDAStream();
  const Tensor grad = grad_in.contiguous();
  const int64_t n_rows = forces.size(0), n_edges = grad.size(0), G = grad.size(1);
  // The graph is the convolution's: checked and sorted once for both.
  const auto graph = graph_for(sender, row_ptr, n_rows, stream);
  const Transposed& sent = graph->transposed();
  const int64_t n_parts = std::clamp<int64_t>(n_edges / kEdgesOfPart, 1, kParts);
  const Tensor parts = at::empty({n_parts, G, 9}, virial.options());
  AT_DISPATCH_FLOATING_TYPES(grad.scalar_type(), "race::edge_sums", [&] {
    const auto* g = grad.const_data_ptr<scalar_t>();
    const auto* vector = edge_vector.const_data_ptr<double>();
    C10_CUDA_CHECK(launch_force_sums(
        ForceSums<scalar_t>{
            n_rows, G, begin, row_ptr.size(0) - 1, g, vector, row_ptr.const_data_ptr<int64_t>(),
            sent.row_ptr.const_data_ptr<int64_t>(), sent.order.const_data_ptr<int64_t>(), to_sender,
            forces.mutable_data_ptr<double>(),
            atom_virial ? atom_virial->mutable_data_ptr<double>() : nullptr},
        stream));
    C10_CUDA_CHECK(launch_virial_sums(
        VirialSums<scalar_t>{n_edges, G, n_parts, g, vector, parts.mutable_data_ptr<double>()},
        stream));
  });
  virial.add_(n_parts == 1 ? parts.squeeze(0) : parts.sum(0));
}

void periodic_fold_cuda(const Tensor& rows, const Tensor& owner) {
  const c10::cuda::OptionalCUDAGuard guard(rows.device());
  const int64_t n_owned = rows.size(0) - owner.size(0);
  const auto ghosts = groups_for(owner, n_owned);
  AT_DISPATCH_FLOATING_TYPES(rows.scalar_type(), "race::periodic_fold", [&] {
    C10_CUDA_CHECK(launch_fold(
        Fold<scalar_t>{n_owned, rows.size(1), ghosts->begin.const_data_ptr<int64_t>(),
                       ghosts->order.const_data_ptr<int64_t>(), rows.mutable_data_ptr<scalar_t>()},
        c10::cuda::getCurrentCUDAStream()));
  });
}

}  // namespace race
