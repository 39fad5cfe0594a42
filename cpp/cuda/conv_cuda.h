#pragma once
// race::conv and its derivatives on CUDA tensors; arguments, results and errors as in race/conv.h.
// The current stream is used, and the device waited for once per graph (its check), not per call.
// The table's adjoint takes scratch of up to RACE_CUDA_SCRATCH_MB (environment; default 1024)
// megabytes, else it is made in several passes.
#include <array>

#include <ATen/core/Tensor.h>
#include <c10/util/ArrayRef.h>

namespace race {

at::Tensor conv_cuda(const at::Tensor& g, const at::Tensor& radial, const at::Tensor& table,
                     const at::Tensor& sh, const at::Tensor& sender, const at::Tensor& row_ptr,
                     c10::IntArrayRef paths, const at::Tensor& cg, int64_t dim_out);

std::array<at::Tensor, 4> conv_backward_cuda(const at::Tensor& grad, const at::Tensor& g,
                                             const at::Tensor& radial, const at::Tensor& table,
                                             const at::Tensor& sh, const at::Tensor& sender,
                                             const at::Tensor& row_ptr, c10::IntArrayRef paths,
                                             const at::Tensor& cg, std::array<bool, 4> mask);

std::array<at::Tensor, 5> conv_double_backward_cuda(
    const at::Tensor& bar_g, const at::Tensor& bar_radial, const at::Tensor& bar_sh,
    const at::Tensor& grad, const at::Tensor& g, const at::Tensor& radial, const at::Tensor& table,
    const at::Tensor& sh, const at::Tensor& sender, const at::Tensor& row_ptr,
    c10::IntArrayRef paths, const at::Tensor& cg, std::array<bool, 5> mask);

}  // namespace race
