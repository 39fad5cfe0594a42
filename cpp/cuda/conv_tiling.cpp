#include "conv_tiling.h"

#include <algorithm>
#include <map>
#include <tuple>
#include <utility>

#include "../src/recent.h"
#include "crossings.h"

namespace race::cuda {
namespace {

constexpr size_t kKept = 64;  // tilings in memory: layers times shapes of one or a few models

// A row of features or of weights has less than 2^31 numbers.
int32_t narrow(int64_t number) { return static_cast<int32_t>(number); }

std::vector<Tile> make_tiles(const Problem& n, int64_t max_width, std::vector<int>& reads) {
  std::vector<Tile> tiles;
  for (const conv::Path& r : n.paths) {
    for (int64_t c = 0; c < r.mul; ++c) reads[r.weight_offset + c] += 1;

    for (int64_t c = 0; c < r.mul; c += max_width) {
      Tile tile{};
      tile.d_in = narrow(r.d1());
      tile.d_sh = narrow(r.d2());
      tile.d_out = narrow(r.d3());
      tile.sh_offset = narrow(r.l2 * r.l2);
      tile.width = narrow(std::min(max_width, r.mul - c));
      tile.lanes = 1;
      while (tile.lanes < std::min(tile.width, kWarp)) tile.lanes *= 2;
      tile.in = narrow(r.in_offset + c);
      tile.in_stride = narrow(n.n_members * r.mul);
      tile.in_member = narrow(r.mul);
      tile.out = narrow(r.out_offset + r.out_column + c);
      tile.out_stride = narrow(n.n_members * r.out_mul);
      tile.out_member = narrow(r.out_mul);
      tile.weight = narrow(r.weight_offset + c);
      tile.cg = narrow(r.cg_offset);
      tile.cg_in = narrow(r.d2() * r.d3());
      tile.cg_sh = narrow(r.d3());
      tile.cg_out = 1;
      tiles.push_back(tile);
    }
  }
  return tiles;
}

Tile transpose(Tile tile) {
  std::swap(tile.d_in, tile.d_out);
  std::swap(tile.in, tile.out);
  std::swap(tile.in_stride, tile.out_stride);
  std::swap(tile.in_member, tile.out_member);
  std::swap(tile.cg_in, tile.cg_out);
  return tile;
}

// Tiles that write the same columns become one task, in their given order.
Schedule schedule(const std::vector<Tile>& tiles, int64_t n_members, int64_t dim) {
  std::map<std::tuple<int64_t, int64_t, int64_t, int32_t, int32_t>, size_t> task_of;
  std::vector<std::vector<Tile>> tasks;
  for (const Tile& tile : tiles) {
    const auto key =
        std::make_tuple(tile.out, tile.out_stride, tile.out_member, tile.width, tile.d_out);
    const auto [found, added] = task_of.emplace(key, tasks.size());
    if (added) tasks.emplace_back();
    tasks[found->second].push_back(tile);
  }
  Schedule result;
  std::vector<bool> written(dim, false);
  for (const auto& task : tasks) {
    const Tile& tile = task.front();
    for (int64_t m = 0; m < n_members; ++m)
      for (int64_t m3 = 0; m3 < tile.d_out; ++m3)
        for (int64_t c = 0; c < tile.width; ++c) {
          const int64_t column = tile.out + m3 * tile.out_stride + m * tile.out_member + c;
          result.overlaps = result.overlaps || written[column];
          written[column] = true;
        }
    result.tiles.insert(result.tiles.end(), task.begin(), task.end());
    result.task_begin.push_back(static_cast<int32_t>(result.tiles.size()));
  }
  result.covers = std::all_of(written.begin(), written.end(), [](bool w) { return w; });
  return result;
}

void place(Schedule& schedule, at::Device device) {
  schedule.device_tiles = upload(schedule.tiles, device);
  schedule.device_task_begin = upload(schedule.task_begin, device);
}

Tiling make(const Problem& n, bool wide, at::Device device) {
  Tiling tiling;
  std::vector<int> reads(n.n_weights, 0);
  const std::vector<Tile> tiles = make_tiles(n, wide ? kTile : kWarp, reads);
  tiling.weights_disjoint =
      std::all_of(reads.begin(), reads.end(), [](int count) { return count == 1; });
  tiling.forward = schedule(tiles, n.n_members, n.dim_out);
  std::vector<Tile> transposed;
  for (const Tile& tile : tiles) transposed.push_back(transpose(tile));
  tiling.transposed = schedule(transposed, n.n_members, n.dim_in);
  // The edge kernels find a tile's scratch by the widths before it, so they are added in the order
  // of the schedule.
  int32_t columns = 0;
  for (Tile& tile : tiling.forward.tiles) {
    tile.columns_before = columns;
    columns += tile.width;
  }
  place(tiling.forward, device);
  place(tiling.transposed, device);
  return tiling;
}

using Key = std::pair<std::vector<int64_t>, at::Device>;

}  // namespace

Batch Schedule::batch(int64_t first, int64_t last) const {
  Batch batch{tiles_ptr() + first, narrow(last - first), 0, 0};
  for (int64_t k = first; k < last; ++k) batch.columns += tiles[k].width;
  if (first < last) batch.columns_before = tiles[first].columns_before;
  return batch;
}

std::shared_ptr<const Tiling> tiling_for(const Problem& n, int64_t n_cg, bool wide,
                                         at::Device device) {
  static auto& tilings = *new Recent<Key, std::shared_ptr<const Tiling>>(kKept);
  Key wanted{{n.n_members, n.n_weights, n.n_sh, n.dim_in, n.dim_out, n_cg, wide}, device};
  for (const conv::Path& r : n.paths)
    for (const int64_t number : {r.l1, r.l2, r.l3, r.mul, r.in_offset, r.out_offset, r.out_mul,
                                 r.out_column, r.weight_offset, r.cg_offset})
      wanted.first.push_back(number);
  return tilings.get(
      [&](const Key& key) { return key == wanted; },
      [&] { return std::pair{wanted, std::make_shared<const Tiling>(make(n, wide, device))}; });
}

}  // namespace race::cuda
