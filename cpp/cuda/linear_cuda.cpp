// race::linear, race::linear_backward and race::chain on CUDA tensors; arguments, results and
// errors are those of race/linear.h and race/chain.h. One differs, to avoid waiting for the device:
// rows of atoms whose species is outside [0, S) are NaN.
#include <algorithm>

#include <ATen/Dispatch.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#include "../src/chain_problem.h"
#include "../src/check.h"
#include "../src/linear_problem.h"
#include "groups.h"
#include "linear_stages.h"
#include "register.h"

namespace race::cuda {
namespace {

using at::Tensor;
using linear::Block;
using linear::Problem;

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
    MapArguments<scalar_t> args{};
    args.atoms = atoms;
    args.n_members = n_members;
    args.weight_member = weight_member;
    args.weight = weight.const_data_ptr<scalar_t>();
    if (rows.defined()) {
      args.rows = rows.const_data_ptr<scalar_t>();
      args.row_width = rows.size(1);
    }
    for (size_t k = 0; k < tensors.size(); ++k) {
      args.tensors[k] = tensors[k].data_ptr<scalar_t>();
      args.widths[k] = tensors[k].size(1);
    }
    const auto* tasks = static_cast<const MapTask*>(plan.device_tasks.const_data_ptr());
    args.terms = static_cast<const MapTerm*>(plan.device_terms.const_data_ptr());
    for (size_t s = 0; s + 1 < plan.stage_begin.size(); ++s) {
      args.tasks = tasks + plan.stage_begin[s];
      args.n_tasks = plan.stage_begin[s + 1] - plan.stage_begin[s];
      int64_t warps = 0;
      for (int64_t k = plan.stage_begin[s]; k < plan.stage_begin[s + 1]; ++k)
        warps +=
            row_tiles(atoms, plan.tasks[k].d) * column_tiles(plan.tasks[k].mul_out) * n_members;
      C10_CUDA_CHECK(launch_maps(args, warps, c10::cuda::getCurrentCUDAStream()));
    }
  });
}

// The map of blocks, one after another: y [n, width] = x times their matrices.
Tensor map_rows(const Problem& n, const Tensor& x, const Tensor& weight, const BySpecies& atoms,
                int64_t width, bool transposed) {
  MapProblem problem{.maps = {},
                     .widths = {x.size(1), width},
                     .n_given = 1,
                     .n_members = n.n_members,
                     .has_rows = false};
  for (Block b : n.blocks) {
    if (transposed) {
      std::swap(b.mul_in, b.mul_out);
      std::swap(b.in_offset, b.out_offset);
    }
    problem.maps.push_back(
        {.from = 0, .to = 1, .block = b, .weight_species = n.n_weights, .transposed = transposed});
  }
  const auto plan = map_plan_for(problem, x.device());
  const Tensor y = plan->covered[1] ? at::empty({n.n_atoms, width}, x.options())
                                    : at::zeros({n.n_atoms, width}, x.options());
  if (n.n_atoms > 0) run(*plan, {x, y}, atoms, n.n_members, weight, n.n_species * n.n_weights, {});
  return y;
}

Tensor outer(const Problem& n, const Tensor& x, const Tensor& grad, const BySpecies& atoms) {
  const int64_t n_parts = std::clamp<int64_t>(n.n_atoms / kAtomsOfPart, 1, 64);
  const Tensor parts = at::zeros({n_parts, n.n_members, n.n_species, n.n_weights}, x.options());
  const Tensor device_blocks = block_table_for(n.blocks, x.device());
  const auto n_blocks = static_cast<int64_t>(n.blocks.size());
  const int64_t step = linear::share_matrices(n.blocks) ? 1 : n_blocks;  // blocks of one launch
  AT_DISPATCH_FLOATING_TYPES(x.scalar_type(), "race::linear_backward", [&] {
    OuterArguments<scalar_t> args{};
    args.atoms = atoms;
    args.blocks = static_cast<const MapBlock*>(device_blocks.const_data_ptr());
    args.n_members = n.n_members;
    args.n_parts = n_parts;
    args.numel = n.n_weights;
    args.x = x.const_data_ptr<scalar_t>();
    args.grad = grad.const_data_ptr<scalar_t>();
    args.x_width = x.size(1);
    args.grad_width = grad.size(1);
    args.dweight = parts.mutable_data_ptr<scalar_t>();
    for (int64_t first = 0; first < n_blocks; first += step) {
      args.first_block = first;
      args.last_block = first + step;
      int64_t warps = 0;
      for (int64_t k = first; k < first + step; ++k)
        warps += (n.blocks[k].mul_in + kMapRows - 1) / kMapRows *
                 ((n.blocks[k].mul_out + 31) / 32) * n.n_members * n.n_species * n_parts;
      C10_CUDA_CHECK(launch_outer(args, warps, c10::cuda::getCurrentCUDAStream()));
    }
  });
  return n_parts == 1 ? parts.squeeze(0) : parts.sum(0);
}

