#pragma once
// race::edge_basis and its derivatives on CUDA tensors; arguments, results and errors are those of
// ../src/edge_basis.h.
#include <tuple>

#include <ATen/core/Tensor.h>

namespace race {

std::tuple<at::Tensor, at::Tensor> edge_basis_cuda(const at::Tensor& edge_vector, int64_t lmax,
                                                   double r_max);
at::Tensor edge_basis_vjp_cuda(const at::Tensor& edge_vector, int64_t lmax, double r_max,
                               const at::Tensor& bar_x, const at::Tensor& bar_sh);
std::tuple<at::Tensor, at::Tensor> edge_basis_jvp_cuda(const at::Tensor& edge_vector, int64_t lmax,
                                                       double r_max, const at::Tensor& tangent);

}  // namespace race
