#include "race/product.h"

#include <algorithm>

#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>

#include "../simd/product_kernel.h"
#include "isa.h"
#include "linear_groups.h"
#include "product_plan.h"

namespace race {
namespace {

using at::Tensor;
using product::Arguments;
using product::Problem;

constexpr int64_t kGrain = 1 << 17;  // fewest multiply-adds that pay for waking a thread

const IsaChoice<product::KernelSet>& choice() {
  static const auto chosen = RACE_CHOOSE_ISA(product);
  return chosen;
}

// The contiguous operands of one call, with its sizes and groups of atoms.
struct Call {
  Problem n;
  ProductOperands in;
  linear::Groups groups;

  Call(const Problem& n, const ProductOperands& o)
      : n(n),
        in{.x = o.x.contiguous(),
           .weight = o.weight.contiguous(),
           .species = o.species.contiguous(),
           .paths = o.paths,
           .cg = o.cg},
        groups("product", n.n_atoms, n.n_species, in.species) {}

  template <class T>
  Arguments<T> args(const product::Plan<T>& plan) const {
    Arguments<T> args{};
    args.maps = plan.maps();
    args.n_components = n.n_components;
    args.n_paths = n.n_paths;
    args.n_members = n.n_members;
    args.n_channels = n.n_channels;
    args.n_species = n.n_species;
    args.order = groups.order.empty() ? nullptr : groups.order.data();
    args.begin = groups.begin.data();
    args.x = in.x.const_data_ptr<T>();
    args.weight = in.weight.const_data_ptr<T>();
    return args;
  }
};

// Threads share the atoms. Adjoints of the weights go to a copy per thread; the copies are summed
// in order of thread. The result depends on the number of threads by rounding only.
template <class T>
void launch(const Problem& n, const product::Plan<T>& plan, const Arguments<T>& args, bool second,
            Tensor& dweight) {
  const auto run = second ? choice().of<T>().second : choice().of<T>().first;
  const int64_t per_atom =
      1 + static_cast<int64_t>(plan.entries.size()) * n.n_members * n.n_channels;
  const int64_t threads = std::clamp<int64_t>(n.n_atoms * per_atom / kGrain, 1,
                                              std::max<int64_t>(1, at::get_num_threads()));
  const int64_t size = product::scratch_size<T>(n.n_components, n.n_paths);
  const Tensor scratch =
      at::empty({threads, size}, at::TensorOptions().dtype(c10::CppTypeToScalarType<T>::value));
  Tensor copies;
  if (dweight.defined() && threads > 1)
    copies = at::zeros({threads, dweight.numel()}, dweight.options());
  at::parallel_for(0, threads, 1, [&](int64_t first, int64_t last) {
    for (int64_t t = first; t < last; ++t) {
      Arguments<T> mine = args;
      mine.scratch = scratch.data_ptr<T>() + t * size;
      if (copies.defined()) mine.dweight = copies.data_ptr<T>() + t * copies.size(1);
      run(mine, n.n_atoms * t / threads, n.n_atoms * (t + 1) / threads);
    }
  });
  if (copies.defined()) dweight = copies.sum(0).view(dweight.sizes());
}

template <class T>
T* pointer(const Tensor& t) {
  return t.defined() ? t.data_ptr<T>() : nullptr;
}

}  // namespace

Tensor product_cpu(const ProductOperands& operands) {
  const Call call(Problem(operands), operands);
  const Tensor out = at::empty_like(call.in.x);
  AT_DISPATCH_FLOATING_TYPES(out.scalar_type(), "race::product", [&] {
    const auto plan = product::plan_for<scalar_t>(call.n, call.in.cg);
    Arguments<scalar_t> args = call.args<scalar_t>(*plan);
    args.out = out.data_ptr<scalar_t>();
    Tensor none;
    launch(call.n, *plan, args, false, none);
  });
  return out;
}

std::array<Tensor, 2> product_backward_cpu(const Tensor& grad, const ProductOperands& operands,
                                           std::array<bool, 2> mask) {
  const Call call(Problem(grad, operands), operands);
  const Tensor g = grad.contiguous();
  Tensor dx, dweight;
  if (mask[0]) dx = at::empty_like(call.in.x);
  if (mask[1]) dweight = at::zeros_like(call.in.weight);
  AT_DISPATCH_FLOATING_TYPES(g.scalar_type(), "race::product_backward", [&] {
    const auto plan = product::plan_for<scalar_t>(call.n, call.in.cg);
    Arguments<scalar_t> args = call.args<scalar_t>(*plan);
    args.grad = g.const_data_ptr<scalar_t>();
    args.dx = pointer<scalar_t>(dx);
    args.dweight = pointer<scalar_t>(dweight);
    launch(call.n, *plan, args, false, dweight);
  });
  return {dx, dweight};
}

std::array<Tensor, 3> product_double_backward_cpu(const ProductBars& bars, const Tensor& grad,
                                                  const ProductOperands& operands,
                                                  std::array<bool, 3> mask) {
  const Call call(Problem(bars, grad, operands), operands);
  const Tensor g = grad.contiguous();
  const Tensor bar_x = bars.x.defined() ? bars.x.contiguous() : at::zeros_like(call.in.x);
  const Tensor bar_weight = bars.weight.defined() ? bars.weight.contiguous() : bars.weight;
  Tensor dgrad, dx, dweight;
  if (mask[0]) dgrad = at::empty_like(call.in.x);
  if (mask[1]) dx = at::empty_like(call.in.x);
  if (mask[2]) dweight = at::zeros_like(call.in.weight);
  AT_DISPATCH_FLOATING_TYPES(g.scalar_type(), "race::product_double_backward", [&] {
    const auto plan = product::plan_for<scalar_t>(call.n, call.in.cg);
    Arguments<scalar_t> args = call.args<scalar_t>(*plan);
    args.grad = mask[1] || mask[2] ? g.const_data_ptr<scalar_t>() : nullptr;
    args.bar_x = bar_x.const_data_ptr<scalar_t>();
    args.bar_weight = pointer<scalar_t>(bar_weight);
    args.out = pointer<scalar_t>(dgrad);
    args.dx = pointer<scalar_t>(dx);
    args.dweight = pointer<scalar_t>(dweight);
    launch(call.n, *plan, args, true, dweight);
  });
  return {dgrad, dx, dweight};
}

}  // namespace race
