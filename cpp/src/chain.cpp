#include "race/chain.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <algorithm>

#include "chain_problem.h"
#include "linear_groups.h"
#include "operators.h"
#include "race/linear.h"

namespace race {
namespace {

using at::Tensor;
using linear::Block;

using chain::Link;
using chain::Problem;

constexpr int64_t kAtoms =
    64;  // atoms taken through the whole chain together: their features stay in the cache

template <class T>
void run(const Problem& chain) {
  const Tensor &weight = chain.weight, &species = chain.species, &rows = chain.rows;
  const int64_t n_species = chain.n_species;
  const linear::Groups groups("chain", chain.n_atoms, n_species, species);
  const int64_t* order = groups.order.empty() ? nullptr : groups.order.data();
  const int64_t M = weight.size(0);
  std::vector<linear::Multiply<T>> calls;
  int64_t work = 1;  // multiply-adds per atom
  for (const Link& link : chain.links) {
    const Tensor &from = chain.tensors[link.from], &to = chain.tensors[link.to];
    linear::Multiply<T> args{};
    args.blocks = &link.block;
    args.n_blocks = 1;
    args.n_members = M;
    args.n_species = n_species;
    args.order = order;
    args.begin = groups.begin.data();
    args.x = from.const_data_ptr<T>();
    args.x_stride = from.size(1);
    args.y = to.data_ptr<T>();
    args.y_stride = to.size(1);
    args.accumulate = true;
    args.weight = weight.const_data_ptr<T>();
    args.weight_member = weight.size(1);
    args.weight_species = link.weight_step;
    calls.push_back(args);
    work += link.block.d * M * link.block.mul_in * link.block.mul_out;
  }
  const Tensor z = species.contiguous();
  const int64_t* of = z.const_data_ptr<int64_t>();
  const auto start = [&](int64_t first, int64_t last) {
    const T* row = rows.defined() ? rows.const_data_ptr<T>() : nullptr;
    const int64_t dim_rows = rows.defined() ? rows.size(1) : 0;
    for (size_t k = chain.n_given; k < chain.tensors.size(); ++k) {
      const int64_t width = chain.tensors[k].size(1);
      T* to = chain.tensors[k].template data_ptr<T>();
      for (int64_t p = first; p < last; ++p) {
        const int64_t i = order ? order[p] : p;
        if (row)
          std::copy_n(row + of[i] * dim_rows, width, to + i * width);
        else
          std::fill_n(to + i * width, width, T(0));
      }
      if (row) row += width;
    }
  };
  at::parallel_for(0, chain.n_atoms, std::max<int64_t>(1, linear::kGrain / work),
                   [&](int64_t begin, int64_t end) {
                     for (int64_t first = begin; first < end; first += kAtoms) {
                       const int64_t last = std::min(end, first + kAtoms);
                       start(first, last);
                       for (const auto& args : calls)
                         linear::kernels<T>().product(args, first, last);
                     }
                   });
}

}  // namespace

std::vector<Tensor> chain_cpu(at::TensorList x, const std::optional<Tensor>& rows,
                              const Tensor& species, const Tensor& weight, int64_t n_species,
                              c10::IntArrayRef widths, c10::IntArrayRef blocks) {
  const Problem chain(x, rows, species, weight, n_species, widths, blocks);
  AT_DISPATCH_FLOATING_TYPES(weight.scalar_type(), "race::chain", [&] { run<scalar_t>(chain); });
  return chain.made();
}

std::vector<Tensor> chain_aten(at::TensorList x, const std::optional<Tensor>& rows,
                               const Tensor& species, const Tensor& weight, int64_t n_species,
                               c10::IntArrayRef widths, c10::IntArrayRef blocks) {
  const Problem chain(x, rows, species, weight, n_species, widths, blocks);
  chain.start();
  const int64_t M = weight.size(0);
  for (const Link& link : chain.links) {
    const Block& b = link.block;
    const int64_t S = link.weight_step ? n_species : 1;
    const Tensor matrices =
        weight.as_strided({M, S, b.mul_in * b.mul_out}, {weight.stride(0), link.weight_step, 1},
                          weight.storage_offset() + b.weight_offset);
    const Tensor part = chain.tensors[link.from].narrow(1, b.in_offset, b.d * M * b.mul_in);
    const std::optional<Tensor> of = S > 1 ? std::optional<Tensor>(species) : std::nullopt;
    const int64_t width = b.d * M * b.mul_out;
    chain.tensors[link.to]
        .narrow(1, b.out_offset, width)
        .add_(linear_aten(part, matrices, of, {b.d, b.mul_in, b.mul_out, 0, 0, 0}, width));
  }
  return chain.made();
}

namespace {

std::vector<Tensor> chain_meta(at::TensorList x, const std::optional<Tensor>& rows,
                               const Tensor& species, const Tensor& weight, int64_t n_species,
                               c10::IntArrayRef widths, c10::IntArrayRef blocks) {
  return Problem(x, rows, species, weight, n_species, widths, blocks).made();
}

const bool registered =
    register_operators("race::chain", __FILE__, __LINE__, [](torch::Library* library) {
      Operator(library,
               "chain(Tensor(a!)[] x, Tensor? rows, Tensor species, Tensor weight, int n_species, "
               "int[] widths, int[] blocks) -> Tensor[]")
          .cpu(TORCH_FN(chain_cpu))
          .portable(TORCH_FN(chain_aten))
          .meta(TORCH_FN(chain_meta));
    });

}  // namespace
}  // namespace race
