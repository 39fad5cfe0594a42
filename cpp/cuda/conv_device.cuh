#pragma once
// Common parts of the kernels of race::conv: radial weights, and the choice of a body by the
// dimensions of a path.
#include "conv_kernels.h"
#include "device.cuh"

namespace race::cuda {

// Warps that one multiprocessor must be able to hold limit the registers: at 49 + 2 * 7 numbers a
// lane, float fits in 128.
template <class T>
constexpr int kBlocksPerMultiprocessor = sizeof(T) == 4 ? 4 : 2;

// The rows of the table for some x, `row` and the five after it, and their weights in R, R' and
// R''. The weights are zero from x = 1 on.
template <class T>
struct Splines {
  int32_t row;
  T value[kInterval], slope[kInterval], curve[kInterval];
};

// position = interval + t; all kernels call this, so each puts an edge into the same interval.
template <class T>
__device__ __forceinline__ int32_t find_interval(T x, int64_t n_rows, T& t) {
  const int32_t n_intervals = static_cast<int32_t>(n_rows - kInterval + 1);
  const T position = (x > T(0) ? (x < T(1) ? x : T(1)) : T(0)) * T(n_intervals);
  int32_t row = static_cast<int32_t>(position);
  if (row > n_intervals - 1) row = n_intervals - 1;
  t = position - T(row);
  return row;
}

// The three quintic B-splines that rise over an interval, from its left end at z = 0; the other
// three are their mirror images.
template <class T>
__device__ __forceinline__ void rising(T z, T (&value)[3], T (&slope)[3], T (&curve)[3]) {
  const T z2 = z * z;
  value[0] = T(26) + z * (T(50) + z * (T(20) + z * (T(-20) + z * (T(-20) + T(10) * z))));
  value[1] = T(1) + z * (T(5) + z * (T(10) + z * (T(10) + z * (T(5) - T(5) * z))));
  value[2] = z2 * z2 * z;
  slope[0] = T(10) + z * (T(8) + z * (T(-12) + z * (T(-16) + T(10) * z)));
  slope[1] = T(1) + z * (T(4) + z * (T(6) + z * (T(4) - T(5) * z)));
  slope[2] = z2 * z2;
  curve[0] = T(2) + z * (T(-6) + z * (T(-12) + T(10) * z));
  curve[1] = T(1) + z * (T(3) + z * (T(3) - T(5) * z));
  curve[2] = z2 * z;
}

template <class T, bool Second>
__device__ __forceinline__ Splines<T> find_splines(T x, int64_t n_rows) {
  Splines<T> k;
  T t, left[3][3], right[3][3];
  k.row = find_interval(x, n_rows, t);
  rising(T(1) - t, left[0], left[1], left[2]);
  rising(t, right[0], right[1], right[2]);
  const T per_unit = T(n_rows - kInterval + 1), inside = x < T(1) ? T(1) : T(0);
  const T zeroth = inside * T(1.0 / 120), first = inside * per_unit * T(1.0 / 24),
          second = inside * per_unit * per_unit * T(1.0 / 6);
#pragma unroll
  for (int i = 0; i < 3; ++i) {
    k.value[2 - i] = zeroth * left[0][i];
    k.value[3 + i] = zeroth * right[0][i];
    k.slope[2 - i] = -first * left[1][i];
    k.slope[3 + i] = first * right[1][i];
    if constexpr (Second) {
      k.curve[2 - i] = second * left[2][i];
      k.curve[3 + i] = second * right[2][i];
    }
  }
  return k;
}

// Calls body<D_in, D_sh, C>(c0) for a tile, with C channels per lane from c0 on. Two channels of a
// lane share the loads of an edge. With more than 25 numbers P[m1, m2] per channel they would not
// fit in registers, and the halves come one after the other.
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

}  // namespace race::cuda
