// race::product and its derivatives on CUDA tensors. One result differs from the CPU's, to avoid
// waiting for the device: rows of atoms whose species is outside [0, S) are NaN.
#include <algorithm>
#include <utility>

#include <ATen/Dispatch.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#include "../src/product_dispatch.h"
#include "../src/product_plan.h"
#include "../src/recent.h"
#include "crossings.h"
#include "groups.h"
#include "product_kernels.h"
#include "register.h"
#include "remembered.h"

namespace race::cuda {
namespace {

using at::Tensor;
using product::Problem;

constexpr size_t kKept = 64;          // plans on devices: layers times dtypes of a few models
constexpr int64_t kAtomsOfPart = 32;  // atoms whose adjoints of weights one thread sums

template <class T>
struct DevicePlan {
  std::shared_ptr<const product::Plan<T>> plan;
  Tensor begins, runs, entries;

  DevicePlan(const Problem& n, const Tensor& cg)
      : plan(product::plan_for<T>(n, read_back(cg))),
        begins(upload(plan->begins, cg.device())),
        runs(upload(plan->runs, cg.device())),
        entries(upload(plan->entries, cg.device())) {}

  product::BilinearMaps<T> maps() const {
    return plan->maps(static_cast<const int32_t*>(begins.const_data_ptr()),
                      static_cast<const product::Run*>(runs.const_data_ptr()),
                      static_cast<const product::Entry<T>*>(entries.const_data_ptr()));
  }
};

struct PlanKey {
  Remembered cg;
  int64_t n_components;
  std::vector<int64_t> paths;

