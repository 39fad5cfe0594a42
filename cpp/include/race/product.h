#pragma once
// Symmetric products of an atom's features with themselves, channel by channel: race::product. Its
// first and second derivatives are race::product_backward and race::product_double_backward.
// product and product_backward are differentiable.
//
//   P2[k, c] = sum_{p of order 2} weight[m, species_i, p, c] sum_ij cg_p[i, j, k] x[i, c] x[j, c]
//   P3[k, c] = sum_{p of order 3} weight[m, species_i, p, c] sum_ij cg_p[i, j, k] P2[i, c] x[j, c]
//   out      = x + P2 + P3                        for every atom, member m and channel c by itself
//
//   x        [n, D M C]    viewed [n, D, M, C]: D components (l, m) of irreps, which all have the
//            same C channels; float32 or float64, like weight
//   weight   [M, S, P, C]  used as it is: no normalisation is applied
//   species  int64 [n]     in [0, S)
//   paths    P rows of eight integers (order, l1, l2, l3, offset1, offset2, offset3, cg_offset):
//            couples components offset1 .. of x (order 2) or of P2 (order 3) with components
//            offset2 .. of x, to components offset3 .. of P2 or P3; degrees up to 3
//   cg       float64       [2l1+1, 2l2+1, 2l3+1] of every path from its cg_offset, normalisation
//            included
//   result   [n, D M C]
//
// An argument error is a c10::Error that names the argument, the expected and the received value.
#include <array>

#include <ATen/core/Tensor.h>
#include <c10/util/ArrayRef.h>

namespace race {

// The schemas are part of the artifact format: exported artifacts call these operators.
constexpr const char* kProductSchemas[] = {
    "product(Tensor x, Tensor weight, Tensor species, int[] paths, Tensor cg) -> Tensor",
    "product_backward(Tensor grad, Tensor x, Tensor weight, Tensor species, int[] paths, Tensor "
    "cg, bool[2] mask) -> (Tensor, Tensor)",
    "product_double_backward(Tensor? bar_x, Tensor? bar_weight, Tensor grad, Tensor x, Tensor "
    "weight, Tensor species, int[] paths, Tensor cg, bool[3] mask) -> (Tensor, Tensor, Tensor)",
};

struct ProductOperands {
  at::Tensor x, weight, species;
  c10::IntArrayRef paths;
  at::Tensor cg;
};

// Cotangents of product_backward's adjoints of x and weight; an undefined one is zero.
struct ProductBars {
  at::Tensor x, weight;
};

at::Tensor product_cpu(const ProductOperands& operands);

// Adjoints of (x, weight) for a cotangent of the result; undefined if not in `mask`.
std::array<at::Tensor, 2> product_backward_cpu(const at::Tensor& grad,
                                               const ProductOperands& operands,
                                               std::array<bool, 2> mask);

// Adjoints of (grad, x, weight) of product_backward.
std::array<at::Tensor, 3> product_double_backward_cpu(const ProductBars& bars,
                                                      const at::Tensor& grad,
                                                      const ProductOperands& operands,
                                                      std::array<bool, 3> mask);

}  // namespace race
