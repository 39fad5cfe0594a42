#include "linear_check.h"

#include <algorithm>

#include "check.h"

namespace race::linear {
namespace {

constexpr int kFields = 6;

}  // namespace

Sizes check(const at::Tensor& x, const at::Tensor& weight, const OptionalTensor& species,
            c10::IntArrayRef blocks) {
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
  RACE_CHECK("linear", blocks.size() % kFields == 0, "blocks", "rows of 6 integers", blocks.size(),
             " integers");
  return {x.size(0), x.size(1), weight.size(0), weight.size(1), weight.size(2)};
}

void check_rows(const char* name, const at::Tensor& rows, const at::Tensor& x) {
  RACE_CHECK("linear",
             rows.dim() == 2 && rows.size(0) == x.size(0) &&
                 rows.scalar_type() == x.scalar_type() && rows.device() == x.device(),
             name, c10::str(x.scalar_type(), " [", x.size(0), ", dim_out] on ", x.device()),
             rows.scalar_type(), " ", rows.sizes(), " on ", rows.device());
}

void refuse_species(int64_t got, int64_t n_species) {
  RACE_CHECK("linear", false, "species", c10::str("[0, ", n_species, ")"), got);
}

std::vector<Block> parse(const Sizes& n, c10::IntArrayRef rows, int64_t dim_out) {
  std::vector<Block> blocks;
  std::vector<std::pair<int64_t, int64_t>> written;  // [begin, end) and the row that writes it
  for (size_t k = 0; k < rows.size() / kFields; ++k) {
    const int64_t* row = rows.data() + k * kFields;
    const Block b{row[0], row[1], row[2], row[3], row[4], row[5]};
    const auto where = [k](const char* field) { return c10::str("blocks row ", k, ", ", field); };
    RACE_CHECK("linear", std::min({b.d, b.mul_in, b.mul_out}) >= 1, where("d mul_in mul_out"),
               "at least 1", b.d, " ", b.mul_in, " ", b.mul_out);
    RACE_CHECK(
        "linear", b.in_offset >= 0 && b.in_offset + b.d * n.members * b.mul_in <= n.dim_in,
        where("in_offset"),
        c10::str("a block of ", b.d * n.members * b.mul_in, " inside x's ", n.dim_in, " columns"),
        b.in_offset);
    RACE_CHECK("linear", b.out_offset >= 0 && b.out_offset + b.d * n.members * b.mul_out <= dim_out,
               where("out_offset"),
               c10::str("a block of ", b.d * n.members * b.mul_out, " inside dim_out = ", dim_out),
               b.out_offset);
    RACE_CHECK(
        "linear", b.weight_offset >= 0 && b.weight_offset + b.mul_in * b.mul_out <= n.numel,
        where("weight_offset"),
        c10::str("a matrix of ", b.mul_in * b.mul_out, " inside weight's ", n.numel, " numbers"),
        b.weight_offset);
    blocks.push_back(b);
    written.emplace_back(b.out_offset, b.out_offset + b.d * n.members * b.mul_out);
  }
  std::sort(written.begin(), written.end());
  for (size_t k = 1; k < written.size(); ++k)
    RACE_CHECK("linear", written[k - 1].second <= written[k].first, "blocks, out_offset",
               "columns that no other block writes",
               c10::str(written[k].first, " inside ", written[k - 1].first, " .. ",
                        written[k - 1].second));
  return blocks;
}

}  // namespace race::linear
