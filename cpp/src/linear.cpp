#include "race/linear.h"

#include <algorithm>
#include <utility>
#include <vector>

#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>

#include "linear_check.h"
#include "linear_groups.h"

namespace race {
namespace {

using at::Tensor;
using linear::Block;
using linear::Groups;
using linear::kernels;
using linear::kGrain;
using linear::Sizes;

using Range = std::pair<int64_t, int64_t>;  // [begin, end)

bool disjoint(std::vector<Range> ranges) {
  std::sort(ranges.begin(), ranges.end());
  return std::adjacent_find(ranges.begin(), ranges.end(), [](const Range& a, const Range& b) {
           return b.first < a.second;
         }) == ranges.end();
}

template <class T>
linear::Job<T> make_job(const Sizes& n, const std::vector<Block>& blocks, const Groups& groups,
                        const Tensor& x, int64_t y_width, int64_t numel) {
  linear::Job<T> job{};
  job.blocks = blocks.data();
  job.n_blocks = blocks.size();
  job.n_members = n.members;
  job.n_species = n.species;
  job.order = groups.order.empty() ? nullptr : groups.order.data();
  job.begin = groups.begin.data();
  job.x = x.const_data_ptr<T>();
  job.x_stride = x.size(1);
  job.y_stride = y_width;
  job.weight_member = n.species * numel;
  job.weight_species = numel;
  return job;
}

// Multiply-adds per atom.
int64_t work_of(const Sizes& n, const std::vector<Block>& blocks) {
  int64_t work = 1;
  for (const Block& b : blocks) work += b.d * n.members * b.mul_in * b.mul_out;
  return work;
}

// The product x W; columns that no block writes are zero.
template <class T>
Tensor product(const Sizes& n, const std::vector<Block>& blocks, const Groups& groups,
               const Tensor& x, const T* weight, int64_t numel, int64_t dim_out) {
  std::vector<Range> written;
  int64_t columns = 0;
  for (const Block& b : blocks) {
    columns += b.d * n.members * b.mul_out;
    written.emplace_back(b.out_offset, b.out_offset + b.d * n.members * b.mul_out);
  }
  const bool once = disjoint(written), covered = once && columns == dim_out;
  const Tensor y = covered ? at::empty({n.atoms, dim_out}, x.options())
                           : at::zeros({n.atoms, dim_out}, x.options());
  const linear::Product<T> job{make_job<T>(n, blocks, groups, x, dim_out, numel), weight,
                               y.data_ptr<T>(), /*accumulate=*/!once};
  const int64_t grain = std::max<int64_t>(1, kGrain / work_of(n, blocks));
  at::parallel_for(0, n.atoms, grain,
                   [&](int64_t first, int64_t last) { kernels<T>().product(job, first, last); });
  return y;
}

// Blocks of the transposed map y -> x, and their matrices [M, S, numel'], without those of absent
// species.
template <class T>
std::pair<std::vector<Block>, Tensor> transposed(const Sizes& n, const std::vector<Block>& blocks,
                                                 const Groups& groups, const Tensor& weight) {
  std::vector<Block> swapped;
  int64_t numel = 0;
  for (const Block& b : blocks) {
    swapped.push_back({b.d, b.mul_out, b.mul_in, b.out_offset, b.in_offset, numel});
    numel += b.mul_in * b.mul_out;
  }
  Tensor result = at::empty({n.members, n.species, numel}, weight.options());
  const T* from = weight.const_data_ptr<T>();
  T* to = result.data_ptr<T>();
  at::parallel_for(0, n.members * n.species, std::max<int64_t>(1, kGrain / (8 * numel + 1)),
                   [&](int64_t first, int64_t last) {
                     for (int64_t ms = first; ms < last; ++ms) {
                       if (groups.count(ms % n.species) == 0) continue;
                       for (size_t k = 0; k < blocks.size(); ++k)
                         kernels<T>().transpose(from + ms * n.numel + blocks[k].weight_offset,
                                                blocks[k].mul_in, blocks[k].mul_out,
                                                to + ms * numel + swapped[k].weight_offset);
                     }
                   });
  return {std::move(swapped), result};
}

template <class T>
Tensor outer(const Sizes& n, const std::vector<Block>& blocks, const Groups& groups,
             const Tensor& x, const Tensor& grad) {
  Tensor dweight = at::zeros({n.members, n.species, n.numel}, x.options());
  std::vector<linear::OuterTask> tasks;
  int64_t work = 1;
  for (int64_t m = 0; m < n.members; ++m)
    for (int64_t s = 0; s < n.species; ++s)
      for (size_t k = 0; k < blocks.size() && groups.count(s) > 0; ++k)
        for (int64_t row = 0; row < blocks[k].mul_in; row += linear::kOuterRows) {
          tasks.push_back({m, s, static_cast<int64_t>(k), row,
                           std::min<int64_t>(linear::kOuterRows, blocks[k].mul_in - row)});
          work += groups.count(s) * blocks[k].d * tasks.back().count * blocks[k].mul_out;
        }
  const linear::Outer<T> job{make_job<T>(n, blocks, groups, x, grad.size(1), n.numel), tasks.data(),
                             grad.const_data_ptr<T>(), dweight.data_ptr<T>()};
  std::vector<Range> matrices;
  for (const Block& b : blocks)
    matrices.emplace_back(b.weight_offset, b.weight_offset + b.mul_in * b.mul_out);
  const bool shared =
      !disjoint(matrices);  // several blocks add to the same numbers: one thread then, in order
  const int64_t n_tasks = tasks.size(),
                grain = shared ? n_tasks : std::max<int64_t>(1, kGrain * n_tasks / work);
  at::parallel_for(0, n_tasks, std::max<int64_t>(1, grain),
                   [&](int64_t first, int64_t last) { kernels<T>().outer(job, first, last); });
  return dweight;
}

}  // namespace

const char* linear_isa() { return linear::choice().name; }

Tensor linear_cpu(const Tensor& x, const Tensor& weight, const OptionalTensor& species,
                  c10::IntArrayRef rows, int64_t dim_out) {
  const Sizes n = linear::check(x, weight, species, rows);
  const std::vector<Block> blocks = linear::parse(n, rows, dim_out);
  const Groups groups(n.atoms, n.species, species);
  const Tensor x1 = x.contiguous(), weight1 = weight.contiguous();
  Tensor out;
  AT_DISPATCH_FLOATING_TYPES(x.scalar_type(), "race::linear", [&] {
    out = product<scalar_t>(n, blocks, groups, x1, weight1.const_data_ptr<scalar_t>(), n.numel,
                            dim_out);
  });
  return out;
}

std::tuple<Tensor, Tensor> linear_backward_cpu(const Tensor& grad, const Tensor& x,
                                               const Tensor& weight, const OptionalTensor& species,
                                               c10::IntArrayRef rows, std::array<bool, 2> mask) {
  const Sizes n = linear::check(x, weight, species, rows);
  linear::check_rows("grad", grad, x);
  const std::vector<Block> blocks = linear::parse(n, rows, grad.size(1));
  const Groups groups(n.atoms, n.species, species);
  const Tensor grad1 = grad.contiguous();
  Tensor dx, dweight;
  AT_DISPATCH_FLOATING_TYPES(x.scalar_type(), "race::linear_backward", [&] {
    if (mask[0]) {
      const auto [swapped, matrices] = transposed<scalar_t>(n, blocks, groups, weight.contiguous());
      dx =
          product<scalar_t>(n, swapped, groups, grad1, matrices.template const_data_ptr<scalar_t>(),
                            matrices.size(2), n.dim_in);
    }
    if (mask[1]) dweight = outer<scalar_t>(n, blocks, groups, x.contiguous(), grad1);
  });
  return {dx, dweight};
}

}  // namespace race
