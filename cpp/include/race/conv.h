#pragma once
// The fused convolution, registered as torch operators:
//
//   race::conv(Tensor g, Tensor radial, Tensor? table, Tensor sh, Tensor sender, Tensor row_ptr,
//   int[] paths, Tensor cg, int dim_out) -> Tensor race::conv_backward, race::conv_double_backward:
//   its first and second derivatives (differentiable: conv, conv_backward)
//
//   out[j, l3 m3, m, column + c] = sum_{e -> j} R[m, e, weight + c]
//                                  sum_{m1 m2} cg[m1, m2, m3] g[sender_e, l1 m1, m, c] sh[e, m2]
//
//   g        [n_nodes, dim_in]      features of the senders, float32 or float64 like radial, table
//   and sh radial   [M, E, K]              the radial weights R, without a table
//            [E, G]                 with one: x = r / r_max, from which R is interpolated where it
//            is used and never stored
//   table    [M, N, K]              coefficients of K radial functions, quintic splines on N - 5
//   equal intervals of 0 <= x < 1: with
//                                   x in interval i, R = sum_a table[i + a] B_a, B the six
//                                   B-splines there. R = 0 from x = 1 on
//   sh       [E, G, S]              spherical harmonics, block l at l^2; the first is a constant,
//   its gradient comes back as zero sender   int64 [E]              rows of g row_ptr  int64
//   [n_receivers+1]  edges are sorted by receiver paths    rows of ten integers   (l1, l2, l3, mul,
//   in_offset, out_offset, out_mul, out_column, weight_offset, cg_offset);
//                                   reads g[:, in_offset:] as [2l1+1, M, mul], writes columns
//                                   out_column.. of out[:, out_offset:] as [2l3+1, M, out_mul],
//                                   weights R[:, :, weight_offset:]; degrees up to 3
//   cg       float64                [2l1+1, 2l2+1, 2l3+1] of every path from its cg_offset,
//   normalisation included result   [n_receivers, dim_out]
//
// The group axis: G = 1, or G = M holding the *same* values in every group (an expand, never
// materialised; group 0 is read). The gradients with respect to x and sh are then each member's
// own; with G = 1 they are summed over members.
//
// Layouts as in race/conventions.h. Argument errors are c10::Error and name the argument, what was
// expected and what came.
#include <array>

#include <ATen/core/Tensor.h>
#include <c10/util/ArrayRef.h>

namespace race {

at::Tensor conv_cpu(const at::Tensor& g, const at::Tensor& radial, const at::Tensor& table,
                    const at::Tensor& sh, const at::Tensor& sender, const at::Tensor& row_ptr,
                    c10::IntArrayRef paths, const at::Tensor& cg, int64_t dim_out);

// Adjoints of (g, radial, table, sh) for a cotangent of the result; those not in `mask` come back
// undefined.
std::array<at::Tensor, 4> conv_backward_cpu(const at::Tensor& grad, const at::Tensor& g,
                                            const at::Tensor& radial, const at::Tensor& table,
                                            const at::Tensor& sh, const at::Tensor& sender,
                                            const at::Tensor& row_ptr, c10::IntArrayRef paths,
                                            const at::Tensor& cg, std::array<bool, 4> mask);

// Adjoints of (grad, g, radial, table, sh) of conv_backward for cotangents of its adjoints of g,
// radial and sh, each of which may be undefined. (Its adjoint of the table has no derivative:
// nothing here trains on gradients of weights.)
std::array<at::Tensor, 5> conv_double_backward_cpu(
    const at::Tensor& bar_g, const at::Tensor& bar_radial, const at::Tensor& bar_sh,
    const at::Tensor& grad, const at::Tensor& g, const at::Tensor& radial, const at::Tensor& table,
    const at::Tensor& sh, const at::Tensor& sender, const at::Tensor& row_ptr,
    c10::IntArrayRef paths, const at::Tensor& cg, std::array<bool, 5> mask);

// The instruction set in use: "avx512", "avx2" or "baseline". RACE_ISA in the environment asks for
// a lower one.
const char* conv_isa();

}  // namespace race
