#pragma once
// race::conv and its derivatives on CUDA tensors; arguments, results and errors are those of
// race/conv.h. They use the current stream. They wait for the device once per graph (for its
// check), not per call. The table's adjoint takes up to RACE_CUDA_SCRATCH_MB (environment; default
// 1024) megabytes of scratch, or several passes if it needs more.
#include "race/conv.h"

namespace race {

at::Tensor conv_cuda(const ConvOperands& operands, int64_t dim_out);

std::array<at::Tensor, 4> conv_backward_cuda(const at::Tensor& grad, const ConvOperands& operands,
                                             std::array<bool, 4> mask);

std::array<at::Tensor, 5> conv_double_backward_cuda(const ConvBars& bars, const at::Tensor& grad,
                                                    const ConvOperands& operands,
                                                    std::array<bool, 5> mask);

}  // namespace race
