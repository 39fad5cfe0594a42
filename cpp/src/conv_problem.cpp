#include "conv_problem.h"

#include <algorithm>
#include <cstring>
#include <string>
#include <utility>

#include "../simd/conv_kernel.h"
#include "check.h"

namespace race::conv {
namespace {

using at::Tensor;

constexpr size_t kFields = 10;
static_assert(sizeof(Path) == kFields * sizeof(int64_t));

// "row p of paths, field"
std::string where(size_t p, const char* field) { return c10::str("paths row ", p, ", ", field); }

std::vector<Path> parse(const Problem& n, c10::IntArrayRef paths, int64_t n_cg) {
  RACE_CHECK("conv", paths.size() % kFields == 0, "paths", "rows of 10 integers", paths.size(),
             " integers");
  std::vector<Path> rows(paths.size() / kFields);
  for (size_t p = 0; p < rows.size(); ++p) {
    Path& r = rows[p];
    std::memcpy(&r, paths.data() + p * kFields, sizeof r);
    RACE_CHECK("conv", std::min({r.l1, r.l2, r.l3}) >= 0 && std::max({r.l1, r.l2, r.l3}) <= 3,
               where(p, "l1 l2 l3"), "0 to 3", r.l1, " ", r.l2, " ", r.l3);
    RACE_CHECK("conv", (r.l2 + 1) * (r.l2 + 1) <= n.n_sh, where(p, "l2"),
               c10::str("a block of sh's ", n.n_sh, " columns"), r.l2);
    RACE_CHECK(
        "conv",
        r.mul >= 1 && r.in_offset >= 0 && r.in_offset + r.d1() * n.n_members * r.mul <= n.dim_in,
        where(p, "in_offset, mul"), c10::str("a block inside g's ", n.dim_in, " columns"),
        r.in_offset, ", ", r.mul);
    RACE_CHECK("conv",
               r.out_offset >= 0 && r.out_offset + r.d3() * n.n_members * r.out_mul <= n.dim_out,
               where(p, "out_offset, out_mul"), c10::str("a block inside dim_out = ", n.dim_out),
               r.out_offset, ", ", r.out_mul);
    RACE_CHECK("conv", r.out_column >= 0 && r.out_column + r.mul <= r.out_mul,
               where(p, "out_column"), c10::str("0 to ", r.out_mul - r.mul), r.out_column);
    RACE_CHECK("conv", r.weight_offset >= 0 && r.weight_offset + r.mul <= n.n_weights,
               where(p, "weight_offset"), c10::str("0 to ", n.n_weights - r.mul), r.weight_offset);
    RACE_CHECK("conv", r.cg_offset >= 0 && r.cg_offset + r.d1() * r.d2() * r.d3() <= n_cg,
               where(p, "cg_offset"), c10::str("a table inside cg's ", n_cg), r.cg_offset);
  }
  return rows;
}

}  // namespace

Problem::Problem(const ConvOperands& operands, int64_t dim_out) : dim_out(dim_out) {
  const auto& [g, radial, table, sh, sender, row_ptr, path_rows, cg] = operands;
  RACE_CHECK("conv", g.dim() == 2, "g", "[n_nodes, dim_in]", g.sizes());
  RACE_CHECK("conv", g.scalar_type() == at::kFloat || g.scalar_type() == at::kDouble, "g",
             "float32 or float64", g.scalar_type());
  n_nodes = g.size(0);
  dim_in = g.size(1);
  RACE_CHECK("conv", sh.dim() == 3 && sh.size(2) <= kMaxSh, "sh",
             "[n_edges, 1 or n_members, (lmax + 1)^2 <= 16]", sh.sizes());
  n_edges = sh.size(0);
  n_groups = sh.size(1);
  n_sh = sh.size(2);
  if (table.defined()) {
    RACE_CHECK("conv", table.dim() == 3 && table.size(0) >= 1 && table.size(1) >= kRows, "table",
               "[n_members, n_rows >= 6, n_weights]", table.sizes());
    RACE_CHECK("conv", table.scalar_type() == g.scalar_type(), "table", g.scalar_type(),
               table.scalar_type());
    n_members = table.size(0);
    n_rows = table.size(1);
    n_weights = table.size(2);
    RACE_CHECK("conv", radial.dim() == 2 && radial.size(0) == n_edges && radial.size(1) == n_groups,
               "radial",
               c10::str("[", n_edges, ", ", n_groups, "], distances, as a table is given"),
               radial.sizes());
  } else {
    RACE_CHECK("conv", radial.dim() == 3 && radial.size(1) == n_edges, "radial",
               c10::str("[n_members, ", n_edges, ", n_weights]"), radial.sizes());
    n_members = radial.size(0);
    n_rows = 0;
    n_weights = radial.size(2);
    RACE_CHECK("conv", n_members >= 1, "radial", "at least one member", n_members);
  }
  RACE_CHECK("conv", radial.scalar_type() == g.scalar_type(), "radial", g.scalar_type(),
             radial.scalar_type());
  RACE_CHECK("conv", n_groups == 1 || n_groups == n_members, "sh",
             c10::str("[", n_edges, ", 1 or ", n_members, ", (lmax + 1)^2 <= 16]"), sh.sizes());
  RACE_CHECK("conv", sh.scalar_type() == g.scalar_type(), "sh", g.scalar_type(), sh.scalar_type());
  RACE_CHECK(
      "conv", sender.dim() == 1 && sender.size(0) == n_edges && sender.scalar_type() == at::kLong,
      "sender", c10::str("int64 [", n_edges, "]"), sender.scalar_type(), " ", sender.sizes());
  RACE_CHECK("conv",
             row_ptr.dim() == 1 && row_ptr.size(0) >= 1 && row_ptr.scalar_type() == at::kLong,
             "row_ptr", "int64 [n_receivers + 1]", row_ptr.scalar_type(), " ", row_ptr.sizes());
  RACE_CHECK("conv", cg.scalar_type() == at::kDouble && cg.dim() == 1, "cg",
             "float64, one dimension", cg.scalar_type(), " ", cg.sizes());
  const std::pair<const char*, const Tensor&> all[] = {{"radial", radial},   {"table", table},
                                                       {"sh", sh},           {"sender", sender},
                                                       {"row_ptr", row_ptr}, {"cg", cg}};
  for (const auto& [name, tensor] : all)
    RACE_CHECK("conv", !tensor.defined() || tensor.device() == g.device(), name, g.device(),
               tensor.device());
  n_receivers = row_ptr.size(0) - 1;
  paths = parse(*this, path_rows, cg.numel());
}

namespace {

// The width of the cotangent of the result, which is checked before it is used.
int64_t checked_width(const Tensor& grad, const ConvOperands& operands) {
  const Tensor &g = operands.g, &row_ptr = operands.row_ptr;
  const int64_t n_receivers = row_ptr.dim() == 1 ? row_ptr.size(0) - 1 : 0;
  RACE_CHECK("conv",
             grad.dim() == 2 && grad.size(0) == n_receivers &&
                 grad.scalar_type() == g.scalar_type() && grad.device() == g.device(),
             "grad", c10::str(g.scalar_type(), " [", n_receivers, ", dim_out] on ", g.device()),
             grad.scalar_type(), " ", grad.sizes(), " on ", grad.device());
  return grad.size(1);
}

void check_bar(const char* name, const Tensor& bar, const Tensor& like) {
  RACE_CHECK(
      "conv",
      !bar.defined() || (bar.sizes() == like.sizes() && bar.scalar_type() == like.scalar_type() &&
                         bar.device() == like.device()),
      name, c10::str(like.scalar_type(), " ", like.sizes(), " on ", like.device()),
      bar.scalar_type(), " ", bar.sizes(), " on ", bar.device());
}

}  // namespace

Problem::Problem(const Tensor& grad, const ConvOperands& operands)
    : Problem(operands, checked_width(grad, operands)) {}

Problem::Problem(const ConvBars& bars, const Tensor& grad, const ConvOperands& operands)
    : Problem(grad, operands) {
  check_bar("bar_g", bars.g, operands.g);
  check_bar("bar_radial", bars.radial, operands.radial);
  check_bar("bar_sh", bars.sh, operands.sh);
}

}  // namespace race::conv
