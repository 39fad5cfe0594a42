#include "plan.h"

#include <algorithm>
#include <cstring>
#include <list>
#include <map>
#include <mutex>
#include <tuple>

#include <ATen/ops/empty.h>
#include <c10/util/Exception.h>

#include "check.h"

namespace race::cuda {
namespace {

constexpr int kFields = 10;
constexpr size_t kKept = 64;  // plans in memory: layers times shapes of one or a few models

std::vector<Tile> make_tiles(const Sizes& n, c10::IntArrayRef paths, int64_t n_cg, int64_t max_width, std::vector<int>& reads) {
  std::vector<Tile> tiles;
  for (size_t p = 0; p < paths.size() / kFields; ++p) {
    const int64_t* row = paths.data() + p * kFields;
    const int64_t l1 = row[0], l2 = row[1], l3 = row[2], mul = row[3], in = row[4], out = row[5], out_mul = row[6], column = row[7],
                  weight = row[8], cg = row[9];
    const auto where = [p](const char* field) { return c10::str("paths row ", p, ", ", field); };
    RACE_CHECK(std::min({l1, l2, l3}) >= 0 && std::max({l1, l2, l3}) <= 3, where("l1 l2 l3"), "0 to 3", l1, " ", l2, " ", l3);
    const int64_t d1 = 2 * l1 + 1, d2 = 2 * l2 + 1, d3 = 2 * l3 + 1;
    RACE_CHECK((l2 + 1) * (l2 + 1) <= n.sh, where("l2"), c10::str("a block of sh's ", n.sh, " columns"), l2);
    RACE_CHECK(mul >= 1 && in >= 0 && in + d1 * n.members * mul <= n.dim_in, where("in_offset, mul"),
               c10::str("a block inside g's ", n.dim_in, " columns"), in, ", ", mul);
    RACE_CHECK(out >= 0 && out + d3 * n.members * out_mul <= n.dim_out, where("out_offset, out_mul"),
               c10::str("a block inside dim_out = ", n.dim_out), out, ", ", out_mul);
    RACE_CHECK(column >= 0 && column + mul <= out_mul, where("out_column"), c10::str("0 to ", out_mul - mul), column);
    RACE_CHECK(weight >= 0 && weight + mul <= n.weights, where("weight_offset"), c10::str("0 to ", n.weights - mul), weight);
    RACE_CHECK(cg >= 0 && cg + d1 * d2 * d3 <= n_cg, where("cg_offset"), c10::str("a table inside cg's ", n_cg), cg);
    for (int64_t c = 0; c < mul; ++c) reads[weight + c] += 1;

    for (int64_t c = 0; c < mul; c += max_width) {
      Tile tile{};
      tile.d_in = static_cast<int32_t>(d1), tile.d_sh = static_cast<int32_t>(d2), tile.d_out = static_cast<int32_t>(d3);
      tile.sh_offset = static_cast<int32_t>(l2 * l2);
      tile.width = static_cast<int32_t>(std::min(max_width, mul - c));
      tile.lanes = 1;
      while (tile.lanes < std::min(tile.width, kWarp)) tile.lanes *= 2;
      tile.in = in + c, tile.in_stride = n.members * mul, tile.in_member = mul;
      tile.out = out + column + c, tile.out_stride = n.members * out_mul, tile.out_member = out_mul;
      tile.weight = weight + c;
      tile.cg = cg, tile.cg_in = d2 * d3, tile.cg_sh = d3, tile.cg_out = 1;
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
    const auto key = std::make_tuple(tile.out, tile.out_stride, tile.out_member, tile.width, tile.d_out);
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

template <class T>
at::Tensor upload(const std::vector<T>& values, at::Device device) {
  at::Tensor host = at::empty({static_cast<int64_t>(values.size() * sizeof(T))}, at::TensorOptions().dtype(at::kByte));
  if (!values.empty()) std::memcpy(host.mutable_data_ptr(), values.data(), values.size() * sizeof(T));
  return host.to(device);
}

void upload(Schedule& schedule, at::Device device) {
  schedule.device_tiles = upload(schedule.tiles, device);
  schedule.device_task_begin = upload(schedule.task_begin, device);
}

struct Key {
  std::vector<int64_t> numbers;
  at::Device device;
  bool operator==(const Key& other) const { return device == other.device && numbers == other.numbers; }
};

}  // namespace

std::shared_ptr<const Plan> plan_for(const Sizes& n, c10::IntArrayRef paths, int64_t n_cg, bool wide, at::Device device) {
  static std::mutex mutex;
  static auto& kept = *new std::list<std::pair<Key, std::shared_ptr<const Plan>>>;  // never destroyed: tensors outlive no CUDA context
  RACE_CHECK(paths.size() % kFields == 0, "paths", "rows of 10 integers", paths.size(), " integers");
  Key key{{n.members, n.weights, n.sh, n.dim_in, n.dim_out, n_cg, wide}, device};
  key.numbers.insert(key.numbers.end(), paths.begin(), paths.end());

  const std::lock_guard lock(mutex);
  for (auto it = kept.begin(); it != kept.end(); ++it)
    if (it->first == key) {
      kept.splice(kept.begin(), kept, it);
      return it->second;
    }
  auto plan = std::make_shared<Plan>();
  std::vector<int> reads(n.weights, 0);
  const std::vector<Tile> tiles = make_tiles(n, paths, n_cg, wide ? kTile : kWarp, reads);
  plan->weights_disjoint = std::all_of(reads.begin(), reads.end(), [](int count) { return count == 1; });
  plan->forward = schedule(tiles, n.members, n.dim_out);
  std::vector<Tile> transposed;
  for (const Tile& tile : tiles) transposed.push_back(transpose(tile));
  plan->transposed = schedule(transposed, n.members, n.dim_in);
  // The edge kernels find a tile's scratch by the widths before it: in the order that the schedule has given them.
  int64_t columns = 0;
  for (Tile& tile : plan->forward.tiles) {
    tile.columns_before = columns;
    columns += tile.width;
  }
  upload(plan->forward, device);
  upload(plan->transposed, device);
  kept.emplace_front(std::move(key), plan);
  if (kept.size() > kKept) kept.pop_back();
  return plan;
}

}  // namespace race::cuda
