#pragma once
// The arguments of race::conv, checked and unpacked: what every device starts with. Argument errors
// name the argument, what was expected and what came.
#include <vector>

#include <ATen/core/Tensor.h>
#include <c10/util/ArrayRef.h>
#include <c10/util/Exception.h>

#define RACE_CHECK(condition, name, expected, ...) \
  TORCH_CHECK_VALUE(condition, "race::conv: ", name, ": expected ", expected, ", got ", __VA_ARGS__)

namespace race::conv {

struct Sizes {
  int64_t nodes, dim_in, dim_out, members, edges, weights, groups, sh, receivers,
      rows;  // rows: of the table, zero without one
};

// Shapes, types and devices of the operands; `table` may be undefined.
Sizes check(const at::Tensor& g, const at::Tensor& radial, const at::Tensor& table,
            const at::Tensor& sh, const at::Tensor& sender, const at::Tensor& row_ptr,
            const at::Tensor& cg, int64_t dim_out);

// The cotangent of the result, [n_receivers, dim_out]. Comes before check(), which wants its width.
void check_grad(const at::Tensor& grad, const at::Tensor& g, const at::Tensor& row_ptr);

// A cotangent of an adjoint: undefined, or like the operand.
void check_bar(const char* name, const at::Tensor& bar, const at::Tensor& like);

struct PathRow {
  int64_t l1, l2, l3, mul, in_offset, out_offset, out_mul, column, weight_offset, cg_offset;
  int64_t d1() const { return 2 * l1 + 1; }
  int64_t d2() const { return 2 * l2 + 1; }
  int64_t d3() const { return 2 * l3 + 1; }
};

// All rows inside g, sh, out, the weights and the n_cg coefficients.
std::vector<PathRow> parse_paths(const Sizes& n, c10::IntArrayRef paths, int64_t n_cg);

}  // namespace race::conv
