#pragma once
// Linear maps of atoms' features, one after another: all linear maps of a deployed layer in one
// pass over its atoms. Registered as
//
//   race::chain(Tensor(a!)[] x, Tensor? rows, Tensor species, Tensor weight, int n_species,
//               int[] widths, int[] blocks) -> Tensor[]
//
//   x        [n, width] each     contiguous, float32 or float64: tensors 0 .. of the chain; those
//                                that a block writes are changed in place
//   widths                       widths of the new tensors, which follow those of x and are the
//                                result
//   rows     [S, sum of widths]  initial values of the new tensors for each species; none: zero
//   species  int64 [n]           in [0, n_species)
//   weight   [M, numel]          used as it is
//   blocks   rows of nine integers (from, to, d, mul_in, mul_out, in_offset, out_offset,
//            weight_offset, weight_step), applied in order:
//                tensor_to[i, out_offset:] += tensor_from[i, in_offset:] W[m, species_i]
//            viewed [d, M, mul_out] and [d, M, mul_in], with
//            weight[m, weight_offset + s weight_step:] viewed [mul_in, mul_out];
//            weight_step 0: one matrix for all species
//
// The chain has no derivative: a deployed model stores its transpose as another chain. An argument
// error is a c10::Error that names the argument, the expected and the received value.
#include <optional>
#include <vector>

#include <ATen/core/Tensor.h>
#include <c10/util/ArrayRef.h>

namespace race {

// Vectorised, with threads over atoms: the same bits on any number of threads.
std::vector<at::Tensor> chain_cpu(at::TensorList x, const std::optional<at::Tensor>& rows,
                                  const at::Tensor& species, const at::Tensor& weight,
                                  int64_t n_species, c10::IntArrayRef widths,
                                  c10::IntArrayRef blocks);

// The same map in operations of torch alone: for devices that have no kernel of their own.
std::vector<at::Tensor> chain_aten(at::TensorList x, const std::optional<at::Tensor>& rows,
                                   const at::Tensor& species, const at::Tensor& weight,
                                   int64_t n_species, c10::IntArrayRef widths,
                                   c10::IntArrayRef blocks);

}  // namespace race
