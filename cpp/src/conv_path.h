#pragma once
#include <cstdint>

namespace race::conv {

// One path of a convolution, as in race/conv.h. It reads g[:, in_offset:] viewed [2 l1 + 1, M,
// mul], and writes columns out_column .. of out[:, out_offset:] viewed [2 l3 + 1, M, out_mul]. Its
// weights are R[:, :, weight_offset:], its coefficients cg[cg_offset:] [2 l1 + 1, 2 l2 + 1, 2 l3 +
// 1]. The order of the fields is that of the schema's rows.
struct Path {
  int64_t l1, l2, l3;
  int64_t mul, in_offset;
  int64_t out_offset, out_mul, out_column;
  int64_t weight_offset, cg_offset;

  constexpr int64_t d1() const { return 2 * l1 + 1; }
  constexpr int64_t d2() const { return 2 * l2 + 1; }
  constexpr int64_t d3() const { return 2 * l3 + 1; }
};

}  // namespace race::conv
