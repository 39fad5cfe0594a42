#include "device.cuh"
#include "edge_sums_kernels.h"

namespace race::cuda {
namespace {

// sums += share * (-edge_vector_a grad_b), mean over groups.
template <class T>
__device__ __forceinline__ void add_virial(const ForceSums<T>& args, int64_t e, double share,
                                           double (&sums)[9]) {
  double grad[3] = {};
  for (int64_t g = 0; g < args.n_groups; ++g)
    for (int b = 0; b < 3; ++b)
      grad[b] += static_cast<double>(args.grad[(e * args.n_groups + g) * 3 + b]);
  const double factor = -share / static_cast<double>(args.n_groups);
#pragma unroll
  for (int k = 0; k < 9; ++k) sums[k] += factor * args.edge_vector[3 * e + k / 3] * grad[k % 3];
}

template <class T>
__global__ void force_kernel(const __grid_constant__ ForceSums<T> args) {
  const int64_t slots = args.n_groups + (args.atom_virial ? 1 : 0), work = global_warp();
  const int64_t row = work / slots, group = work % slots, receiver = row - args.begin;
  if (row >= args.n_rows) return;
  const int lane = threadIdx.x % kWarp;
  const bool receives = receiver >= 0 && receiver < args.n_receivers;
  const int64_t first = receives ? args.row_ptr[receiver] : 0,
                last = receives ? args.row_ptr[receiver + 1] : 0;
  const int64_t sent_first = args.sent_begin[row], sent_last = args.sent_begin[row + 1];
  if (group < args.n_groups) {
    double force[3] = {};
    for (int64_t e = first + lane; e < last; e += kWarp)
      for (int a = 0; a < 3; ++a)
        force[a] += static_cast<double>(args.grad[(e * args.n_groups + group) * 3 + a]);
    for (int64_t k = sent_first + lane; k < sent_last; k += kWarp)
      for (int a = 0; a < 3; ++a)
        force[a] -= static_cast<double>(args.grad[(args.sent[k] * args.n_groups + group) * 3 + a]);
    for (int a = 0; a < 3; ++a) {
      const double sum = over_lanes(force[a]);
      if (lane == a) args.forces[(row * args.n_groups + group) * 3 + a] += sum;
    }
  } else {
    double virial[9] = {};
    for (int64_t e = first + lane; e < last; e += kWarp)
      add_virial(args, e, 1 - args.to_sender, virial);
    for (int64_t k = sent_first + lane; k < sent_last; k += kWarp)
      add_virial(args, args.sent[k], args.to_sender, virial);
    for (int k = 0; k < 9; ++k) {
      const double sum = over_lanes(virial[k]);
      if (lane == k) args.atom_virial[row * 9 + k] += sum;
    }
  }
}

template <class T>
__global__ void virial_kernel(const __grid_constant__ VirialSums<T> args) {
  const int64_t work = global_warp(), part = work / args.n_groups, group = work % args.n_groups;
  if (part >= args.n_parts) return;
  const int lane = threadIdx.x % kWarp;
  double virial[9] = {};
  const int64_t end = args.n_edges * (part + 1) / args.n_parts;
  for (int64_t e = args.n_edges * part / args.n_parts + lane; e < end; e += kWarp)
#pragma unroll
    for (int k = 0; k < 9; ++k)
      virial[k] -= args.edge_vector[3 * e + k / 3] *
                   static_cast<double>(args.grad[(e * args.n_groups + group) * 3 + k % 3]);
  for (int k = 0; k < 9; ++k) {
    const double sum = over_lanes(virial[k]);
    if (lane == k) args.parts[work * 9 + k] = sum;
  }
}

}  // namespace

template <class T>
cudaError_t launch_force_sums(const ForceSums<T>& args, cudaStream_t stream) {
  return launch(force_kernel<T>, args, args.n_rows * (args.n_groups + (args.atom_virial ? 1 : 0)),
                stream);
}

template <class T>
cudaError_t launch_virial_sums(const VirialSums<T>& args, cudaStream_t stream) {
  return launch(virial_kernel<T>, args, args.n_parts * args.n_groups, stream);
}

template cudaError_t launch_force_sums<float>(const ForceSums<float>&, cudaStream_t);
template cudaError_t launch_force_sums<double>(const ForceSums<double>&, cudaStream_t);
template cudaError_t launch_virial_sums<float>(const VirialSums<float>&, cudaStream_t);
template cudaError_t launch_virial_sums<double>(const VirialSums<double>&, cudaStream_t);

}  // namespace race::cuda
