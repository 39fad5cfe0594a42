#pragma once
// The checked and unpacked convolution: the one object that every device starts with.
#include <vector>

#include "conv_path.h"
#include "race/conv.h"

namespace race::conv {

struct Problem {
  int64_t n_nodes, dim_in, n_receivers, dim_out;
  int64_t n_edges, n_members, n_groups, n_sh;
  int64_t n_weights, n_rows;  // n_rows is that of the table, zero without one
  std::vector<Path> paths;    // all inside g, sh, out, the weights and the coefficients

  // The arguments of conv, of conv_backward and of conv_double_backward. An error names the
  // argument, the expected and the received value.
  Problem(const ConvOperands& operands, int64_t dim_out);
  Problem(const at::Tensor& grad, const ConvOperands& operands);
  Problem(const ConvBars& bars, const at::Tensor& grad, const ConvOperands& operands);
};

}  // namespace race::conv
