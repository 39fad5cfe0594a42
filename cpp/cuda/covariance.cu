#include "covariance_kernels.h"
#include "device.cuh"

namespace race::cuda {
namespace {

template <class T>
__global__ void head_kernel(const __grid_constant__ HeadCovariance<T> args) {
  constexpr int six_to_nine[6] = {0, 4, 8, 1, 2, 5};  // race/conventions.h
  const int64_t row = global_thread();
  if (row >= args.n_rows) return;
  covariance::Parameters p{args.sigma0, args.jitter, args.noise_bound, {}};
#pragma unroll
  for (int m = 0; m < 5; ++m)
#pragma unroll
    for (int k = 0; k < 6; ++k) p.basis[m][k] = args.basis[9 * m + six_to_nine[k]];
  double six[6];
  covariance::of_head(args.head, p, args.raw + row * args.n_out, args.n_out, six);
#pragma unroll
  for (int k = 0; k < 6; ++k) args.six[6 * row + k] = static_cast<T>(six[k]);
}

template <class T>
__global__ void member_kernel(const __grid_constant__ MemberCovariance<T> args) {
  const int64_t row = global_thread();
  if (row >= args.n_rows) return;
  double six[6];
  covariance::of_members(args.forces + row * args.n_members * 3, args.n_members, six);
#pragma unroll
  for (int k = 0; k < 6; ++k) args.six[6 * row + k] = six[k];
}

__global__ void log_determinant_kernel(const __grid_constant__ LogDeterminant args) {
  const int64_t row = global_thread();
  if (row < args.n_rows) args.result[row] = covariance::log_determinant(args.six + 6 * row);
}

}  // namespace

template <class T>
cudaError_t launch_head_covariance(const HeadCovariance<T>& args, cudaStream_t stream) {
  return launch_threads(head_kernel<T>, args, args.n_rows, stream);
}

template <class T>
cudaError_t launch_member_covariance(const MemberCovariance<T>& args, cudaStream_t stream) {
  return launch_threads(member_kernel<T>, args, args.n_rows, stream);
}

cudaError_t launch_log_determinant(const LogDeterminant& args, cudaStream_t stream) {
  return launch_threads(log_determinant_kernel, args, args.n_rows, stream);
}

template cudaError_t launch_head_covariance<float>(const HeadCovariance<float>&, cudaStream_t);
template cudaError_t launch_head_covariance<double>(const HeadCovariance<double>&, cudaStream_t);
template cudaError_t launch_member_covariance<float>(const MemberCovariance<float>&, cudaStream_t);
template cudaError_t launch_member_covariance<double>(const MemberCovariance<double>&,
                                                      cudaStream_t);

}  // namespace race::cuda
