#include "gate_problem.h"

#include <cstring>

#include "check.h"

namespace race::gate {

using at::Tensor;

namespace {

constexpr size_t kFields = 4;
static_assert(sizeof(Block) == kFields * sizeof(int64_t));

}  // namespace

Problem::Problem(const GateOperands& o) : n_members(o.n_members) {
  RACE_CHECK("gate", o.u.dim() == 2, "u", "[n, dim]", o.u.sizes());
  RACE_CHECK("gate", o.u.scalar_type() == at::kFloat || o.u.scalar_type() == at::kDouble, "u",
             "float32 or float64", o.u.scalar_type());
  RACE_CHECK("gate", n_members >= 1, "n_members", "at least 1", n_members);
  n_atoms = o.u.size(0);
  dim = o.u.size(1);
  RACE_CHECK("gate", o.blocks.size() % kFields == 0 && o.blocks.size() <= kFields * kMaxBlocks,
             "blocks", c10::str("up to ", kMaxBlocks, " rows of ", kFields, " integers"),
             o.blocks.size(), " integers");
  blocks.resize(o.blocks.size() / kFields);
  if (!blocks.empty())
    std::memcpy(blocks.data(), o.blocks.data(), o.blocks.size() * sizeof(int64_t));
  n_gates = 0;
  int64_t covered = 0;
  for (const Block& b : blocks) {
    if (b.gate >= 0) n_gates += b.mul;
    covered += b.d * n_members * b.mul;
  }
  for (size_t k = 0; k < blocks.size(); ++k) {
    const Block& b = blocks[k];
    const auto where = [k](const char* field) { return c10::str("blocks row ", k, ", ", field); };
    RACE_CHECK("gate", b.d >= 1 && b.mul >= 1 && (b.gate >= 0 || b.d == 1), where("d mul"),
               "at least 1, and d = 1 without a gate", b.d, " ", b.mul);
    RACE_CHECK("gate", b.offset >= 0 && b.offset + b.d * n_members * b.mul <= dim, where("offset"),
               c10::str("a block of ", b.d * n_members * b.mul, " inside ", dim, " columns"),
               b.offset);
    RACE_CHECK("gate", b.gate < 0 || b.gate + b.mul <= n_gates, where("gate"),
               c10::str("0 to ", n_gates - b.mul, ", or -1"), b.gate);
  }
  RACE_CHECK("gate", covered == dim, "blocks", c10::str("to cover ", dim, " columns of u"),
             covered);
  RACE_CHECK(
      "gate",
      o.gates.dim() == 2 && o.gates.size(0) == n_atoms && o.gates.size(1) == n_members * n_gates &&
          o.gates.scalar_type() == o.u.scalar_type() && o.gates.device() == o.u.device(),
      "gates",
      c10::str(o.u.scalar_type(), " [", n_atoms, ", ", n_members * n_gates, "] on ", o.u.device()),
      o.gates.scalar_type(), " ", o.gates.sizes(), " on ", o.gates.device());
}

Problem::Problem(const Tensor& grad, const GateOperands& operands) : Problem(operands) {
  check_like("gate", "grad", grad, operands.u);
}

Problem::Problem(const GateBars& bars, const Tensor& grad, const GateOperands& operands)
    : Problem(grad, operands) {
  check_like("gate", "bar_u", bars.u, operands.u);
  check_like("gate", "bar_gates", bars.gates, operands.gates);
}

}  // namespace race::gate
