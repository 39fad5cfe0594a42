#pragma once
// One row of the table of race::gate, as the CPU and the CUDA kernels take it: plain data.
#include <cstdint>

namespace race::gate {

constexpr int64_t kMaxBlocks = 16;  // both parities of l = 0 to 3, twice

struct Block {
  int64_t d, mul, offset, gate;  // gate < 0: scalars
};

}  // namespace race::gate
