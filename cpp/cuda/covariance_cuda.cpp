#include "covariance_cuda.h"

#include <ATen/Dispatch.h>
#include <ATen/ops/empty.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#include "../src/covariance_check.h"
#include "covariance_kernels.h"

namespace race {

using at::Tensor;
using namespace cuda;

Tensor force_covariance_cuda(const Tensor& raw_in, const Tensor& basis_in, c10::string_view name,
                             double sigma0, double jitter) {
  const covariance::Head head = covariance::check_raw(raw_in, basis_in, name);
  const c10::cuda::OptionalCUDAGuard guard(raw_in.device());
  const Tensor raw = raw_in.contiguous(), basis = basis_in.to(at::kDouble).contiguous();
  const Tensor six = at::empty({raw.size(0), raw.size(1), 6}, raw.options());
  AT_DISPATCH_FLOATING_TYPES(raw.scalar_type(), "race::force_covariance", [&] {
    const HeadCovariance<scalar_t> job{head,
                                       sigma0,
                                       jitter,
                                       basis.const_data_ptr<double>(),
                                       raw.size(0) * raw.size(1),
                                       raw.size(2),
                                       raw.const_data_ptr<scalar_t>(),
                                       six.mutable_data_ptr<scalar_t>()};
    C10_CUDA_CHECK(launch_head_covariance(job, c10::cuda::getCurrentCUDAStream()));
  });
  return six;
}

Tensor member_covariance_cuda(const Tensor& forces_in) {
  covariance::check_forces(forces_in);
  const c10::cuda::OptionalCUDAGuard guard(forces_in.device());
  const Tensor forces = forces_in.contiguous();
  const Tensor six = at::empty({forces.size(0), 6}, forces.options().dtype(at::kDouble));
  AT_DISPATCH_FLOATING_TYPES(forces.scalar_type(), "race::member_covariance", [&] {
    const MemberCovariance<scalar_t> job{forces.size(0), forces.size(1),
                                         forces.const_data_ptr<scalar_t>(),
                                         six.mutable_data_ptr<double>()};
    C10_CUDA_CHECK(launch_member_covariance(job, c10::cuda::getCurrentCUDAStream()));
  });
  return six;
}

Tensor log_determinant_cuda(const Tensor& six_in) {
  covariance::check_columns(six_in);
  const c10::cuda::OptionalCUDAGuard guard(six_in.device());
  const Tensor six = six_in.to(at::kDouble).contiguous();
  const Tensor result = at::empty(six.sizes().slice(0, six.dim() - 1), six.options());
  const LogDeterminant job{result.numel(), six.const_data_ptr<double>(),
                           result.mutable_data_ptr<double>()};
  C10_CUDA_CHECK(launch_log_determinant(job, c10::cuda::getCurrentCUDAStream()));
  return result;
}

}  // namespace race
