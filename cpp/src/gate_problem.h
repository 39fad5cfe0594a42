#pragma once
// The checked and unpacked gate: the one object that every device starts with.
#include <vector>

#include "gate_block.h"
#include "race/gate.h"

namespace race::gate {

struct Problem {
  int64_t n_atoms, n_members, dim, n_gates;  // n_gates: K
  std::vector<Block> blocks;

  // The arguments of gate, of gate_backward and of gate_double_backward.
  explicit Problem(const GateOperands& operands);
  Problem(const at::Tensor& grad, const GateOperands& operands);
  Problem(const GateBars& bars, const at::Tensor& grad, const GateOperands& operands);
};

// The tensor, or a copy if the columns of its rows lie apart.
inline at::Tensor rows_of(const at::Tensor& t) {
  return t.size(1) <= 1 || t.stride(1) == 1 ? t : t.contiguous();
}

}  // namespace race::gate
