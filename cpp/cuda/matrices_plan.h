#pragma once
// The order in which the linear maps of a call are computed, and where their tables lie on the
// device.
#include <memory>
#include <vector>

#include <ATen/core/Tensor.h>

#include "../simd/linear_kernel.h"
#include "matrices_kernels.h"

namespace race::cuda {

// tensor `to` += tensor `from` times the matrices of a block.
struct Map {
  int64_t from, to;
  linear::Block block;
  int64_t weight_species;
  bool transposed;  // the matrix lies as [mul_out, mul_in]
};

// Maps in order, between tensors of given widths, the first n_given of them given; the others start
// with rows of their species, or with zero.
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
  std::vector<bool> covered;         // of each tensor: its first tasks write every column
  at::Tensor device_tasks, device_terms;
};

MapPlan plan_maps(const MapProblem& problem);

// The same, uploaded and remembered.
std::shared_ptr<const MapPlan> map_plan_for(const MapProblem& problem, at::Device device);

}  // namespace race::cuda
