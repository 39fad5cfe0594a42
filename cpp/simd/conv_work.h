#pragma once
// One block of edges on one path: its operands, its results, and the radial weights at their use.
#include "conv_radial.h"

namespace race::conv {
namespace {

// One block of edges, one member, one path. Loops take it by value: by reference, the compiler
// would have to assume that their stores change it.
template <class T>
struct Work {
  const T *g, *a;  // rows of senders
  T* dg;
  int64_t g_stride, a_stride, dg_stride;
  const PlannedPath& path;
  const PlannedPath* partner;  // a second diagonal path that reads the same features; or null
  const CouplingTable<T>& table;
  int64_t n, member;
  const int64_t *sender, *row;
  RadialRows<T> rows;
  const T *v, *s;          // [kRows, kLanes] weights of R and of its direction
  const T *slope, *curve;  // second order, for dx alone: of R' and R''
  const T* xi;             // [n], xi_stride apart
  int64_t xi_stride;
  const T *q, *qc;  // [q_size, kLanes]
  const T* w;       // the receiver's rows
  T* out;
  T* dy;  // [d2, kLanes, kWidth] partial sums of dY, one vector each; null if not wanted
  T* dx;  // [kLanes, kWidth], likewise of dx
};

template <class T>
RACE_INLINE int64_t in_column(const Work<T>& k, int64_t c) {
  return k.path.in_offset + k.member * k.path.mul + c;
}

template <class T>
RACE_INLINE int64_t out_column(const Work<T>& k, const PlannedPath& path, int64_t c) {
  return path.out_offset + k.member * path.out_mul + path.out_column + c;
}

// R, its direction or both over C vectors of edge e: sums over six rows, one chain of multiply-adds
// each.
enum class Want { value, direction, both };

template <class T, int N, int C, Want W>
RACE_INLINE void interpolate(const Work<T>& k, const T* v, const T* s, int64_t e, int64_t column,
                             Vec<T, N>* r, Vec<T, N>* b) {
  using V = Vec<T, N>;
  const RadialRows<T>& rows = k.rows;
  const T *p0 = rows.p0 + k.row[e] * rows.stride0 + column,
          *p1 = rows.p1 + k.row[e] * rows.stride1 + column;
  const T* p[kRows] = {
      p0, p1, p1 + rows.step, p1 + 2 * rows.step, p1 + 3 * rows.step, p1 + 4 * rows.step};
  v += e, s += e;
  RACE_UNROLLED (i, 0, kRows)
    RACE_UNROLLED (c, 0, C) {
      const V row = load<V>(p[i] + c * N);
      if constexpr (W != Want::direction) r[c] = i == 0 ? v[0] * row : r[c] + v[i * kLanes] * row;
      if constexpr (W != Want::value) b[c] = i == 0 ? s[0] * row : b[c] + s[i * kLanes] * row;
    }
}

// Adds the adjoint of R to its targets: dr1 of <w, T(g, R, Y)>, and in second order dr2 of S. `b`
// is R' (first order).
template <class T, int N, int C, bool Second>
RACE_INLINE void radial_adjoint(const Work<T>& k, int64_t e, int64_t column, const Vec<T, N>* dr1,
                                const Vec<T, N>* dr2, const Vec<T, N>* b) {
  using V = Vec<T, N>;
  if (k.dx) {
    V sum = load<V>(k.dx + e * kWidth<T>);
    if constexpr (Second) {
      V slope[C], curve[C];
      interpolate<T, N, C, Want::both>(k, k.slope, k.curve, e, column, slope, curve);
      const T xi = k.xi[e * k.xi_stride];
      RACE_UNROLLED (c, 0, C) sum += dr2[c] * slope[c] + xi * dr1[c] * curve[c];
    } else {
      RACE_UNROLLED (c, 0, C) sum += dr1[c] * b[c];
    }
    store(k.dx + e * kWidth<T>, sum);
  }
  if (!k.rows.d0) return;
  T* d = k.rows.d0 + k.row[e] * k.rows.stride0 + column;
  for (int i = 0; i < k.rows.n_adjoints; ++i, d += k.rows.n_weights) {
    const T v = k.v[i * kLanes + e], s = k.s[i * kLanes + e];
    RACE_UNROLLED (c, 0, C) {
      if constexpr (Second)
        store(d + c * N, load<V>(d + c * N) + v * dr2[c] + s * dr1[c]);
      else
        store(d + c * N, load<V>(d + c * N) + v * dr1[c]);
    }
  }
}

}  // namespace
}  // namespace race::conv