Tensor forward(const Tensor& x, const Tensor& weight, const OptionalTensor& species,
               c10::IntArrayRef blocks, int64_t dim_out) {
  const Problem n({x, weight, species, blocks}, dim_out);
  const c10::cuda::OptionalCUDAGuard guard(x.device());
  const Species of(n.n_atoms, n.n_species, species);
  return map_rows(n, x.contiguous(), weight.contiguous(), of.atoms, dim_out, false);
}

std::tuple<Tensor, Tensor> backward(const Tensor& grad_in, const Tensor& x, const Tensor& weight,
                                    const OptionalTensor& species, c10::IntArrayRef blocks,
                                    std::array<bool, 2> mask) {
  const Problem n(grad_in, {x, weight, species, blocks});
  const c10::cuda::OptionalCUDAGuard guard(x.device());
  const Species of(n.n_atoms, n.n_species, species);
  const Tensor grad = grad_in.contiguous();
  Tensor dx, dweight;
  if (mask[0]) dx = map_rows(n, grad, weight.contiguous(), of.atoms, n.dim_in, true);
  if (mask[1]) dweight = outer(n, x.contiguous(), grad, of.atoms);
  return {dx, dweight};
}

std::vector<Tensor> run_chain(at::TensorList x, const std::optional<Tensor>& rows,
                              const Tensor& species, const Tensor& weight, int64_t n_species,
                              c10::IntArrayRef widths, c10::IntArrayRef blocks) {
  const chain::Problem n(x, rows, species, weight, n_species, widths, blocks);
  RACE_CHECK("chain", n.tensors.size() <= kMaxTensors, "x, widths",
             c10::str("at most ", kMaxTensors, " tensors"), n.tensors.size());
  const c10::cuda::OptionalCUDAGuard guard(weight.device());
  MapProblem problem{.maps = {},
                     .widths = {},
                     .n_given = n.n_given,
                     .n_members = weight.size(0),
                     .has_rows = rows.has_value()};
  for (const Tensor& t : n.tensors) problem.widths.push_back(t.size(1));
  bool by_species = rows.has_value();
  for (const chain::Link& link : n.links) {
    problem.maps.push_back({.from = link.from,
                            .to = link.to,
                            .block = link.block,
                            .weight_species = link.weight_step,
                            .transposed = false});
    by_species = by_species || link.weight_step > 0;
  }
  const auto plan = map_plan_for(problem, weight.device());
  for (size_t k = n.n_given; k < n.tensors.size(); ++k)
    if (!plan->covered[k]) n.start(k);
  const Species of(n.n_atoms, n_species, by_species ? OptionalTensor(species) : std::nullopt);
  if (n.n_atoms > 0)
    run(*plan, n.tensors, of.atoms, weight.size(0), weight, weight.size(1), n.rows);
  return n.made();
}

const bool registered = register_kernels("race::linear", [](torch::Library& library) {
  library.impl("linear", TORCH_FN(forward));
  library.impl("linear_backward", TORCH_FN(backward));
  library.impl("chain", TORCH_FN(run_chain));
});

}  // namespace
}  // namespace race::cuda
