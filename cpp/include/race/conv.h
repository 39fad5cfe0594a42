#pragma once
// The fused convolution race::conv, with its first and second derivatives race::conv_backward and
// race::conv_double_backward. conv and conv_backward are differentiable.
//
//   out[j, l3 m3, m, out_column + c] = sum_{e -> j} R[m, e, weight_offset + c]
//                          sum_{m1 m2} cg[m1, m2, m3] g[sender_e, l1 m1, m, c] sh[e, m2]
//
//   g        [n_nodes, dim_in]
//            features of the senders; float32 or float64, like radial, table and sh
//   radial   [M, E, K] the radial weights R; or with a table
//            [E, G]    x = r / r_max, from which R is interpolated where it is used and never
//            stored
//   table    [M, N, K] coefficients of K radial functions, quintic splines on N - 5 equal intervals
//            of 0 <= x < 1: in interval i, R = sum_a table[i + a] B_a, B the six B-splines there.
//            From x = 1 on R = 0
//   sh       [E, G, S]
//            spherical harmonics, block l at l^2; the first is a constant, its gradient is zero
//   sender   int64 [E]
//            row of g that each edge reads
//   row_ptr  int64 [n_receivers + 1]
//            edges are sorted by receiver
//   paths    rows of ten integers (l1, l2, l3, mul, in_offset, out_offset, out_mul, out_column,
//            weight_offset, cg_offset): reads g[:, in_offset:] as [2l1+1, M, mul], writes columns
//            out_column .. of out[:, out_offset:] as [2l3+1, M, out_mul], weights
//            R[:, :, weight_offset:]; degrees up to 3
//   cg       float64
//            [2l1+1, 2l2+1, 2l3+1] of every path from its cg_offset, normalisation included
//   result   [n_receivers, dim_out]
//
// The group axis: G = 1, or G = M holding the *same* values in every group (an expand, never
// materialised; group 0 is read). With G = M, each member has its own gradients with respect to x
// and sh; with G = 1 they are summed over members.
//
// Layouts are those of race/conventions.h. An argument error is a c10::Error that names the
// argument, the expected and the received value.
#include <array>

#include <ATen/core/Tensor.h>
#include <c10/util/ArrayRef.h>

namespace race {

// The schemas are part of the artifact format: exported artifacts call these operators.
constexpr const char* kConvSchemas[] = {
    "conv(Tensor g, Tensor radial, Tensor? table, Tensor sh, Tensor sender, Tensor row_ptr, "
    "int[] paths, Tensor cg, int dim_out) -> Tensor",
    "conv_backward(Tensor grad, Tensor g, Tensor radial, Tensor? table, Tensor sh, Tensor sender, "
    "Tensor row_ptr, int[] paths, Tensor cg, bool[4] mask) -> (Tensor, Tensor, Tensor, Tensor)",
    "conv_double_backward(Tensor? bar_g, Tensor? bar_radial, Tensor? bar_sh, Tensor grad, Tensor "
    "g, Tensor radial, Tensor? table, Tensor sh, Tensor sender, Tensor row_ptr, int[] paths, "
    "Tensor cg, bool[5] mask) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
};

struct ConvOperands {
  at::Tensor g, radial, table, sh, sender, row_ptr;  // table is undefined if there is none
  c10::IntArrayRef paths;
  at::Tensor cg;
};

// Cotangents of conv_backward's adjoints of g, radial and sh; an undefined one is zero.
struct ConvBars {
  at::Tensor g, radial, sh;
};

at::Tensor conv_cpu(const ConvOperands& operands, int64_t dim_out);

// Adjoints of (g, radial, table, sh) for a cotangent of the result; undefined if not in `mask`.
std::array<at::Tensor, 4> conv_backward_cpu(const at::Tensor& grad, const ConvOperands& operands,
                                            std::array<bool, 4> mask);

// Adjoints of (grad, g, radial, table, sh) of conv_backward. Its adjoint of the table has no
// derivative: no training here differentiates gradients of weights.
std::array<at::Tensor, 5> conv_double_backward_cpu(const ConvBars& bars, const at::Tensor& grad,
                                                   const ConvOperands& operands,
                                                   std::array<bool, 5> mask);

// The instruction set in use: "avx512", "avx2" or "baseline". The environment variable RACE_ISA
// requests a lower one.
const char* conv_isa();

}  // namespace race
