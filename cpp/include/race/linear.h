#pragma once
// Linear maps of flat features, one set of matrices per member and species, registered as torch
// operators:
//
//   race::linear(Tensor x, Tensor weight, Tensor? species, int[] blocks, int dim_out) -> Tensor
//   race::linear_backward(Tensor grad, Tensor x, Tensor weight, Tensor? species, int[] blocks,
//                         bool[2] mask) -> (Tensor, Tensor)
//
//   out[i, d, m, v] = sum_u x[i, d, m, u] weight[m, species_i, u, v]
//
//   x        [n, dim_in]    float32 or float64 like weight
//   weight   [M, S, numel]  used as it is: no normalisation is applied
//   species  int64 [n]      in [0, S); none: S = 1
//   blocks   rows of six integers (d, mul_in, mul_out, in_offset, out_offset, weight_offset): reads
//            x[:, in_offset:] viewed [d, M, mul_in], writes out[:, out_offset:] viewed
//            [d, M, mul_out], with weight[m, s, weight_offset:] viewed [mul_in, mul_out]. Several
//            blocks may read the same input or matrix, none may write the same column; columns that
//            no block writes are zero
//   result   [n, dim_out]
//
// linear_backward gives dx and dweight, undefined if not in `mask`. Both operators are
// differentiable any number of times: the map is bilinear, and its derivatives are made of the same
// two operators. An argument error is a c10::Error that names the argument, the expected and the
// received value.
#include <array>
#include <optional>
#include <tuple>

#include <ATen/core/Tensor.h>
#include <c10/util/ArrayRef.h>

namespace race {

using OptionalTensor = std::optional<at::Tensor>;

// Vectorised, with threads over atoms (dx, out) or matrix rows (dweight): the same bits on any
// number of threads.
at::Tensor linear_cpu(const at::Tensor& x, const at::Tensor& weight, const OptionalTensor& species,
                      c10::IntArrayRef blocks, int64_t dim_out);
std::tuple<at::Tensor, at::Tensor> linear_backward_cpu(const at::Tensor& grad, const at::Tensor& x,
                                                       const at::Tensor& weight,
                                                       const OptionalTensor& species,
                                                       c10::IntArrayRef blocks,
                                                       std::array<bool, 2> mask);

// The same map in operations of torch alone: for devices that have no kernel of their own.
at::Tensor linear_aten(const at::Tensor& x, const at::Tensor& weight, const OptionalTensor& species,
                       c10::IntArrayRef blocks, int64_t dim_out);
std::tuple<at::Tensor, at::Tensor> linear_backward_aten(const at::Tensor& grad, const at::Tensor& x,
                                                        const at::Tensor& weight,
                                                        const OptionalTensor& species,
                                                        c10::IntArrayRef blocks,
                                                        std::array<bool, 2> mask);

// The instruction set in use, as conv_isa().
const char* linear_isa();

}  // namespace race
