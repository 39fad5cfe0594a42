#pragma once
// The equivariant gate between layers: race::gate. Its first and second derivatives are
// race::gate_backward and race::gate_double_backward. gate and gate_backward are differentiable.
//
//   out[l m, c] = sigmoid_norm sigmoid(gates[gate(l) + c]) u[l m, c]
//   out[c]      = silu_norm silu(u[c])               blocks without a gate
//                                            for every atom and member by itself
//
//   u       [n, dim]  float32 or float64, like gates
//   gates   [n, M K]  viewed [n, M, K]: K is the sum of mul over the blocks that have gates
//   blocks  rows of four integers (d, mul, offset, gate): u[:, offset:] viewed [d, M, mul], with
//           gates[:, :, gate:] viewed [1, M, mul]; gate -1: none, and d is 1. Blocks do not
//           overlap and cover u
//   result  [n, dim]
//
// Rows of u and gates may lie apart: both may be columns of wider tensors. An argument error is a
// c10::Error that names the argument, the expected and the received value.
#include <array>

#include <ATen/core/Tensor.h>
#include <c10/util/ArrayRef.h>

namespace race {

// The schemas are part of the artifact format: exported artifacts call these operators.
constexpr const char* kGateSchemas[] = {
    "gate(Tensor u, Tensor gates, int[] blocks, int n_members, float silu_norm, float "
    "sigmoid_norm) -> Tensor",
    "gate_backward(Tensor grad, Tensor u, Tensor gates, int[] blocks, int n_members, float "
    "silu_norm, float sigmoid_norm) -> (Tensor, Tensor)",
    "gate_double_backward(Tensor? bar_u, Tensor? bar_gates, Tensor grad, Tensor u, Tensor gates, "
    "int[] blocks, int n_members, float silu_norm, float sigmoid_norm) -> (Tensor, Tensor, "
    "Tensor)",
};

struct GateOperands {
  at::Tensor u, gates;
  c10::IntArrayRef blocks;
  int64_t n_members;
  double silu_norm, sigmoid_norm;
};

// Cotangents of gate_backward's adjoints of u and gates; an undefined one is zero.
struct GateBars {
  at::Tensor u, gates;
};

at::Tensor gate_cpu(const GateOperands& operands);

// Adjoints of (u, gates) for a cotangent of the result.
std::array<at::Tensor, 2> gate_backward_cpu(const at::Tensor& grad, const GateOperands& operands);

// Adjoints of (grad, u, gates) of gate_backward. The first is the tangent of the result along the
// cotangents, whatever grad.
std::array<at::Tensor, 3> gate_double_backward_cpu(const GateBars& bars, const at::Tensor& grad,
                                                   const GateOperands& operands);

}  // namespace race