  bool gone() const { return cg.gone(); }
};

// The plan is remembered with the tensor of coefficients, so that a step waits for none.
template <class T>
std::shared_ptr<const DevicePlan<T>> device_plan_for(const Problem& n, const Tensor& cg) {
  const auto make = [&] { return std::make_shared<const DevicePlan<T>>(n, cg); };
  if (cg.is_inference()) return make();  // inference tensors have no versions
  static auto& plans = *new Recent<PlanKey, std::shared_ptr<const DevicePlan<T>>>(kKept);
  return plans.get(
      [&](const PlanKey& key) {
        return key.n_components == n.n_components && key.cg.is(cg) &&
               n.paths == c10::IntArrayRef(key.paths);
      },
      [&] { return std::pair{PlanKey{Remembered(cg), n.n_components, n.paths.vec()}, make()}; });
}

template <class T>
T* pointer(const Tensor& t) {
  return t.defined() ? t.data_ptr<T>() : nullptr;
}

struct Results {
  Tensor out, dx, dweight;
};

// One order of the program (see src/bilinear_map.h); `second`: tangents along bar_x, bar_weight.
template <class T>
Results compute(const Problem& n, const ProductOperands& o, const Tensor& grad,
                const ProductBars& bars, bool second, bool want_out, bool want_dx,
                bool want_dweight) {
  const cudaStream_t stream = c10::cuda::getCurrentCUDAStream();
  const auto plan = device_plan_for<T>(n, o.cg);
  const Tensor x = o.x.contiguous(), weight = o.weight.contiguous(),
               species = o.species.contiguous();
  const auto rows = [&](bool wanted) { return wanted ? at::empty_like(x) : Tensor(); };
  const bool back = want_dx || want_dweight;
  const Tensor p2 = rows(true), p2_bar = rows(second), bar_p2 = rows(back),
               bar_p2_bar = rows(back && second);
  Results results{rows(want_out), rows(want_dx), {}};

  ProductArguments<T> args{};
  args.maps = plan->maps();
  args.n_atoms = n.n_atoms;
  args.n_components = n.n_components;
  args.n_paths = n.n_paths;
  args.n_members = n.n_members;
  args.n_channels = n.n_channels;
  args.n_species = n.n_species;
  args.species = species.const_data_ptr<int64_t>();
  args.grad = back ? grad.const_data_ptr<T>() : nullptr;
  args.x = {pointer<T>(x), pointer<T>(bars.x)};
  args.weight = {pointer<T>(weight), pointer<T>(bars.weight)};
  args.p2 = {pointer<T>(p2), pointer<T>(p2_bar)};
  args.bar_p2 = {pointer<T>(bar_p2), pointer<T>(bar_p2_bar)};
  args.out = pointer<T>(results.out);
  args.dx = pointer<T>(results.dx);
  C10_CUDA_CHECK(launch_product(args, second, stream));
  if (!want_dweight) return results;

  const auto by_species = groups_for(o.species, n.n_species);
  const int64_t width = n.n_members * n.n_channels;
  const int64_t n_parts = std::clamp<int64_t>(n.n_atoms / kAtomsOfPart, 1, 1024);
  const Tensor parts = at::zeros({n_parts, n.n_species, n.n_paths, width}, x.options());
  ProductWeights<T> sums{};
  sums.maps = args.maps;
  sums.n_components = n.n_components;
  sums.n_paths = n.n_paths;
  sums.width = width;
  sums.n_species = n.n_species;
  sums.n_parts = n_parts;
  sums.order = by_species->order.const_data_ptr<int64_t>();
  sums.begin = by_species->begin.const_data_ptr<int64_t>();
  sums.grad = args.grad;
  sums.x = args.x;
  sums.p2 = {args.p2.value, args.p2.tangent};
  sums.bar_p2 = {args.bar_p2.value, args.bar_p2.tangent};
  sums.dweight = pointer<T>(parts);
  C10_CUDA_CHECK(launch_product_weights(sums, second, stream));
  results.dweight = parts.sum(0)
                        .view({n.n_species, n.n_paths, n.n_members, n.n_channels})
                        .permute({2, 0, 1, 3})
                        .contiguous();
  return results;
}

Tensor forward(const ProductOperands& operands) {
  const c10::cuda::OptionalCUDAGuard guard(operands.x.device());
  const Problem n(operands);
  return AT_DISPATCH_FLOATING_TYPES(operands.x.scalar_type(), "race::product", [&] {
    return compute<scalar_t>(n, operands, {}, {}, false, true, false, false).out;
  });
}

std::array<Tensor, 2> backward(const Tensor& grad, const ProductOperands& operands,
                               std::array<bool, 2> mask) {
  const c10::cuda::OptionalCUDAGuard guard(operands.x.device());
  const Problem n(grad, operands);
  Results results;
  AT_DISPATCH_FLOATING_TYPES(grad.scalar_type(), "race::product_backward", [&] {
    results = compute<scalar_t>(n, operands, grad.contiguous(), {}, false, false, mask[0], mask[1]);
  });
  return {results.dx, results.dweight};
}

std::array<Tensor, 3> double_backward(const ProductBars& bars, const Tensor& grad,
                                      const ProductOperands& operands, std::array<bool, 3> mask) {
  const c10::cuda::OptionalCUDAGuard guard(operands.x.device());
  const Problem n(bars, grad, operands);
  const auto dense = [](const Tensor& t) { return t.defined() ? t.contiguous() : t; };
  Results results;
  AT_DISPATCH_FLOATING_TYPES(grad.scalar_type(), "race::product_double_backward", [&] {
    results = compute<scalar_t>(n, operands, grad.contiguous(), {dense(bars.x), dense(bars.weight)},
                                true, mask[0], mask[1], mask[2]);
  });
  return {results.out, results.dx, results.dweight};
}

const bool registered = register_kernels("race::product", [](torch::Library& library) {
  library.impl("product", TORCH_FN(product::forward<forward>));
  library.impl("product_backward", TORCH_FN(product::backward<backward>));
  library.impl("product_double_backward", TORCH_FN(product::double_backward<double_backward>));
});

}  // namespace
}  // namespace race::cuda
