#include "edge_basis_cuda.h"

#include <ATen/Dispatch.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#include "../src/edge_basis.h"
#include "edge_basis_kernels.h"

namespace race {
namespace {

using at::Tensor;
using namespace cuda;
using edge_basis::rows_like;

// Strides of [E, G, K]; null for a tensor that the map does not have.
template <class T, class Pointer>
EdgeRows<T> rows_of(const Tensor& t, Pointer pointer) {
  if (!t.defined()) return {};
  return {pointer(t), t.stride(0), t.stride(1), t.stride(2)};
}

struct Arguments {
  Tensor bar_x, bar_sh, tangent, x, sh, bar_vector;
};

void run(EdgeMap map, const Tensor& edge_vector, int64_t lmax, double r_max, int64_t n_groups,
         const Arguments& a) {
  const c10::cuda::OptionalCUDAGuard guard(edge_vector.device());
  AT_DISPATCH_FLOATING_TYPES(edge_vector.scalar_type(), "race::edge_basis", [&] {
    const auto in = [](const Tensor& t) {
      return rows_of<const scalar_t>(t,
                                     [](const Tensor& u) { return u.const_data_ptr<scalar_t>(); });
    };
    const auto out = [](const Tensor& t) {
      return rows_of<scalar_t>(t, [](const Tensor& u) { return u.mutable_data_ptr<scalar_t>(); });
    };
    const EdgeBasis<scalar_t> job{edge_vector.size(0),
                                  n_groups,
                                  static_cast<scalar_t>(1.0 / r_max),
                                  in(edge_vector.unsqueeze(1)),
                                  in(a.bar_x),
                                  in(a.bar_sh),
                                  in(a.tangent),
                                  out(a.x),
                                  out(a.sh),
                                  out(a.bar_vector)};
    C10_CUDA_CHECK(launch_edge_basis(map, lmax, job, c10::cuda::getCurrentCUDAStream()));
  });
}

}  // namespace

std::tuple<Tensor, Tensor> edge_basis_cuda(const Tensor& edge_vector, int64_t lmax, double r_max) {
  const int64_t S = edge_basis::check("edge_basis", edge_vector, lmax, r_max);
  const Tensor x = rows_like(edge_vector, 1, 1), sh = rows_like(edge_vector, 1, S);
  run(EdgeMap::values, edge_vector, lmax, r_max, 1, {{}, {}, {}, x, sh, {}});
  return {x.squeeze(1), sh.squeeze(1)};
}

Tensor edge_basis_vjp_cuda(const Tensor& edge_vector, int64_t lmax, double r_max,
                           const Tensor& bar_x, const Tensor& bar_sh) {
  const int64_t S = edge_basis::check("edge_basis_vjp", edge_vector, lmax, r_max);
  edge_basis::check_rows("edge_basis_vjp", "bar_x", bar_x, edge_vector, -1, 1);
  edge_basis::check_rows("edge_basis_vjp", "bar_sh", bar_sh, edge_vector, bar_x.size(1), S);
  const Tensor bar_vector = rows_like(edge_vector, bar_x.size(1), 3);
  run(EdgeMap::vjp, edge_vector, lmax, r_max, bar_x.size(1),
      {bar_x, bar_sh, {}, {}, {}, bar_vector});
  return bar_vector;
}

std::tuple<Tensor, Tensor> edge_basis_jvp_cuda(const Tensor& edge_vector, int64_t lmax,
                                               double r_max, const Tensor& tangent) {
  const int64_t S = edge_basis::check("edge_basis_jvp", edge_vector, lmax, r_max);
  edge_basis::check_rows("edge_basis_jvp", "tangent", tangent, edge_vector, -1, 3);
  const Tensor x = rows_like(edge_vector, tangent.size(1), 1),
               sh = rows_like(edge_vector, tangent.size(1), S);
  run(EdgeMap::jvp, edge_vector, lmax, r_max, tangent.size(1), {{}, {}, tangent, x, sh, {}});
  return {x, sh};
}

}  // namespace race
