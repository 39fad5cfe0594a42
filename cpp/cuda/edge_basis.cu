#include <cmath>

#include "../src/harmonics.h"
#include "device.cuh"
#include "edge_basis_kernels.h"

namespace race::cuda {
namespace {

using harmonics::Direction;

template <class T>
__device__ __forceinline__ T& at(const EdgeRows<T>& rows, int64_t e, int64_t g, int k) {
  return rows.data[e * rows.edge + g * rows.group + k * rows.component];
}

template <class T>
__device__ __forceinline__ Direction<T> direction(const EdgeRows<const T>& vectors, int64_t e) {
  const T x = at(vectors, e, 0, 0), y = at(vectors, e, 0, 1), z = at(vectors, e, 0, 2),
          r = std::sqrt(x * x + y * y + z * z), inverse = T(1) / r;
  return {x * inverse, y * inverse, z * inverse, r, inverse};
}

template <class T, int L>
__global__ void values_kernel(const __grid_constant__ EdgeBasis<T> args) {
  const int64_t e = global_thread();
  if (e >= args.n_edges) return;
  const Direction<T> n = direction(args.vector, e);
  T values[(L + 1) * (L + 1)];
  harmonics::values<T, L>(n, values);
  at(args.x, e, 0, 0) = n.r * args.per_r_max;
#pragma unroll
  for (int s = 0; s < (L + 1) * (L + 1); ++s) at(args.sh, e, 0, s) = values[s];
}

template <class T, int L>
__global__ void vjp_kernel(const __grid_constant__ EdgeBasis<T> args) {
  const int64_t work = global_thread(), e = work / args.n_groups, g = work % args.n_groups;
  if (e >= args.n_edges) return;
  T bar[(L + 1) * (L + 1)], result[3];
#pragma unroll
  for (int s = 0; s < (L + 1) * (L + 1); ++s) bar[s] = s > 0 ? at(args.bar_sh, e, g, s) : T(0);
  harmonics::vjp<T, L>(direction(args.vector, e), bar, at(args.bar_x, e, g, 0), args.per_r_max,
                       result);
#pragma unroll
  for (int axis = 0; axis < 3; ++axis) at(args.bar_vector, e, g, axis) = result[axis];
}

template <class T, int L>
__global__ void jvp_kernel(const __grid_constant__ EdgeBasis<T> args) {
  const int64_t work = global_thread(), e = work / args.n_groups, g = work % args.n_groups;
  if (e >= args.n_edges) return;
  T tangent[3], values[(L + 1) * (L + 1)];
#pragma unroll
  for (int axis = 0; axis < 3; ++axis) tangent[axis] = at(args.tangent, e, g, axis);
  const T along = harmonics::jvp<T, L>(direction(args.vector, e), tangent, values);
  at(args.x, e, g, 0) = along * args.per_r_max;
#pragma unroll
  for (int s = 0; s < (L + 1) * (L + 1); ++s) at(args.sh, e, g, s) = values[s];
}

template <class T, int L>
cudaError_t launch_of_degree(EdgeMap map, const EdgeBasis<T>& args, cudaStream_t stream) {
  switch (map) {
    case EdgeMap::values: return launch_threads(values_kernel<T, L>, args, args.n_edges, stream);
    case EdgeMap::vjp:
      return launch_threads(vjp_kernel<T, L>, args, args.n_edges * args.n_groups, stream);
    case EdgeMap::jvp:
      return launch_threads(jvp_kernel<T, L>, args, args.n_edges * args.n_groups, stream);
  }
  return cudaErrorInvalidConfiguration;
}

}  // namespace

template <class T>
cudaError_t launch_edge_basis(EdgeMap map, int64_t lmax, const EdgeBasis<T>& args,
                              cudaStream_t stream) {
  return lmax == 0   ? launch_of_degree<T, 0>(map, args, stream)
         : lmax == 1 ? launch_of_degree<T, 1>(map, args, stream)
         : lmax == 2 ? launch_of_degree<T, 2>(map, args, stream)
                     : launch_of_degree<T, 3>(map, args, stream);
}

template cudaError_t launch_edge_basis<float>(EdgeMap, int64_t, const EdgeBasis<float>&,
                                              cudaStream_t);
template cudaError_t launch_edge_basis<double>(EdgeMap, int64_t, const EdgeBasis<double>&,
                                               cudaStream_t);

}  // namespace race::cuda
