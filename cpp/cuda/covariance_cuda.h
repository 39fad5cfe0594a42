#pragma once
// The operators of ../src/covariance_ops.cpp on CUDA tensors.
#include <ATen/core/Tensor.h>

namespace race {

at::Tensor force_covariance_cuda(const at::Tensor& raw, const at::Tensor& basis,
                                 c10::string_view head, double sigma0, double jitter);
at::Tensor member_covariance_cuda(const at::Tensor& forces);
at::Tensor log_determinant_cuda(const at::Tensor& six);

}  // namespace race
