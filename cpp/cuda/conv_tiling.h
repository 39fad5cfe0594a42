#pragma once
// The path table of race::conv, cut into tiles for the CUDA kernels. It depends on the model alone,
// so the device's copy is made once.
#include <memory>
#include <vector>

#include <ATen/core/Tensor.h>
#include <c10/core/Device.h>

#include "../src/conv_problem.h"
#include "conv_kernels.h"

namespace race::cuda {

using conv::Problem;

// Tiles in the order in which warps take them: task k runs tiles task_begin[k] .. task_begin[k +
// 1].
struct Schedule {
  std::vector<Tile> tiles;
  std::vector<int32_t> task_begin{0};
  bool covers = false;    // every column of the result is written
  bool overlaps = false;  // some column is written by several tasks
  at::Tensor device_tiles, device_task_begin;

  int64_t n_tasks() const { return static_cast<int64_t>(task_begin.size()) - 1; }
  const Tile* tiles_ptr() const { return static_cast<const Tile*>(device_tiles.const_data_ptr()); }
  Batch batch(int64_t first, int64_t last) const;  // of tiles first .. last
};

struct Tiling {
  Schedule forward;              // tasks write columns of the result
  Schedule transposed;           // tasks write columns of the adjoint of g
  bool weights_disjoint = true;  // every column of R is read by exactly one tile
};

// `wide` makes tiles of up to kTile channels instead of one warp's.
// Thread safe; tilings are never changed.
std::shared_ptr<const Tiling> tiling_for(const Problem& n, int64_t n_cg, bool wide,
                                         at::Device device);

}  // namespace race::cuda
