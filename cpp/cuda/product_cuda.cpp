#include "product_cuda.h"

#include <algorithm>
#include <list>
#include <mutex>

#include <ATen/Dispatch.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#include "../src/product_plan.h"
#include "groups.h"
#include "product_kernels.h"
#include "remembered.h"
#include "upload.h"

namespace race {
namespace {

using at::Tensor;
using namespace cuda;
using product::Sizes;

constexpr size_t kKept = 64;          // plans on devices: layers times dtypes of a few models
constexpr int64_t kAtomsOfPart = 32;  // atoms whose adjoints of weights one thread sums

template <class T>
struct DevicePlan {
  std::shared_ptr<const product::Plan<T>> plan;
  Tensor begins, runs, entries;

  DevicePlan(const Sizes& n, c10::IntArrayRef paths, const Tensor& cg)
      : plan(product::plan_for<T>(n, paths, cg.cpu())),
        begins(upload(plan->begins, cg.device())),
        runs(upload(plan->runs, cg.device())),
        entries(upload(plan->entries, cg.device())) {}

  product::Lists<T> lists() const {
    return plan->lists(static_cast<const int32_t*>(begins.const_data_ptr()),
                       static_cast<const product::Run*>(runs.const_data_ptr()),
                       static_cast<const product::Entry<T>*>(entries.const_data_ptr()));
  }
};

// The plan is remembered with the tensor of coefficients, so that a step waits for none.
template <class T>
std::shared_ptr<const DevicePlan<T>> device_plan_for(const Sizes& n, c10::IntArrayRef paths,
                                                     const Tensor& cg) {
  if (cg.is_inference())
    return std::make_shared<DevicePlan<T>>(n, paths, cg);  // inference tensors have no
                                                           // versions
  struct Kept {
    Remembered cg;
    int64_t n_components;
    std::vector<int64_t> paths;
    std::shared_ptr<const DevicePlan<T>> plan;
  };
  static std::mutex mutex;
  static auto& kept = *new std::list<Kept>;  // never destroyed: tensors outlive no CUDA context
  const std::lock_guard lock(mutex);
  kept.remove_if([](const Kept& k) { return k.cg.gone(); });
  for (auto k = kept.begin(); k != kept.end(); ++k)
    if (k->n_components == n.n_components && k->cg.is(cg) && paths == c10::IntArrayRef(k->paths)) {
      kept.splice(kept.begin(), kept, k);
      return k->plan;
    }
  auto plan = std::make_shared<DevicePlan<T>>(n, paths, cg);
  kept.push_front({Remembered(cg), n.n_components, paths.vec(), plan});
  if (kept.size() > kKept) kept.pop_back();
  return plan;
}

template <class T>
T* pointer(const Tensor& t) {
  return t.defined() ? t.data_ptr<T>() : nullptr;
}

struct Results {
  Tensor out, dx, dweight;
};

// One order of the program (see src/product_list.h); `second`: tangents along bar_x, bar_weight.
template <class T>
Results compute(const ProductOperands& o, const Tensor& grad, const ProductBars& bars, bool second,
                bool want_out, bool want_dx, bool want_dweight) {
  const Sizes n = product::check(o);
  const cudaStream_t stream = c10::cuda::getCurrentCUDAStream();
  const auto plan = device_plan_for<T>(n, o.paths, o.cg);
  const Tensor x = o.x.contiguous(), weight = o.weight.contiguous(),
               species = o.species.contiguous();
  const auto rows = [&](bool wanted) { return wanted ? at::empty_like(x) : Tensor(); };
  const bool back = want_dx || want_dweight;
  const Tensor p2 = rows(true), p2_bar = rows(second), bar_p2 = rows(back),
               bar_p2_bar = rows(back && second);
  Results results{rows(want_out), rows(want_dx), {}};

  ProductJob<T> job{};
  job.lists = plan->lists();
  job.n_atoms = n.n_atoms;
  job.n_components = n.n_components;
  job.n_paths = n.n_paths;
  job.n_members = n.n_members;
  job.n_channels = n.n_channels;
  job.n_species = n.n_species;
  job.species = species.const_data_ptr<int64_t>();
  job.grad = back ? grad.const_data_ptr<T>() : nullptr;
  job.x = {pointer<T>(x), pointer<T>(bars.x)};
  job.weight = {pointer<T>(weight), pointer<T>(bars.weight)};
  job.p2 = {pointer<T>(p2), pointer<T>(p2_bar)};
  job.bar_p2 = {pointer<T>(bar_p2), pointer<T>(bar_p2_bar)};
  job.out = pointer<T>(results.out);
  job.dx = pointer<T>(results.dx);
  C10_CUDA_CHECK(launch_product(job, second, stream));
  if (!want_dweight) return results;

  const auto by_species = groups_for(o.species, n.n_species);
  const int64_t width = n.n_members * n.n_channels;
  const int64_t n_parts = std::clamp<int64_t>(n.n_atoms / kAtomsOfPart, 1, 1024);
  const Tensor parts = at::zeros({n_parts, n.n_species, n.n_paths, width}, x.options());
  ProductWeights<T> sums{};
  sums.lists = job.lists;
  sums.n_components = n.n_components;
  sums.n_paths = n.n_paths;
  sums.width = width;
  sums.n_species = n.n_species;
  sums.n_parts = n_parts;
  sums.order = by_species->order.const_data_ptr<int64_t>();
  sums.begin = by_species->begin.const_data_ptr<int64_t>();
  sums.grad = job.grad;
  sums.x = job.x;
  sums.p2 = {job.p2.value, job.p2.tangent};
  sums.bar_p2 = {job.bar_p2.value, job.bar_p2.tangent};
  sums.dweight = pointer<T>(parts);
  C10_CUDA_CHECK(launch_product_weights(sums, second, stream));
  results.dweight = parts.sum(0)
                        .view({n.n_species, n.n_paths, n.n_members, n.n_channels})
                        .permute({2, 0, 1, 3})
                        .contiguous();
  return results;
}

}  // namespace

Tensor product_cuda(const ProductOperands& operands) {
  const c10::cuda::OptionalCUDAGuard guard(operands.x.device());
  product::check(operands);
  return AT_DISPATCH_FLOATING_TYPES(operands.x.scalar_type(), "race::product", [&] {
    return compute<scalar_t>(operands, {}, {}, false, true, false, false).out;
  });
}

std::array<Tensor, 2> product_backward_cuda(const Tensor& grad, const ProductOperands& operands,
                                            std::array<bool, 2> mask) {
  const c10::cuda::OptionalCUDAGuard guard(operands.x.device());
  product::check(operands);
  product::check_like("grad", grad, operands.x);
  Results results;
  AT_DISPATCH_FLOATING_TYPES(grad.scalar_type(), "race::product_backward", [&] {
    results = compute<scalar_t>(operands, grad.contiguous(), {}, false, false, mask[0], mask[1]);
  });
  return {results.dx, results.dweight};
}

std::array<Tensor, 3> product_double_backward_cuda(const ProductBars& bars, const Tensor& grad,
                                                   const ProductOperands& operands,
                                                   std::array<bool, 3> mask) {
  const c10::cuda::OptionalCUDAGuard guard(operands.x.device());
  product::check(operands);
  product::check_like("grad", grad, operands.x);
  product::check_like("bar_x", bars.x, operands.x);
  product::check_like("bar_weight", bars.weight, operands.weight);
  const auto dense = [](const Tensor& t) { return t.defined() ? t.contiguous() : t; };
  Results results;
  AT_DISPATCH_FLOATING_TYPES(grad.scalar_type(), "race::product_double_backward", [&] {
    results = compute<scalar_t>(operands, grad.contiguous(), {dense(bars.x), dense(bars.weight)},
                                true, mask[0], mask[1], mask[2]);
  });
  return {results.out, results.dx, results.dweight};
}

}  // namespace race
