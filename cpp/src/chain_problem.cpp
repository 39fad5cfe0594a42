#include "chain_problem.h"

#include <algorithm>

#include <ATen/ops/empty.h>

#include "check.h"

namespace race::chain {
namespace {

using at::Tensor;
using linear::Block;

constexpr int kFields = 9;

void check_tensor(const std::string& name, const Tensor& t, int64_t n, const Tensor& weight) {
  RACE_CHECK(
      "chain",
      t.dim() == 2 && t.size(0) == n && t.scalar_type() == weight.scalar_type() &&
          t.device() == weight.device() && t.is_contiguous(),
      name, c10::str("contiguous ", weight.scalar_type(), " [", n, ", width] on ", weight.device()),
      t.scalar_type(), " ", t.sizes(), " with strides ", t.strides(), " on ", t.device());
}

}  // namespace

Problem::Problem(at::TensorList x, const std::optional<Tensor>& given, const Tensor& species_,
                 const Tensor& weight_, int64_t n_species_, c10::IntArrayRef widths,
                 c10::IntArrayRef blocks)
    : tensors(x.vec()),
      n_given(static_cast<int64_t>(x.size())),
      n_atoms(species_.size(0)),
      n_species(n_species_),
      species(species_),
      weight(weight_) {
  RACE_CHECK("chain", weight.dim() == 2 && weight.size(0) >= 1 && weight.is_contiguous(), "weight",
             "contiguous [n_members, numel]", weight.sizes());
  RACE_CHECK("chain", weight.scalar_type() == at::kFloat || weight.scalar_type() == at::kDouble,
             "weight", "float32 or float64", weight.scalar_type());
  RACE_CHECK("chain",
             species.dim() == 1 && species.scalar_type() == at::kLong &&
                 species.device() == weight.device(),
             "species", c10::str("int64 [n] on ", weight.device()), species.scalar_type(), " ",
             species.sizes(), " on ", species.device());
  for (size_t k = 0; k < tensors.size(); ++k)
    check_tensor(c10::str("x[", k, "]"), tensors[k], n_atoms, weight);
  int64_t dim_rows = 0;
  for (const int64_t width : widths) {
    RACE_CHECK("chain", width >= 0, "widths", "no negative width", width);
    tensors.push_back(at::empty({n_atoms, width}, weight.options()));
    dim_rows += width;
  }
  if (given.has_value()) {
    rows = *given;
    check_tensor("rows", rows, n_species, weight);
    RACE_CHECK("chain", rows.size(1) == dim_rows, "rows",
               c10::str("the sum of widths, ", dim_rows, " columns"), rows.size(1));
  }
  RACE_CHECK("chain", blocks.size() % kFields == 0, "blocks",
             c10::str("rows of ", kFields, " integers"), blocks.size(), " integers");
  for (size_t k = 0; k < blocks.size() / kFields; ++k) add(k, blocks.data() + k * kFields);
}

void Problem::add(size_t k, const int64_t* row) {
  const auto where = [k](const char* field) { return c10::str("blocks row ", k, ", ", field); };
  const Link link{.from = row[0],
                  .to = row[1],
                  .block = {.d = row[2],
                            .mul_in = row[3],
                            .mul_out = row[4],
                            .in_offset = row[5],
                            .out_offset = row[6],
                            .weight_offset = row[7]},
                  .weight_step = row[8]};
  const Block& b = link.block;
  const int64_t n = tensors.size(), M = weight.size(0),
                last = b.weight_offset + (n_species - 1) * link.weight_step + b.mul_in * b.mul_out;
  RACE_CHECK(
      "chain",
      std::min(link.from, link.to) >= 0 && std::max(link.from, link.to) < n && link.from != link.to,
      where("from to"), c10::str("two of ", n, " tensors"), link.from, " ", link.to);
  RACE_CHECK("chain", std::min({b.d, b.mul_in, b.mul_out}) >= 1, where("d mul_in mul_out"),
             "at least 1", b.d, " ", b.mul_in, " ", b.mul_out);
  const int64_t dim_in = tensors[link.from].size(1), dim_out = tensors[link.to].size(1);
  RACE_CHECK(
      "chain", b.in_offset >= 0 && b.in_offset + b.d * M * b.mul_in <= dim_in, where("in_offset"),
      c10::str("a block of ", b.d * M * b.mul_in, " inside ", dim_in, " columns"), b.in_offset);
  RACE_CHECK("chain", b.out_offset >= 0 && b.out_offset + b.d * M * b.mul_out <= dim_out,
             where("out_offset"),
             c10::str("a block of ", b.d * M * b.mul_out, " inside ", dim_out, " columns"),
             b.out_offset);
  RACE_CHECK("chain", b.weight_offset >= 0 && link.weight_step >= 0 && last <= weight.size(1),
             where("weight_offset weight_step"),
             c10::str("matrices inside weight's ", weight.size(1), " numbers"), b.weight_offset,
             " ", link.weight_step);
  links.push_back(link);
}

void Problem::start(size_t k) const {
  const Tensor& t = tensors[k];
  if (!rows.defined()) {
    t.zero_();
    return;
  }
  int64_t column = 0;
  for (size_t before = n_given; before < k; ++before) column += tensors[before].size(1);
  t.copy_(rows.narrow(1, column, t.size(1)).index_select(0, species));
}

void Problem::start() const {
  for (size_t k = n_given; k < tensors.size(); ++k) start(k);
}

}  // namespace race::chain
