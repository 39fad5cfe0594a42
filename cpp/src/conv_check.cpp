#include "conv_check.h"

#include <algorithm>
#include <utility>

#include "conv_kernel.h"

namespace race::conv {
namespace {

using at::Tensor;

constexpr size_t kFields = 10;

}  // namespace

Sizes check(const Tensor& g, const Tensor& radial, const Tensor& table, const Tensor& sh,
            const Tensor& sender, const Tensor& row_ptr, const Tensor& cg, int64_t dim_out) {
  RACE_CHECK(g.dim() == 2, "g", "[n_nodes, dim_in]", g.sizes());
  RACE_CHECK(g.scalar_type() == at::kFloat || g.scalar_type() == at::kDouble, "g",
             "float32 or float64", g.scalar_type());
  Sizes n{};
  n.nodes = g.size(0), n.dim_in = g.size(1), n.dim_out = dim_out;
  RACE_CHECK(sh.dim() == 3 && sh.size(2) <= kMaxSh, "sh",
             "[n_edges, 1 or n_members, (lmax + 1)^2 <= 16]", sh.sizes());
  n.edges = sh.size(0), n.groups = sh.size(1), n.sh = sh.size(2);
  if (table.defined()) {
    RACE_CHECK(table.dim() == 3 && table.size(0) >= 1 && table.size(1) >= kRows, "table",
               "[n_members, n_rows >= 6, n_weights]", table.sizes());
    RACE_CHECK(table.scalar_type() == g.scalar_type(), "table", g.scalar_type(),
               table.scalar_type());
    n.members = table.size(0), n.rows = table.size(1), n.weights = table.size(2);
    RACE_CHECK(radial.dim() == 2 && radial.size(0) == n.edges && radial.size(1) == n.groups,
               "radial",
               c10::str("[", n.edges, ", ", n.groups, "], distances, as a table is given"),
               radial.sizes());
  } else {
    RACE_CHECK(radial.dim() == 3 && radial.size(1) == n.edges, "radial",
               c10::str("[n_members, ", n.edges, ", n_weights]"), radial.sizes());
    n.members = radial.size(0), n.weights = radial.size(2);
    RACE_CHECK(n.members >= 1, "radial", "at least one member", n.members);
  }
  RACE_CHECK(radial.scalar_type() == g.scalar_type(), "radial", g.scalar_type(),
             radial.scalar_type());
  RACE_CHECK(n.groups == 1 || n.groups == n.members, "sh",
             c10::str("[", n.edges, ", 1 or ", n.members, ", (lmax + 1)^2 <= 16]"), sh.sizes());
  RACE_CHECK(sh.scalar_type() == g.scalar_type(), "sh", g.scalar_type(), sh.scalar_type());
  RACE_CHECK(sender.dim() == 1 && sender.size(0) == n.edges && sender.scalar_type() == at::kLong,
             "sender", c10::str("int64 [", n.edges, "]"), sender.scalar_type(), " ",
             sender.sizes());
  RACE_CHECK(row_ptr.dim() == 1 && row_ptr.size(0) >= 1 && row_ptr.scalar_type() == at::kLong,
             "row_ptr", "int64 [n_receivers + 1]", row_ptr.scalar_type(), " ", row_ptr.sizes());
  RACE_CHECK(cg.scalar_type() == at::kDouble && cg.dim() == 1, "cg", "float64, one dimension",
             cg.scalar_type(), " ", cg.sizes());
  const std::pair<const char*, const Tensor&> all[] = {{"radial", radial},   {"table", table},
                                                       {"sh", sh},           {"sender", sender},
                                                       {"row_ptr", row_ptr}, {"cg", cg}};
  for (const auto& [name, tensor] : all)
    RACE_CHECK(!tensor.defined() || tensor.device() == g.device(), name, g.device(),
               tensor.device());
  n.receivers = row_ptr.size(0) - 1;
  return n;
}

void check_grad(const Tensor& grad, const Tensor& g, const Tensor& row_ptr) {
  const int64_t n_receivers = row_ptr.dim() == 1 ? row_ptr.size(0) - 1 : 0;
  RACE_CHECK(grad.dim() == 2 && grad.size(0) == n_receivers &&
                 grad.scalar_type() == g.scalar_type() && grad.device() == g.device(),
             "grad", c10::str(g.scalar_type(), " [", n_receivers, ", dim_out] on ", g.device()),
             grad.scalar_type(), " ", grad.sizes(), " on ", grad.device());
}

void check_bar(const char* name, const Tensor& bar, const Tensor& like) {
  RACE_CHECK(
      !bar.defined() || (bar.sizes() == like.sizes() && bar.scalar_type() == like.scalar_type() &&
                         bar.device() == like.device()),
      name, c10::str(like.scalar_type(), " ", like.sizes(), " on ", like.device()),
      bar.scalar_type(), " ", bar.sizes(), " on ", bar.device());
}

std::vector<PathRow> parse_paths(const Sizes& n, c10::IntArrayRef paths, int64_t n_cg) {
  RACE_CHECK(paths.size() % kFields == 0, "paths", "rows of 10 integers", paths.size(),
             " integers");
  std::vector<PathRow> rows;
  rows.reserve(paths.size() / kFields);
  for (size_t p = 0; p < paths.size() / kFields; ++p) {
    const int64_t* f = paths.data() + p * kFields;
    const PathRow r{f[0], f[1], f[2], f[3], f[4], f[5], f[6], f[7], f[8], f[9]};
    const auto where = [p](const char* field) { return c10::str("paths row ", p, ", ", field); };
    RACE_CHECK(std::min({r.l1, r.l2, r.l3}) >= 0 && std::max({r.l1, r.l2, r.l3}) <= 3,
               where("l1 l2 l3"), "0 to 3", r.l1, " ", r.l2, " ", r.l3);
    RACE_CHECK((r.l2 + 1) * (r.l2 + 1) <= n.sh, where("l2"),
               c10::str("a block of sh's ", n.sh, " columns"), r.l2);
    RACE_CHECK(
        r.mul >= 1 && r.in_offset >= 0 && r.in_offset + r.d1() * n.members * r.mul <= n.dim_in,
        where("in_offset, mul"), c10::str("a block inside g's ", n.dim_in, " columns"), r.in_offset,
        ", ", r.mul);
    RACE_CHECK(r.out_offset >= 0 && r.out_offset + r.d3() * n.members * r.out_mul <= n.dim_out,
               where("out_offset, out_mul"), c10::str("a block inside dim_out = ", n.dim_out),
               r.out_offset, ", ", r.out_mul);
    RACE_CHECK(r.column >= 0 && r.column + r.mul <= r.out_mul, where("out_column"),
               c10::str("0 to ", r.out_mul - r.mul), r.column);
    RACE_CHECK(r.weight_offset >= 0 && r.weight_offset + r.mul <= n.weights, where("weight_offset"),
               c10::str("0 to ", n.weights - r.mul), r.weight_offset);
    RACE_CHECK(r.cg_offset >= 0 && r.cg_offset + r.d1() * r.d2() * r.d3() <= n_cg,
               where("cg_offset"), c10::str("a table inside cg's ", n_cg), r.cg_offset);
    rows.push_back(r);
  }
  return rows;
}

}  // namespace race::conv
