#include <ATen/Dispatch.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#include "../src/periodic_fold.h"
#include "groups.h"
#include "periodic_fold_kernels.h"
#include "register.h"

namespace race::cuda {
namespace {

using at::Tensor;

// Without float atomics: the same bits at every call.
void fold(const Tensor& rows, const Tensor& owner) {
  periodic_fold::check(rows, owner);
  const c10::cuda::OptionalCUDAGuard guard(rows.device());
  const int64_t n_owned = rows.size(0) - owner.size(0);
  const auto ghosts = groups_for(owner, n_owned);
  AT_DISPATCH_FLOATING_TYPES(rows.scalar_type(), "race::periodic_fold", [&] {
    const Fold<scalar_t> args{.n_owned = n_owned,
                              .width = rows.size(1),
                              .begin = ghosts->begin.const_data_ptr<int64_t>(),
                              .order = ghosts->order.const_data_ptr<int64_t>(),
                              .rows = rows.mutable_data_ptr<scalar_t>()};
    C10_CUDA_CHECK(launch_fold(args, c10::cuda::getCurrentCUDAStream()));
  });
}

const bool registered = register_kernels("race::periodic_fold", [](torch::Library& library) {
  library.impl("periodic_fold", TORCH_FN(fold));
});

}  // namespace
}  // namespace race::cuda
