#pragma once
// Paths whose edge matrix is a multiple of the identity (l2 = 0): half of the work of small models.
//
// Q = q * identity, because Y_0 is constant. Here q is part of the weights v, s, slope and curve,
// and no dY is needed. P paths are computed at once, a path and its partner: features are loaded
// and their adjoints stored once for both.
#include "conv_work.h"

namespace race::conv {
namespace {

template <class T, int N, int C, int D, int P, bool Second>
void diagonal_accumulate(const Work<T> k, int64_t c0) {
  using V = Vec<T, N>;
  const PlannedPath paths[2] = {k.path, k.partner ? *k.partner : k.path};
  const int64_t in = in_column(k, c0), in_stride = k.path.in_stride;
  V sum[P][D][C];
  RACE_UNROLLED (p, 0, P)
    RACE_UNROLLED (m, 0, D)
      RACE_UNROLLED (c, 0, C)
        sum[p][m][c] =
            load<V>(k.out + out_column(k, paths[p], c0) + m * paths[p].out_stride + c * N);
  for (int64_t e = 0; e < k.n; ++e) {
    const T* x = k.g + k.sender[e] * k.g_stride + in;
    const T* a = k.a + k.sender[e] * k.a_stride + in;
    V r[P][C], b[P][C];
    RACE_UNROLLED (p, 0, P)
      interpolate<T, N, C, Second ? Want::both : Want::value>(
          k, k.v, k.s, e, paths[p].weight_offset + c0, r[p], b[p]);
    RACE_UNROLLED (m, 0, D)
      RACE_UNROLLED (c, 0, C) {
        const V xv = load<V>(x + m * in_stride + c * N),
                av = Second ? load<V>(a + m * in_stride + c * N) : V{};
        RACE_UNROLLED (p, 0, P) {
          sum[p][m][c] += (Second ? b[p][c] : r[p][c]) * xv;
          if constexpr (Second) sum[p][m][c] += r[p][c] * av;
        }
      }
  }
  RACE_UNROLLED (p, 0, P)
    RACE_UNROLLED (m, 0, D)
      RACE_UNROLLED (c, 0, C)
        store(k.out + out_column(k, paths[p], c0) + m * paths[p].out_stride + c * N, sum[p][m][c]);
}

template <class T, int N, int C, int D, int P, bool Second>
void diagonal_transpose(const Work<T> k, int64_t c0) {
  using V = Vec<T, N>;
  const PlannedPath paths[2] = {k.path, k.partner ? *k.partner : k.path};
  const int64_t in = in_column(k, c0), in_stride = k.path.in_stride;
  V w[P][D][C];
  RACE_UNROLLED (p, 0, P)
    RACE_UNROLLED (m, 0, D)
      RACE_UNROLLED (c, 0, C)
        w[p][m][c] = load<V>(k.w + out_column(k, paths[p], c0) + m * paths[p].out_stride + c * N);
  for (int64_t e = 0; e < k.n; ++e) {
    const T* x = k.g + k.sender[e] * k.g_stride + in;
    const T* a = k.a + k.sender[e] * k.a_stride + in;
    T* dx = k.dg ? k.dg + k.sender[e] * k.dg_stride + in : nullptr;
    V xw[P][C], aw[P][C];
    RACE_UNROLLED (p, 0, P)
      RACE_UNROLLED (c, 0, C) xw[p][c] = aw[p][c] = V{};
    RACE_UNROLLED (m, 0, D)
      RACE_UNROLLED (c, 0, C) {
        const V xv = load<V>(x + m * in_stride + c * N),
                av = Second ? load<V>(a + m * in_stride + c * N) : V{};
        RACE_UNROLLED (p, 0, P) {
          xw[p][c] += xv * w[p][m][c];
          if constexpr (Second) aw[p][c] += av * w[p][m][c];
        }
      }
    V back[P][C] = {};  // factors of w in dg: R, in second order its direction
    RACE_UNROLLED (p, 0, P) {
      V slope[C];
      const int64_t column = paths[p].weight_offset + c0;
      if constexpr (Second)
        interpolate<T, N, C, Want::direction>(k, k.v, k.s, e, column, nullptr, back[p]);
      else if (dx)
        interpolate<T, N, C, Want::both>(k, k.v, k.s, e, column, back[p], slope);
      else
        interpolate<T, N, C, Want::direction>(k, k.v, k.s, e, column, nullptr, slope);
      radial_adjoint<T, N, C, Second>(k, e, column, xw[p], aw[p], slope);
    }
    if (!dx) continue;
    RACE_UNROLLED (m, 0, D)
      RACE_UNROLLED (c, 0, C) {
        T* d = dx + m * in_stride + c * N;
        V total = load<V>(d);
        RACE_UNROLLED (p, 0, P) total += back[p][c] * w[p][m][c];
        store(d, total);
      }
  }
}

}  // namespace
}  // namespace race::conv
