#include "race/linear.h"

#include <algorithm>
#include <utility>
#include <vector>

#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>

#include "linear_groups.h"

namespace race {
namespace {

using at::Tensor;
using linear::Block;
using linear::Groups;
using linear::kernels;
using linear::kGrain;
using linear::Problem;

template <class T>
linear::Arguments<T> make_arguments(const Problem& n, const std::vector<Block>& blocks,
                                    const Groups& groups, const Tensor& x, int64_t y_width,
                                    int64_t numel) {
  linear::Arguments<T> args{};
  args.blocks = blocks.data();
  args.n_blocks = blocks.size();
  args.n_members = n.n_members;
  args.n_species = n.n_species;
  args.order = groups.order.empty() ? nullptr : groups.order.data();
  args.begin = groups.begin.data();
  args.x = x.const_data_ptr<T>();
  args.x_stride = x.size(1);
  args.y_stride = y_width;
  args.weight_member = n.n_species * numel;
  args.weight_species = numel;
  return args;
}

// Multiply-adds per atom.
int64_t work_of(const Problem& n, const std::vector<Block>& blocks) {
  int64_t work = 1;
  for (const Block& b : blocks) work += b.d * n.n_members * b.mul_in * b.mul_out;
  return work;
}

// The product x W; columns that no block writes are zero.
template <class T>
Tensor product(const Problem& n, const std::vector<Block>& blocks, const Groups& groups,
               const Tensor& x, const T* weight, int64_t numel, int64_t dim_out) {
  std::vector<linear::Range> written;
  int64_t columns = 0;
  for (const Block& b : blocks) {
    columns += b.d * n.n_members * b.mul_out;
    written.emplace_back(b.out_offset, b.out_offset + b.d * n.n_members * b.mul_out);
  }
  const bool once = !linear::overlap(written), covered = once && columns == dim_out;
  const Tensor y = covered ? at::empty({n.n_atoms, dim_out}, x.options())
                           : at::zeros({n.n_atoms, dim_out}, x.options());
  const linear::Multiply<T> args{make_arguments<T>(n, blocks, groups, x, dim_out, numel), weight,
                                 y.data_ptr<T>(), /*accumulate=*/!once};
  const int64_t grain = std::max<int64_t>(1, kGrain / work_of(n, blocks));
  at::parallel_for(0, n.n_atoms, grain,
                   [&](int64_t first, int64_t last) { kernels<T>().product(args, first, last); });
  return y;
}

// Blocks of the transposed map y -> x, and their matrices [M, S, numel'], without those of absent
// species.
template <class T>
std::pair<std::vector<Block>, Tensor> transposed(const Problem& n, const Groups& groups,
                                                 const Tensor& weight) {
  const std::vector<Block>& blocks = n.blocks;
  std::vector<Block> swapped;
  int64_t numel = 0;
  for (const Block& b : blocks) {
    swapped.push_back({b.d, b.mul_out, b.mul_in, b.out_offset, b.in_offset, numel});
    numel += b.mul_in * b.mul_out;
  }
  Tensor result = at::empty({n.n_members, n.n_species, numel}, weight.options());
  const T* from = weight.const_data_ptr<T>();
  T* to = result.data_ptr<T>();
  at::parallel_for(0, n.n_members * n.n_species, std::max<int64_t>(1, kGrain / (8 * numel + 1)),
                   [&](int64_t first, int64_t last) {
                     for (int64_t ms = first; ms < last; ++ms) {
                       if (groups.count(ms % n.n_species) == 0) continue;
                       for (size_t k = 0; k < blocks.size(); ++k)
                         kernels<T>().transpose(from + ms * n.n_weights + blocks[k].weight_offset,
                                                blocks[k].mul_in, blocks[k].mul_out,
                                                to + ms * numel + swapped[k].weight_offset);
                     }
                   });
  return {std::move(swapped), result};
}

template <class T>
Tensor outer(const Problem& n, const Groups& groups, const Tensor& x, const Tensor& grad) {
  const std::vector<Block>& blocks = n.blocks;
  Tensor dweight = at::zeros({n.n_members, n.n_species, n.n_weights}, x.options());
  std::vector<linear::OuterTask> tasks;
  int64_t work = 1;
  for (int64_t m = 0; m < n.n_members; ++m)
    for (int64_t s = 0; s < n.n_species; ++s)
      for (size_t k = 0; k < blocks.size() && groups.count(s) > 0; ++k)
        for (int64_t row = 0; row < blocks[k].mul_in; row += linear::kOuterRows) {
          tasks.push_back({m, s, static_cast<int64_t>(k), row,
                           std::min<int64_t>(linear::kOuterRows, blocks[k].mul_in - row)});
          work += groups.count(s) * blocks[k].d * tasks.back().count * blocks[k].mul_out;
        }
  const linear::Outer<T> args{make_arguments<T>(n, blocks, groups, x, grad.size(1), n.n_weights),
                              tasks.data(), grad.const_data_ptr<T>(), dweight.data_ptr<T>()};
  // If several blocks add to the same numbers, one thread adds in order.
  const bool shared = linear::share_matrices(blocks);
  const int64_t n_tasks = tasks.size(),
                grain = shared ? n_tasks : std::max<int64_t>(1, kGrain * n_tasks / work);
  at::parallel_for(0, n_tasks, std::max<int64_t>(1, grain),
                   [&](int64_t first, int64_t last) { kernels<T>().outer(args, first, last); });
  return dweight;
}

}  // namespace

const char* linear_isa() { return linear::choice().name; }

Tensor linear_cpu(const Tensor& x, const Tensor& weight, const OptionalTensor& species,
                  c10::IntArrayRef rows, int64_t dim_out) {
  const Problem n({x, weight, species, rows}, dim_out);
  const Groups groups("linear", n.n_atoms, n.n_species, species);
  const Tensor x1 = x.contiguous(), weight1 = weight.contiguous();
  Tensor out;
  AT_DISPATCH_FLOATING_TYPES(x.scalar_type(), "race::linear", [&] {
    out = product<scalar_t>(n, n.blocks, groups, x1, weight1.const_data_ptr<scalar_t>(),
                            n.n_weights, dim_out);
  });
  return out;
}

std::tuple<Tensor, Tensor> linear_backward_cpu(const Tensor& grad, const Tensor& x,
                                               const Tensor& weight, const OptionalTensor& species,
                                               c10::IntArrayRef rows, std::array<bool, 2> mask) {
  const Problem n(grad, {x, weight, species, rows});
  const Groups groups("linear", n.n_atoms, n.n_species, species);
  const Tensor grad1 = grad.contiguous();
  Tensor dx, dweight;
  AT_DISPATCH_FLOATING_TYPES(x.scalar_type(), "race::linear_backward", [&] {
    if (mask[0]) {
      const auto [swapped, matrices] = transposed<scalar_t>(n, groups, weight.contiguous());
      dx =
          product<scalar_t>(n, swapped, groups, grad1, matrices.template const_data_ptr<scalar_t>(),
                            matrices.size(2), n.dim_in);
    }
    if (mask[1]) dweight = outer<scalar_t>(n, groups, x.contiguous(), grad1);
  });
  return {dx, dweight};
}

}  // namespace race
