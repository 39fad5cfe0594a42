#pragma once
// Radial weights by table, registered as torch operators:
//
//   race::radial_spline(Tensor x, Tensor table) -> Tensor
//   race::radial_spline_backward, race::radial_spline_double_backward: its derivatives
//
//   x      [E, G]        scaled distances r / r_max; G = 1, or G = M holding the *same* values in every group (an expand; group 0
//                        is read): the gradient is then each member's own
//   table  [M, N, 2, K]  value and d/dx of K radial functions at the knots x_n = n / (N - 1)
//   result [M, E, K]     cubic Hermite interpolation; beyond x = 1 the last knot's value
//
// Once differentiable in x, twice in the table and across (x, table): what training on forces needs. Forces follow from the
// same spline, so energies and forces agree exactly.
#include <array>
#include <tuple>

#include <ATen/core/Tensor.h>

namespace race {

at::Tensor radial_spline_cpu(const at::Tensor& x, const at::Tensor& table);

// Adjoints of (x, table) for a cotangent of the result.
std::tuple<at::Tensor, at::Tensor> radial_spline_backward_cpu(const at::Tensor& grad, const at::Tensor& x, const at::Tensor& table,
                                                              std::array<bool, 2> mask);

// Adjoints of (grad, table) of radial_spline_backward for the cotangent of its x adjoint.
std::tuple<at::Tensor, at::Tensor> radial_spline_double_backward_cpu(const at::Tensor& bar_x, const at::Tensor& grad, const at::Tensor& x,
                                                                     const at::Tensor& table, std::array<bool, 2> mask);

}  // namespace race
