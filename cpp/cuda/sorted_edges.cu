#include "sorted_edges_kernels.h"

#include "device.cuh"

namespace race::cuda {
namespace {

__device__ void report(const CsrEdges& args, int64_t kind, int64_t position, int64_t value) {
  args.fault[0] = kind;  // one bad entry; any of them will do
  args.fault[1] = position;
  args.fault[2] = value;
}

// One warp has one receiver.
__global__ void receiver_kernel(const __grid_constant__ CsrEdges args) {
  const int64_t j = global_warp();
  if (j >= args.n_receivers) return;
  const int lane = threadIdx.x % kWarp;
  const int64_t begin = args.row_ptr[j], end = args.row_ptr[j + 1];
  const bool wrong = begin < 0 || end < begin || end > args.n_edges || (j == 0 && begin != 0) ||
                     (j == args.n_receivers - 1 && end != args.n_edges);
  if (wrong) {
    if (lane == 0) report(args, 1, j, end);
    return;
  }
  for (int64_t e = begin + lane; e < end; e += kWarp) {
    args.receiver[e] = j;
    if (args.sender[e] < 0 || args.sender[e] >= args.n_nodes) report(args, 2, e, args.sender[e]);
  }
}

}  // namespace

cudaError_t launch_receivers(const CsrEdges& args, cudaStream_t stream) {
  return launch(receiver_kernel, args, args.n_receivers, stream);
}

}  // namespace race::cuda
