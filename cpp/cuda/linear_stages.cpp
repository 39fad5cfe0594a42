#include "linear_stages.h"

#include <algorithm>
#include <utility>

#include "../src/recent.h"
#include "crossings.h"

namespace race::cuda {
namespace {

constexpr size_t kKept = 256;  // plans in memory: a few for each layer of one or a few models

// Columns [begin, end) of a tensor.
struct Columns {
  int64_t tensor, begin, end;
  bool meets(const Columns& other) const {
    return tensor == other.tensor && begin < other.end && other.begin < end;
  }
};

struct Placed {
  Columns in, out;
  int64_t stage;
  size_t task;
};

struct Draft {
  MapTask task;
  int64_t stage;
  std::vector<MapTerm> terms;
};

bool same_columns(const MapTask& task, const Map& map) {
  return task.to == map.to && task.out_offset == map.block.out_offset && task.d == map.block.d &&
         task.mul_out == map.block.mul_out;
}

// The numbers of a key of Recent, and the device of its tables.
using Key = std::pair<std::vector<int64_t>, at::Device>;

}  // namespace

MapPlan plan_maps(const MapProblem& p) {
  std::vector<Placed> placed;
  std::vector<Draft> drafts;
  std::vector<std::vector<bool>> written;
  for (const int64_t width : p.widths) written.emplace_back(width, false);
  std::vector<bool> whole(p.widths.size(), true);  // no task starts with columns that were never
                                                   // written
  for (const Map& map : p.maps) {
    const linear::Block& b = map.block;
    Placed now{.in = {.tensor = map.from,
                      .begin = b.in_offset,
                      .end = b.in_offset + b.d * p.n_members * b.mul_in},
               .out = {.tensor = map.to,
                       .begin = b.out_offset,
                       .end = b.out_offset + b.d * p.n_members * b.mul_out},
               .stage = 0,
               .task = drafts.size()};
    for (const Placed& before : placed) {
      const bool waits =
          before.out.meets(now.in) || before.in.meets(now.out) ||
          (before.out.meets(now.out) && !same_columns(drafts[before.task].task, map));
      if (waits)
        now.stage = std::max(now.stage, before.stage + 1);
      else if (before.out.meets(now.out))
        now.stage = std::max(now.stage, before.stage);
    }
    for (size_t k = 0; k < drafts.size(); ++k)
      if (drafts[k].stage == now.stage && same_columns(drafts[k].task, map)) now.task = k;
    if (now.task == drafts.size()) {
      std::vector<bool>& columns = written[map.to];
      const auto first = columns.begin() + now.out.begin, last = columns.begin() + now.out.end;
      MapStart start = p.has_rows ? MapStart::rows : MapStart::zero;
      if (map.to < p.n_given || std::find(first, last, true) != last) {
        start = MapStart::itself;
        if (std::find(first, last, false) != last) whole[map.to] = false;
      }
      std::fill(first, last, true);
      int64_t row_offset = b.out_offset;
      for (int64_t made = p.n_given; made < map.to; ++made) row_offset += p.widths[made];
      const MapTask task{.to = static_cast<int32_t>(map.to),
                         .d = static_cast<int32_t>(b.d),
                         .mul_out = static_cast<int32_t>(b.mul_out),
                         .first = 0,
                         .last = 0,
                         .start = start,
                         .out_offset = b.out_offset,
                         .row_offset = row_offset};
      drafts.push_back({.task = task, .stage = now.stage, .terms = {}});
    }
    drafts[now.task].terms.push_back({.from = static_cast<int32_t>(map.from),
                                      .mul_in = static_cast<int32_t>(b.mul_in),
                                      .in_offset = b.in_offset,
                                      .weight = b.weight_offset,
                                      .weight_species = map.weight_species,
                                      .step_in = map.transposed ? 1 : b.mul_out,
                                      .step_out = map.transposed ? b.mul_in : 1});
    placed.push_back(now);
  }

  MapPlan plan;
  for (size_t k = 0; k < p.widths.size(); ++k)
    plan.covered.push_back(
        static_cast<int64_t>(k) < p.n_given ||
        (whole[k] && std::find(written[k].begin(), written[k].end(), false) == written[k].end()));
  std::stable_sort(drafts.begin(), drafts.end(),
                   [](const Draft& a, const Draft& b) { return a.stage < b.stage; });
  for (Draft& draft : drafts) {
    while (static_cast<int64_t>(plan.stage_begin.size()) <= draft.stage)
      plan.stage_begin.push_back(static_cast<int64_t>(plan.tasks.size()));
    draft.task.first = static_cast<int32_t>(plan.terms.size());
    plan.terms.insert(plan.terms.end(), draft.terms.begin(), draft.terms.end());
    draft.task.last = static_cast<int32_t>(plan.terms.size());
    if (!plan.covered[draft.task.to]) draft.task.start = MapStart::itself;
    plan.tasks.push_back(draft.task);
  }
  plan.stage_begin.push_back(static_cast<int64_t>(plan.tasks.size()));
  return plan;
}

std::shared_ptr<const MapPlan> map_plan_for(const MapProblem& p, at::Device device) {
  static auto& plans = *new Recent<Key, std::shared_ptr<const MapPlan>>(kKept);
  Key wanted{{p.n_given, p.n_members, p.has_rows, static_cast<int64_t>(p.maps.size())}, device};
  std::vector<int64_t>& numbers = wanted.first;
  numbers.insert(numbers.end(), p.widths.begin(), p.widths.end());
  for (const Map& m : p.maps)
    for (const int64_t number : {m.from, m.to, m.block.d, m.block.mul_in, m.block.mul_out,
                                 m.block.in_offset, m.block.out_offset, m.block.weight_offset,
                                 m.weight_species, static_cast<int64_t>(m.transposed)})
      numbers.push_back(number);
  return plans.get([&](const Key& key) { return key == wanted; },
                   [&] {
                     auto plan = std::make_shared<MapPlan>(plan_maps(p));
                     plan->device_tasks = upload(plan->tasks, device);
                     plan->device_terms = upload(plan->terms, device);
                     return std::pair{wanted, plan};
                   });
}

at::Tensor block_table_for(const std::vector<linear::Block>& blocks, at::Device device) {
  static auto& tables = *new Recent<Key, at::Tensor>(kKept);
  Key wanted{{}, device};
  std::vector<MapBlock> table;
  for (const linear::Block& b : blocks) {
    for (const int64_t number :
         {b.d, b.mul_in, b.mul_out, b.in_offset, b.out_offset, b.weight_offset})
      wanted.first.push_back(number);
    table.push_back({.d = static_cast<int32_t>(b.d),
                     .mul_in = static_cast<int32_t>(b.mul_in),
                     .mul_out = static_cast<int32_t>(b.mul_out),
                     .in_offset = b.in_offset,
                     .out_offset = b.out_offset,
                     .weight = b.weight_offset});
  }
  return tables.get([&](const Key& key) { return key == wanted; },
                    [&] { return std::pair{wanted, upload(table, device)}; });
}

}  // namespace race::cuda
