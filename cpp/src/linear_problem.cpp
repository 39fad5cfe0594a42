#include "linear_problem.h"

#include <algorithm>
#include <utility>

#include "check.h"

namespace race::linear {
namespace {

using at::Tensor;

constexpr size_t kFields = 6;

// Sorts the ranges, and returns the first one whose successor begins inside it, or the end.
std::vector<Range>::const_iterator first_overlap(std::vector<Range>& ranges) {
  std::sort(ranges.begin(), ranges.end());
  const auto overlaps = [](const Range& a, const Range& b) { return b.first < a.second; };
  return std::adjacent_find(ranges.cbegin(), ranges.cend(), overlaps);
}

// The width of the cotangent of the result, which is checked before it is used.
int64_t checked_width(const Tensor& grad, const Tensor& x) {
  RACE_CHECK(
      "linear",
      grad.dim() == 2 && x.dim() == 2 && grad.size(0) == x.size(0) &&
          grad.scalar_type() == x.scalar_type() && grad.device() == x.device(),
      "grad",
      c10::str(x.scalar_type(), " [", x.dim() == 2 ? x.size(0) : 0, ", dim_out] on ", x.device()),
      grad.scalar_type(), " ", grad.sizes(), " on ", grad.device());
  return grad.size(1);
}

Block unpack(const Problem& n, size_t k, const int64_t* row) {
  const auto where = [k](const char* field) { return c10::str("blocks row ", k, ", ", field); };
  const Block b{.d = row[0],
                .mul_in = row[1],
                .mul_out = row[2],
                .in_offset = row[3],
                .out_offset = row[4],
                .weight_offset = row[5]};
  const int64_t width_in = b.d * n.n_members * b.mul_in, width_out = b.d * n.n_members * b.mul_out;
  RACE_CHECK("linear", std::min({b.d, b.mul_in, b.mul_out}) >= 1, where("d mul_in mul_out"),
             "at least 1", b.d, " ", b.mul_in, " ", b.mul_out);
  RACE_CHECK("linear", b.in_offset >= 0 && b.in_offset + width_in <= n.dim_in, where("in_offset"),
             c10::str("a block of ", width_in, " inside x's ", n.dim_in, " columns"), b.in_offset);
  RACE_CHECK("linear", b.out_offset >= 0 && b.out_offset + width_out <= n.dim_out,
             where("out_offset"),
             c10::str("a block of ", width_out, " inside dim_out = ", n.dim_out), b.out_offset);
  RACE_CHECK(
      "linear", b.weight_offset >= 0 && b.weight_offset + b.mul_in * b.mul_out <= n.n_weights,
      where("weight_offset"),
      c10::str("a matrix of ", b.mul_in * b.mul_out, " inside weight's ", n.n_weights, " numbers"),
      b.weight_offset);
  return b;
}

}  // namespace

Problem::Problem(const Operands& operands, int64_t dim_out) : dim_out(dim_out) {
  const auto& [x, weight, species, rows] = operands;
  RACE_CHECK("linear", x.dim() == 2, "x", "[n, dim_in]", x.sizes());
  RACE_CHECK("linear", x.scalar_type() == at::kFloat || x.scalar_type() == at::kDouble, "x",
             "float32 or float64", x.scalar_type());
  RACE_CHECK("linear", weight.dim() == 3 && weight.size(0) >= 1 && weight.size(1) >= 1, "weight",
             "[n_members, n_species, numel]", weight.sizes());
  RACE_CHECK("linear", weight.scalar_type() == x.scalar_type(), "weight", x.scalar_type(),
             weight.scalar_type());
  RACE_CHECK("linear", weight.device() == x.device(), "weight", x.device(), weight.device());
  if (species.has_value()) {
    RACE_CHECK(
        "linear",
        species->dim() == 1 && species->size(0) == x.size(0) && species->scalar_type() == at::kLong,
        "species", c10::str("int64 [", x.size(0), "]"), species->scalar_type(), " ",
        species->sizes());
    RACE_CHECK("linear", species->device() == x.device(), "species", x.device(), species->device());
  } else {
    RACE_CHECK("linear", weight.size(1) == 1, "weight",
               "one set of matrices per member where there is no species", weight.size(1));
  }
  RACE_CHECK("linear", rows.size() % kFields == 0, "blocks", "rows of 6 integers", rows.size(),
             " integers");
  n_atoms = x.size(0);
  dim_in = x.size(1);
  n_members = weight.size(0);
  n_species = weight.size(1);
  n_weights = weight.size(2);
  std::vector<Range> written;
  for (size_t k = 0; k < rows.size() / kFields; ++k) {
    const Block b = unpack(*this, k, rows.data() + k * kFields);
    blocks.push_back(b);
    written.emplace_back(b.out_offset, b.out_offset + b.d * n_members * b.mul_out);
  }
  if (const auto twice = first_overlap(written); twice != written.cend())
    RACE_CHECK("linear", false, "blocks, out_offset", "columns that no other block writes",
               c10::str((twice + 1)->first, " inside ", twice->first, " .. ", twice->second));
}

Problem::Problem(const Tensor& grad, const Operands& operands)
    : Problem(operands, checked_width(grad, operands.x)) {}

bool overlap(std::vector<Range> ranges) { return first_overlap(ranges) != ranges.cend(); }

bool share_matrices(const std::vector<Block>& blocks) {
  std::vector<Range> matrices;
  for (const Block& b : blocks)
    matrices.emplace_back(b.weight_offset, b.weight_offset + b.mul_in * b.mul_out);
  return overlap(std::move(matrices));
}

void refuse_species(const char* op, int64_t got, int64_t n_species) {
  RACE_CHECK(op, false, "species", c10::str("[0, ", n_species, ")"), got);
}

}  // namespace race::linear
