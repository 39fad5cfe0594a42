#pragma once
// race::linear, race::linear_backward and race::chain on CUDA tensors; arguments, results and
// errors are those of race/linear.h and race/chain.h. One differs, to avoid waiting for the device:
// rows of atoms whose species is outside [0, S) are NaN.
#include "race/chain.h"
#include "race/linear.h"

namespace race {

at::Tensor linear_cuda(const at::Tensor& x, const at::Tensor& weight, const OptionalTensor& species,
                       c10::IntArrayRef blocks, int64_t dim_out);
std::tuple<at::Tensor, at::Tensor> linear_backward_cuda(const at::Tensor& grad, const at::Tensor& x,
                                                        const at::Tensor& weight,
                                                        const OptionalTensor& species,
                                                        c10::IntArrayRef blocks,
                                                        std::array<bool, 2> mask);
std::vector<at::Tensor> chain_cuda(at::TensorList x, const std::optional<at::Tensor>& rows,
                                   const at::Tensor& species, const at::Tensor& weight,
                                   int64_t n_species, c10::IntArrayRef widths,
                                   c10::IntArrayRef blocks);

}  // namespace race
