#pragma once
// The rows that hold an edge's radial weights, and the weights with which these rows are summed.
#include "conv_kernel.h"
#include "simd.h"

namespace race::conv {
namespace {

// Rows of R and of its direction: R = sum_i value[i] p_i over kRows rows; the direction is the same
// sum with its own weights. Rows of a table follow each other from p0; explicit ones are p_0 = R
// and p_1 = b, and the others have weight zero.
template <class T>
struct RadialRows {
  const T *p0, *p1;
  T* d0;  // target of the adjoint of p_0, followed by those of the other rows; null if not
          // requested
  int64_t step, stride0, stride1;  // from p_1 to p_2 and on; from one row[e] to the next
  int64_t n_weights;
  int n_adjoints;
};

// Weights of an interval's rows for each edge: the quintic B-splines at `fraction` of it for R.
// Those of R' and (second order) R'' are their derivatives by x. `inside` is 0 from x = 1 on,
// because R is zero there.
template <class T>
void splines(const T* fraction, const T* inside, T per_unit, T* value, T* slope, T* curve) {
  using V = Vec<T, kLanes>;
  const V t = load<V>(fraction), s = T(1) - t, t2 = t * t, s2 = s * s, in = load<V>(inside);
  const V zeroth = in * T(1.0 / 120), first = in * (per_unit * T(1.0 / 24)),
          second = in * (per_unit * per_unit * T(1.0 / 6));
  // The splines are mirror images: those of t from the right are those of s from the left.
  const auto outer = [](V z, V z2) { return z2 * z2 * z; };
  const auto middle = [](V z, V z2) {
    return T(1) + z * (T(5) + z * (T(10) + z * (T(10) + z * (T(5) - T(5) * z))));
  };
  const auto inner = [](V z, V z2) {
    return T(26) + z * (T(50) + z * (T(20) + z * (T(-20) + z * (T(-20) + T(10) * z))));
  };
  const auto outer1 = [](V z, V z2) { return z2 * z2; };
  const auto middle1 = [](V z, V z2) {
    return T(1) + z * (T(4) + z * (T(6) + z * (T(4) - T(5) * z)));
  };
  const auto inner1 = [](V z, V z2) {
    return T(10) + z * (T(8) + z * (T(-12) + z * (T(-16) + T(10) * z)));
  };
  const auto outer2 = [](V z, V z2) { return z2 * z; };
  const auto middle2 = [](V z, V z2) { return T(1) + z * (T(3) + z * (T(3) - T(5) * z)); };
  const auto inner2 = [](V z, V z2) { return T(2) + z * (T(-6) + z * (T(-12) + T(10) * z)); };
  const auto put = [&](T* to, V factor, T mirror, auto a, auto b, auto c) {
    store(to, mirror * factor * a(s, s2));
    store(to + kLanes, mirror * factor * b(s, s2));
    store(to + 2 * kLanes, mirror * factor * c(s, s2));
    store(to + 3 * kLanes, factor * c(t, t2));
    store(to + 4 * kLanes, factor * b(t, t2));
    store(to + 5 * kLanes, factor * a(t, t2));
  };
  put(value, zeroth, T(1), outer, middle, inner);
  put(slope, first, T(-1), outer1, middle1, inner1);
  if (curve) put(curve, second, T(1), outer2, middle2, inner2);
}

// Rows and weights of the edges of block `i`.
template <class T, bool Second>
void place(const Arguments<T>& args, int64_t i) {
  const int64_t size = kRows * kLanes, n_intervals = args.radial.n_rows - kRows + 1;
  EdgeBlock& block = args.blocks[i];
  if (args.radial.n_rows == 0) {
    for (int64_t e = 0; e < kLanes; ++e) block.row[e] = block.edge + e;
    for (int64_t k = 0; k < size; ++k) {
      args.value[i * size + k] = k < kLanes ? T(1) : T(0);
      args.direction[i * size + k] = k >= kLanes && k < 2 * kLanes ? T(1) : T(0);
    }
    return;
  }
  using V = Vec<T, kLanes>;
  using I = Vec<int64_t, kLanes>;
  alignas(64) T t[kLanes], inside[kLanes];
  const T* from = args.radial.x + block.edge * args.radial.x_stride;
  const bool whole = args.radial.x_stride == 1 &&
                     block.edge + kLanes <= args.n_edges;  // further lanes may hold any number
  for (int64_t e = 0; !whole && e < kLanes; ++e)
    t[e] = from[(e < block.n ? e : 0) * args.radial.x_stride];
  const V x = load<V>(whole ? from : t), zero{}, one = zero + T(1);
  const V position = (x > zero ? (x < one ? x : one) : zero) * T(n_intervals);
  const I last = I{} + (n_intervals - 1), floor = __builtin_convertvector(position, I),
          interval = floor < last ? floor : last;
  store(block.row, interval);
  store(t, position - __builtin_convertvector(interval, V));
  store(inside, x < one ? one : zero);
  splines<T>(t, inside, T(n_intervals), args.value + i * size,
             (Second ? args.slope : args.direction) + i * size,
             Second ? args.curve + i * size : nullptr);
}

// The direction of one group: xi R'.
template <class T>
void direct(const Arguments<T>& args, int64_t i, int64_t group) {
  const int64_t size = kRows * kLanes;
  const EdgeBlock& block = args.blocks[i];
  for (int64_t e = 0; e < block.n; ++e) {
    const T xi =
        args.radial.xi[(block.edge + e) * args.radial.xi_stride + group * args.radial.xi_group];
    for (int64_t k = i * size + e; k < (i + 1) * size; k += kLanes)
      args.direction[k] = xi * args.slope[k];
  }
}

// The rows of one member.
template <class T, bool Second>
RadialRows<T> rows_of(const Radial<T>& radial, int64_t n_edges, int64_t member) {
  const int64_t K = radial.n_weights;
  if (radial.n_rows) {
    const int64_t offset = member * radial.n_rows * K;
    return {.p0 = radial.table + offset,
            .p1 = radial.table + offset + K,
            .d0 = radial.dtable ? radial.dtable + offset : nullptr,
            .step = K,
            .stride0 = K,
            .stride1 = K,
            .n_weights = K,
            .n_adjoints = kRows};
  }
  const int64_t offset = member * n_edges * K;
  const T* rows = radial.rows + offset;
  return {.p0 = rows,
          .p1 = Second ? radial.b + member * radial.b_member : rows,
          .d0 = radial.drows ? radial.drows + offset : nullptr,
          .step = 0,
          .stride0 = K,
          .stride1 = Second ? radial.b_stride : K,
          .n_weights = K,
          .n_adjoints = 1};
}

}  // namespace
}  // namespace race::conv
