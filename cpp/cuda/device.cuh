#pragma once
// What the kernels share on the device: sums over lanes, radial weights, the choice of a body by the dimensions of a path.
#include "kernels.h"

namespace race::cuda {

constexpr int kWarpsPerBlock = 4;

// Warps that one multiprocessor must be able to hold limit the registers: at 49 + 2 * 7 numbers a lane, float fits in 128.
template <class T>
constexpr int kBlocksPerMultiprocessor = sizeof(T) == 4 ? 4 : 2;

template <class T>
__device__ __forceinline__ T shuffle_xor(T value, int lanes) {
  return __shfl_xor_sync(0xffffffffu, value, lanes);
}

// Quintic Hermite weights of (value, slope, curvature) at both ends of the interval that holds x, and of their first and second
// derivatives. Beyond x = 1 R is the last knot's value, the same for every x.
template <class T>
struct Knots {
  int32_t row;
  T value[kInterval], slope[kInterval], curve[kInterval];
};

// position = interval + t; one place, so that every kernel puts an edge into the same interval.
template <class T>
__device__ __forceinline__ int32_t find_interval(T x, int64_t n_knots, T& t) {
  const T position = (x > T(0) ? (x < T(1) ? x : T(1)) : T(0)) * T(n_knots - 1);
  int32_t row = static_cast<int32_t>(position);
  if (row > n_knots - 2) row = static_cast<int32_t>(n_knots - 2);
  t = position - T(row);
  return row;
}

template <class T, bool Second>
__device__ __forceinline__ Knots<T> find_knots(T x, int64_t n_knots) {
  Knots<T> k;
  const T per_unit = T(n_knots - 1), h = T(1) / per_unit;
  T t;
  k.row = find_interval(x, n_knots, t);
  const T s = T(1) - t, t2 = t * t, s2 = s * s, t3 = t2 * t, s3 = s2 * s, inside = x > T(0) && x < T(1) ? T(1) : T(0);
  k.value[0] = s3 * (T(1) + T(3) * t + T(6) * t2);
  k.value[1] = h * t * s3 * (T(1) + T(3) * t);
  k.value[2] = h * h * T(0.5) * t2 * s3;
  k.value[3] = t3 * (T(1) + T(3) * s + T(6) * s2);
  k.value[4] = -h * s * t3 * (T(1) + T(3) * s);
  k.value[5] = h * h * T(0.5) * t3 * s2;
  k.slope[0] = -inside * per_unit * T(30) * t2 * s2;
  k.slope[1] = inside * s2 * (T(1) + T(2) * t - T(15) * t2);
  k.slope[2] = inside * h * T(0.5) * t * s2 * (T(2) - T(5) * t);
  k.slope[3] = -k.slope[0];
  k.slope[4] = inside * t2 * (T(1) + T(2) * s - T(15) * s2);
  k.slope[5] = inside * h * T(0.5) * t2 * s * (T(3) - T(5) * t);
  if constexpr (Second) {
    k.curve[0] = -inside * per_unit * per_unit * T(60) * t * s * (s - t);
    k.curve[1] = -inside * per_unit * T(12) * t * s * (T(3) - T(5) * t);
    k.curve[2] = inside * s * (T(1) - T(8) * t + T(10) * t2);
    k.curve[3] = -k.curve[0];
    k.curve[4] = inside * per_unit * T(12) * t * s * (T(3) - T(5) * s);
    k.curve[5] = inside * t * (T(1) - T(8) * s + T(10) * s2);
  }
  return k;
}

// Calls body<D_in, D_sh, C>(c0) for a tile: C channels to a lane, c0 the first one. Two channels to a lane share the loads of an
// edge; with more than 25 numbers P[m1, m2] a channel they would not fit in registers, and the halves come one after the other.
template <int D1, int D2, class Body>
__device__ __forceinline__ void for_halves(int width, Body&& body) {
  if constexpr (D1 * D2 <= 25) {
    if (width > kWarp) return body.template run<D1, D2, 2>(0);
  }
  for (int c0 = 0; c0 < width; c0 += kWarp) body.template run<D1, D2, 1>(c0);
}

template <int D1, class Body>
__device__ __forceinline__ void for_harmonics(int d_sh, int width, Body&& body) {
  switch (d_sh) {
    case 1: return for_halves<D1, 1>(width, body);
    case 3: return for_halves<D1, 3>(width, body);
    case 5: return for_halves<D1, 5>(width, body);
    case 7: return for_halves<D1, 7>(width, body);
  }
}

template <class Body>
__device__ __forceinline__ void for_dimensions(const Tile& tile, Body&& body) {
  switch (tile.d_in) {
    case 1: return for_harmonics<1>(tile.d_sh, tile.width, body);
    case 3: return for_harmonics<3>(tile.d_sh, tile.width, body);
    case 5: return for_harmonics<5>(tile.d_sh, tile.width, body);
    case 7: return for_harmonics<7>(tile.d_sh, tile.width, body);
  }
}

template <class Kernel, class Job>
cudaError_t launch(Kernel kernel, const Job& job, int64_t warps, cudaStream_t stream) {
  if (warps == 0) return cudaSuccess;
  const int64_t blocks = (warps + kWarpsPerBlock - 1) / kWarpsPerBlock;
  if (blocks > 0x7fffffff) return cudaErrorInvalidConfiguration;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(blocks));
  config.blockDim = dim3(kWarp * kWarpsPerBlock);
  config.stream = stream;
  return cudaLaunchKernelEx(&config, kernel, job);
}

__device__ __forceinline__ int64_t global_warp() { return static_cast<int64_t>(blockIdx.x) * kWarpsPerBlock + threadIdx.x / kWarp; }

}  // namespace race::cuda
