#pragma once
// race::conv and its derivatives on CUDA tensors; arguments, results and errors as in race/conv.h.
// The current stream is used, and the device waited for once per graph (its check), not per call.
// The table's adjoint takes scratch of up to RACE_CUDA_SCRATCH_MB (environment; default 1024)
// megabytes, else it is made in several passes.
#include "race/conv.h"

namespace race {

at::Tensor conv_cuda(const ConvOperands& operands, int64_t dim_out);

std::array<at::Tensor, 4> conv_backward_cuda(const at::Tensor& grad, const ConvOperands& operands,
                                             std::array<bool, 4> mask);

std::array<at::Tensor, 5> conv_double_backward_cuda(const ConvBars& bars, const at::Tensor& grad,
                                                    const ConvOperands& operands,
                                                    std::array<bool, 5> mask);

}  // namespace race
