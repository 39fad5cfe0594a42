#include "matrices_cuda.h"

#include <algorithm>

#include <ATen/Dispatch.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#include "../src/chain_problem.h"
#include "../src/check.h"
#include "../src/linear_check.h"
#include "groups.h"
#include "matrices_plan.h"
#include "upload.h"

namespace race {
namespace {

using at::Tensor;
using namespace cuda;
using linear::Block;
using linear::Sizes;

constexpr int64_t kAtomsOfPart = 256;  // atoms whose adjoints of matrices one warp sums

// Atoms grouped by species, if there are several.
struct Species {
  std::shared_ptr<const Groups> groups;
  BySpecies atoms;

  Species(int64_t n_atoms, int64_t n_species, const OptionalTensor& species)
      : atoms{n_atoms, n_species, nullptr, nullptr} {
    if (!species.has_value() || n_species == 1) return;
    groups = groups_for(*species, n_species);
    atoms.begin = groups->begin.const_data_ptr<int64_t>();
    atoms.order = groups->order.const_data_ptr<int64_t>();
  }
};

// Runs a plan on `tensors`, which are contiguous.
void run(const MapPlan& plan, const std::vector<Tensor>& tensors, const BySpecies& atoms,
         int64_t n_members, const Tensor& weight, int64_t weight_member, const Tensor& rows) {
  AT_DISPATCH_FLOATING_TYPES(weight.scalar_type(), "race::linear", [&] {
    MapJob<scalar_t> job{};
    job.atoms = atoms;
    job.n_members = n_members;
    job.weight_member = weight_member;
    job.weight = weight.const_data_ptr<scalar_t>();
    if (rows.defined()) {
      job.rows = rows.const_data_ptr<scalar_t>();
      job.row_width = rows.size(1);
    }
    for (size_t k = 0; k < tensors.size(); ++k) {
      job.tensors[k] = tensors[k].data_ptr<scalar_t>();
      job.widths[k] = tensors[k].size(1);
    }
    const auto* tasks = static_cast<const MapTask*>(plan.device_tasks.const_data_ptr());
    job.terms = static_cast<const MapTerm*>(plan.device_terms.const_data_ptr());
    for (size_t s = 0; s + 1 < plan.stage_begin.size(); ++s) {
      job.tasks = tasks + plan.stage_begin[s];
      job.n_tasks = plan.stage_begin[s + 1] - plan.stage_begin[s];
      int64_t warps = 0;
      for (int64_t k = plan.stage_begin[s]; k < plan.stage_begin[s + 1]; ++k)
        warps +=
            row_tiles(atoms, plan.tasks[k].d) * column_tiles(plan.tasks[k].mul_out) * n_members;
      C10_CUDA_CHECK(launch_maps(job, warps, c10::cuda::getCurrentCUDAStream()));
    }
  });
}

// The map of blocks, one after another: y [n, width] = x times their matrices.
Tensor map_rows(const Sizes& n, const std::vector<Block>& blocks, const Tensor& x,
                const Tensor& weight, const BySpecies& atoms, int64_t width, bool transposed) {
  MapProblem problem{{}, {x.size(1), width}, 1, n.members, false};
  for (const Block& b : blocks)
    problem.maps.push_back(
        {0, 1,
         transposed ? Block{b.d, b.mul_out, b.mul_in, b.out_offset, b.in_offset, b.weight_offset}
                    : b,
         n.numel, transposed});
  const auto plan = map_plan_for(problem, x.device());
  const Tensor y = plan->covered[1] ? at::empty({n.atoms, width}, x.options())
                                    : at::zeros({n.atoms, width}, x.options());
  if (n.atoms > 0) run(*plan, {x, y}, atoms, n.members, weight, n.species * n.numel, {});
  return y;
}

// Whether two blocks have numbers of a matrix in common.
bool share_matrices(const std::vector<Block>& blocks) {
  std::vector<std::pair<int64_t, int64_t>> ranges;
  for (const Block& b : blocks)
    ranges.emplace_back(b.weight_offset, b.weight_offset + b.mul_in * b.mul_out);
  std::sort(ranges.begin(), ranges.end());
  return std::adjacent_find(ranges.begin(), ranges.end(), [](const auto& a, const auto& b) {
           return b.first < a.second;
         }) != ranges.end();
}

Tensor outer(const Sizes& n, const std::vector<Block>& blocks, const Tensor& x, const Tensor& grad,
             const BySpecies& atoms) {
  const int64_t n_parts = std::clamp<int64_t>(n.atoms / kAtomsOfPart, 1, 64);
  const Tensor parts = at::zeros({n_parts, n.members, n.species, n.numel}, x.options());
  std::vector<MapBlock> table;
  for (const Block& b : blocks)
    table.push_back({static_cast<int32_t>(b.d), static_cast<int32_t>(b.mul_in),
                     static_cast<int32_t>(b.mul_out), b.in_offset, b.out_offset, b.weight_offset});
  const Tensor device_blocks = upload(table, x.device());
  const auto n_blocks = static_cast<int64_t>(blocks.size());
  const int64_t step = share_matrices(blocks) ? 1 : n_blocks;  // blocks of one launch
  AT_DISPATCH_FLOATING_TYPES(x.scalar_type(), "race::linear_backward", [&] {
    OuterJob<scalar_t> job{};
    job.atoms = atoms;
    job.blocks = static_cast<const MapBlock*>(device_blocks.const_data_ptr());
    job.n_members = n.members;
    job.n_parts = n_parts;
    job.numel = n.numel;
    job.x = x.const_data_ptr<scalar_t>();
    job.grad = grad.const_data_ptr<scalar_t>();
    job.x_width = x.size(1);
    job.grad_width = grad.size(1);
    job.dweight = parts.mutable_data_ptr<scalar_t>();
    for (int64_t first = 0; first < n_blocks; first += step) {
      job.first_block = first;
      job.last_block = first + step;
      int64_t warps = 0;
      for (int64_t k = first; k < first + step; ++k)
        warps += (blocks[k].mul_in + kMapRows - 1) / kMapRows * ((blocks[k].mul_out + 31) / 32) *
                 n.members * n.species * n_parts;
      C10_CUDA_CHECK(launch_outer(job, warps, c10::cuda::getCurrentCUDAStream()));
    }
  });
  return n_parts == 1 ? parts.squeeze(0) : parts.sum(0);
}

}  // namespace

Tensor linear_cuda(const Tensor& x, const Tensor& weight, const OptionalTensor& species,
                   c10::IntArrayRef rows, int64_t dim_out) {
  const Sizes n = linear::check(x, weight, species, rows);
  const std::vector<Block> blocks = linear::parse(n, rows, dim_out);
  const c10::cuda::OptionalCUDAGuard guard(x.device());
  const Species of(n.atoms, n.species, species);
  return map_rows(n, blocks, x.contiguous(), weight.contiguous(), of.atoms, dim_out, false);
}

std::tuple<Tensor, Tensor> linear_backward_cuda(const Tensor& grad_in, const Tensor& x,
                                                const Tensor& weight, const OptionalTensor& species,
                                                c10::IntArrayRef rows, std::array<bool, 2> mask) {
  const Sizes n = linear::check(x, weight, species, rows);
  linear::check_rows("grad", grad_in, x);
  const std::vector<Block> blocks = linear::parse(n, rows, grad_in.size(1));
  const c10::cuda::OptionalCUDAGuard guard(x.device());
  const Species of(n.atoms, n.species, species);
  const Tensor grad = grad_in.contiguous();
  Tensor dx, dweight;
  if (mask[0]) dx = map_rows(n, blocks, grad, weight.contiguous(), of.atoms, n.dim_in, true);
  if (mask[1]) dweight = outer(n, blocks, x.contiguous(), grad, of.atoms);
  return {dx, dweight};
}

std::vector<Tensor> chain_cuda(at::TensorList x, const std::optional<Tensor>& rows,
                               const Tensor& species, const Tensor& weight, int64_t n_species,
                               c10::IntArrayRef widths, c10::IntArrayRef blocks) {
  const chain::Problem chain(x, rows, species, weight, n_species, widths, blocks);
  RACE_CHECK("chain", chain.tensors.size() <= kMaxTensors, "x, widths",
             c10::str("at most ", kMaxTensors, " tensors"), chain.tensors.size());
  const c10::cuda::OptionalCUDAGuard guard(weight.device());
  MapProblem problem{{}, {}, chain.n_given, weight.size(0), rows.has_value()};
  for (const Tensor& t : chain.tensors) problem.widths.push_back(t.size(1));
  bool by_species = rows.has_value();
  for (const chain::Link& link : chain.links) {
    problem.maps.push_back({link.from, link.to, link.block, link.weight_step, false});
    by_species = by_species || link.weight_step > 0;
  }
  const auto plan = map_plan_for(problem, weight.device());
  for (size_t k = chain.n_given; k < chain.tensors.size(); ++k)
    if (!plan->covered[k]) chain.start(k);
  const Species of(chain.n_atoms, n_species, by_species ? OptionalTensor(species) : std::nullopt);
  if (chain.n_atoms > 0)
    run(*plan, chain.tensors, of.atoms, weight.size(0), weight, weight.size(1), chain.rows);
  return chain.made();
}

}  // namespace race
