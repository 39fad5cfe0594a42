#pragma once
// The order of the linear maps of a call, and their tables on the device.
#include <memory>
#include <vector>

#include <ATen/core/Tensor.h>

#include "../simd/linear_kernel.h"
#include "linear_kernels.h"

namespace race::cuda {

// One map: tensor `to` += tensor `from` times the matrices of a block.
struct Map {
  int64_t from, to;
  linear::Block block;
  int64_t weight_species;
  bool transposed;  // the matrix is stored as [mul_out, mul_in]
};

// Maps in order, between tensors of given widths. The first n_given tensors are given; the others
// start with rows of their species, or with zero.
struct MapProblem {
  std::vector<Map> maps;
  std::vector<int64_t> widths;
  int64_t n_given, n_members;
  bool has_rows;
};

// Maps to the same columns are the terms of one task. Tasks of a stage neither read nor write what
// another one writes: a stage is one launch.
struct MapPlan {
  std::vector<MapTask> tasks;
  std::vector<MapTerm> terms;
  std::vector<int64_t> stage_begin;  // [n_stages + 1], of tasks
  std::vector<bool> covered;         // by tensor: its first tasks write every column
  at::Tensor device_tasks, device_terms;
};

MapPlan plan_maps(const MapProblem& problem);

// Makes a plan and uploads it, once. Thread safe; plans are never changed.
std::shared_ptr<const MapPlan> map_plan_for(const MapProblem& problem, at::Device device);

// The blocks on the device, as MapBlock; uploaded once, like a plan. Thread safe.
at::Tensor block_table_for(const std::vector<linear::Block>& blocks, at::Device device);

}  // namespace race::cuda
