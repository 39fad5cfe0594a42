// race::linear in operations of torch alone, for any device: batched products over members, one per
// block and species.
#include <ATen/ATen.h>

#include "linear_problem.h"

namespace race {
namespace {

using at::Tensor;
using linear::Block;
using linear::Problem;

// Atoms grouped by species; `order` is undefined if there is one group, in the atoms' own order.
struct Groups {
  Tensor order;
  std::vector<int64_t> begin;

  Groups(const Problem& n, const OptionalTensor& species) : begin{0} {
    if (!species.has_value() || n.n_atoms == 0) {
      begin.resize(n.n_species + 1, n.n_atoms);
      return;
    }
    if (const int64_t lowest = species->min().item<int64_t>(); lowest < 0)
      linear::refuse_species("linear", lowest, n.n_species);
    const Tensor counts = at::bincount(*species, {}, n.n_species).cpu();
    if (counts.size(0) > n.n_species)
      linear::refuse_species("linear", counts.size(0) - 1, n.n_species);
    for (int64_t s = 0; s < n.n_species; ++s)
      begin.push_back(begin.back() + counts[s].item<int64_t>());
    if (n.n_species > 1) order = species->argsort(/*stable=*/true, /*dim=*/0);
  }

  Tensor sorted(const Tensor& rows) const {
    return order.defined() ? rows.index_select(0, order) : rows;
  }
  Tensor restored(const Tensor& rows) const {
    return order.defined() ? at::empty_like(rows).index_copy_(0, order, rows) : rows;
  }
};

// Columns of a block as [M, n * d, mul].
Tensor cut(const Problem& n, const Tensor& rows, int64_t d, int64_t mul, int64_t offset) {
  const Tensor block =
      rows.narrow(1, offset, d * n.n_members * mul).reshape({n.n_atoms, d, n.n_members, mul});
  return block.permute({2, 0, 1, 3}).reshape({n.n_members, n.n_atoms * d, mul});
}

// [M, S, rows, columns]
Tensor matrices(const Problem& n, const Tensor& weight, const Block& b) {
  return weight.narrow(2, b.weight_offset, b.mul_in * b.mul_out)
      .reshape({n.n_members, n.n_species, b.mul_in, b.mul_out});
}

// x (atoms sorted) -> x W, or with `transposed` the map of the transposed matrices back to x's
// columns.
Tensor product(const Problem& n, const Groups& groups, const Tensor& x, const Tensor& weight,
               int64_t width, bool transposed) {
  Tensor y = at::zeros({n.n_atoms, width}, x.options());
  for (const Block& b : n.blocks) {
    const int64_t from = transposed ? b.mul_out : b.mul_in, to = transposed ? b.mul_in : b.mul_out;
    const Tensor rows = cut(n, x, b.d, from, transposed ? b.out_offset : b.in_offset);
    const Tensor matrix =
        transposed ? matrices(n, weight, b).transpose(2, 3) : matrices(n, weight, b);
    Tensor result = at::empty({n.n_members, n.n_atoms * b.d, to}, x.options());
    for (int64_t s = 0; s < n.n_species; ++s) {
      const int64_t first = groups.begin[s] * b.d, count = groups.begin[s + 1] * b.d - first;
      if (count > 0)
        result.narrow(1, first, count).copy_(rows.narrow(1, first, count).bmm(matrix.select(1, s)));
    }
    const Tensor part = result.view({n.n_members, n.n_atoms, b.d, to})
                            .permute({1, 2, 0, 3})
                            .reshape({n.n_atoms, b.d * n.n_members * to});
    y.narrow(1, transposed ? b.in_offset : b.out_offset, part.size(1)).add_(part);
  }
  return y;
}

}  // namespace

Tensor linear_aten(const Tensor& x, const Tensor& weight, const OptionalTensor& species,
                   c10::IntArrayRef rows, int64_t dim_out) {
  const Problem n({x, weight, species, rows}, dim_out);
  const Groups groups(n, species);
  return groups.restored(product(n, groups, groups.sorted(x), weight, dim_out, false));
}

std::tuple<Tensor, Tensor> linear_backward_aten(const Tensor& grad, const Tensor& x,
                                                const Tensor& weight, const OptionalTensor& species,
                                                c10::IntArrayRef rows, std::array<bool, 2> mask) {
  const Problem n(grad, {x, weight, species, rows});
  const Groups groups(n, species);
  const Tensor y = groups.sorted(grad);
  Tensor dx, dweight;
  if (mask[0]) dx = groups.restored(product(n, groups, y, weight, n.dim_in, true));
  if (mask[1]) {
    dweight = at::zeros({n.n_members, n.n_species, n.n_weights}, weight.options());
    const Tensor sorted = groups.sorted(x);
    for (const Block& b : n.blocks) {
      const Tensor left = cut(n, sorted, b.d, b.mul_in, b.in_offset).transpose(1, 2),
                   right = cut(n, y, b.d, b.mul_out, b.out_offset);
      for (int64_t s = 0; s < n.n_species; ++s) {
        const int64_t first = groups.begin[s] * b.d, count = groups.begin[s + 1] * b.d - first;
        if (count > 0)
          dweight.select(1, s)
              .narrow(1, b.weight_offset, b.mul_in * b.mul_out)
              .add_(left.narrow(2, first, count)
                        .bmm(right.narrow(1, first, count))
                        .reshape({n.n_members, b.mul_in * b.mul_out}));
      }
    }
  }
  return {dx, dweight};
}

}  // namespace race
