// The operators of ../src/covariance_ops.cpp on CUDA tensors.
#include <ATen/Dispatch.h>
#include <ATen/ops/empty.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#include "../src/covariance_check.h"
#include "covariance_kernels.h"
#include "register.h"

namespace race::cuda {
namespace {

using at::Tensor;

Tensor force_covariance(const Tensor& raw_in, const Tensor& basis_in, c10::string_view name,
                        double sigma0, double jitter, double noise_bound) {
  const covariance::Head head = covariance::check_raw(raw_in, basis_in, name);
  const c10::cuda::OptionalCUDAGuard guard(raw_in.device());
  const Tensor raw = raw_in.contiguous(), basis = basis_in.to(at::kDouble).contiguous();
  const Tensor six = at::empty({raw.size(0), raw.size(1), 6}, raw.options());
  AT_DISPATCH_FLOATING_TYPES(raw.scalar_type(), "race::force_covariance", [&] {
    const HeadCovariance<scalar_t> args{.head = head,
                                        .sigma0 = sigma0,
                                        .jitter = jitter,
                                        .noise_bound = noise_bound,
                                        .basis = basis.const_data_ptr<double>(),
                                        .n_rows = raw.size(0) * raw.size(1),
                                        .n_out = raw.size(2),
                                        .raw = raw.const_data_ptr<scalar_t>(),
                                        .six = six.mutable_data_ptr<scalar_t>()};
    C10_CUDA_CHECK(launch_head_covariance(args, c10::cuda::getCurrentCUDAStream()));
  });
  return six;
}

Tensor member_covariance(const Tensor& forces_in) {
  covariance::check_forces(forces_in);
  const c10::cuda::OptionalCUDAGuard guard(forces_in.device());
  const Tensor forces = forces_in.contiguous();
  const Tensor six = at::empty({forces.size(0), 6}, forces.options().dtype(at::kDouble));
  AT_DISPATCH_FLOATING_TYPES(forces.scalar_type(), "race::member_covariance", [&] {
    const MemberCovariance<scalar_t> args{.n_rows = forces.size(0),
                                          .n_members = forces.size(1),
                                          .forces = forces.const_data_ptr<scalar_t>(),
                                          .six = six.mutable_data_ptr<double>()};
    C10_CUDA_CHECK(launch_member_covariance(args, c10::cuda::getCurrentCUDAStream()));
  });
  return six;
}

Tensor log_determinant(const Tensor& six_in) {
  covariance::check_columns(six_in);
  const c10::cuda::OptionalCUDAGuard guard(six_in.device());
  const Tensor six = six_in.to(at::kDouble).contiguous();
  const Tensor result = at::empty(six.sizes().slice(0, six.dim() - 1), six.options());
  const LogDeterminant args{.n_rows = result.numel(),
                            .six = six.const_data_ptr<double>(),
                            .result = result.mutable_data_ptr<double>()};
  C10_CUDA_CHECK(launch_log_determinant(args, c10::cuda::getCurrentCUDAStream()));
  return result;
}

const bool registered = register_kernels("race::force_covariance", [](torch::Library& library) {
  library.impl("force_covariance", TORCH_FN(force_covariance));
  library.impl("member_covariance", TORCH_FN(member_covariance));
  library.impl("log_determinant", TORCH_FN(log_determinant));
});

}  // namespace
}  // namespace race::cuda
