#include "periodic_fold_kernels.h"

#include "device.cuh"

namespace race::cuda {
namespace {

template <class T>
__global__ void fold_kernel(const __grid_constant__ Fold<T> args) {
  const int64_t work = global_thread(), row = work / args.width, column = work % args.width;
  if (row >= args.n_owned) return;
  const int64_t first = args.begin[row], last = args.begin[row + 1];
  if (first == last) return;
  T sum = args.rows[work];
  for (int64_t k = first; k < last; ++k)
    sum += args.rows[(args.n_owned + args.order[k]) * args.width + column];
  args.rows[work] = sum;
}

}  // namespace

template <class T>
cudaError_t launch_fold(const Fold<T>& args, cudaStream_t stream) {
  return launch_threads(fold_kernel<T>, args, args.n_owned * args.width, stream);
}

template cudaError_t launch_fold<float>(const Fold<float>&, cudaStream_t);
template cudaError_t launch_fold<double>(const Fold<double>&, cudaStream_t);

}  // namespace race::cuda
