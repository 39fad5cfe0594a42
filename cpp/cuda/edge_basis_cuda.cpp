// race::edge_basis and its derivatives on CUDA tensors.
#include <ATen/Dispatch.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#include "../src/edge_basis.h"
#include "edge_basis_kernels.h"
#include "register.h"

namespace race::cuda {
namespace {

using at::Tensor;
using edge_basis::rows_like;

// Strides of [E, G, K].
template <class T>
EdgeRows<const T> rows_of(const Tensor& t) {
  return {t.const_data_ptr<T>(), t.stride(0), t.stride(1), t.stride(2)};
}
template <class T>
EdgeRows<T> results_of(const Tensor& t) {
  return {t.mutable_data_ptr<T>(), t.stride(0), t.stride(1), t.stride(2)};
}

// Launches a map, whose own operands set_operands(args) adds.
template <class SetOperands>
void run(EdgeMap map, const Tensor& edge_vector, int64_t lmax, double r_max, int64_t n_groups,
         const SetOperands& set_operands) {
  const c10::cuda::OptionalCUDAGuard guard(edge_vector.device());
  AT_DISPATCH_FLOATING_TYPES(edge_vector.scalar_type(), "race::edge_basis", [&] {
    EdgeBasis<scalar_t> args{};
    args.n_edges = edge_vector.size(0);
    args.n_groups = n_groups;
    args.per_r_max = static_cast<scalar_t>(1.0 / r_max);
    args.vector = rows_of<scalar_t>(edge_vector.unsqueeze(1));
    set_operands(args);
    C10_CUDA_CHECK(launch_edge_basis(map, lmax, args, c10::cuda::getCurrentCUDAStream()));
  });
}

std::tuple<Tensor, Tensor> values(const Tensor& edge_vector, int64_t lmax, double r_max) {
  const int64_t S = edge_basis::check_values(edge_vector, lmax, r_max);
  const Tensor x = rows_like(edge_vector, 1, 1), sh = rows_like(edge_vector, 1, S);
  run(EdgeMap::values, edge_vector, lmax, r_max, 1, [&]<class T>(EdgeBasis<T>& args) {
    args.x = results_of<T>(x);
    args.sh = results_of<T>(sh);
  });
  return {x.squeeze(1), sh.squeeze(1)};
}

Tensor vjp(const Tensor& edge_vector, int64_t lmax, double r_max, const Tensor& bar_x,
           const Tensor& bar_sh) {
  edge_basis::check_vjp(edge_vector, lmax, r_max, bar_x, bar_sh);
  const Tensor bar_vector = rows_like(edge_vector, bar_x.size(1), 3);
  run(EdgeMap::vjp, edge_vector, lmax, r_max, bar_x.size(1), [&]<class T>(EdgeBasis<T>& args) {
    args.bar_x = rows_of<T>(bar_x);
    args.bar_sh = rows_of<T>(bar_sh);
    args.bar_vector = results_of<T>(bar_vector);
  });
  return bar_vector;
}

std::tuple<Tensor, Tensor> jvp(const Tensor& edge_vector, int64_t lmax, double r_max,
                               const Tensor& tangent) {
  const int64_t S = edge_basis::check_jvp(edge_vector, lmax, r_max, tangent);
  const int64_t n_groups = tangent.size(1);
  const Tensor x = rows_like(edge_vector, n_groups, 1), sh = rows_like(edge_vector, n_groups, S);
  run(EdgeMap::jvp, edge_vector, lmax, r_max, n_groups, [&]<class T>(EdgeBasis<T>& args) {
    args.tangent = rows_of<T>(tangent);
    args.x = results_of<T>(x);
    args.sh = results_of<T>(sh);
  });
  return {x, sh};
}

const bool registered = register_kernels("race::edge_basis", [](torch::Library& library) {
  library.impl("edge_basis", TORCH_FN(values));
  library.impl("edge_basis_vjp", TORCH_FN(vjp));
  library.impl("edge_basis_jvp", TORCH_FN(jvp));
});

}  // namespace
}  // namespace race::cuda
