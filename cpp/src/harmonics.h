#pragma once
// Real spherical harmonics of unit vectors and the derivatives of edge_basis, written once for
// every device. V is the type of computation: a vector over edges on the CPU, a number of one edge
// on a GPU. T is the type of its numbers. The order and component normalisation are e3nn's: |Y_l|^2
// = 2 l + 1, y is the polar axis.

#include "everywhere.h"

namespace race::harmonics {

template <class V>
struct Direction {
  V x, y, z, r, inverse;  // unit vector, length, 1 / length
};

template <class T>
struct Constants {
  static constexpr T r3 = 1.7320508075688772935, r5 = 2.2360679774997896964,
                     r7 = 2.6457513110645905905, r15 = 3.8729833462074168852,
                     r105 = 10.246950765959598383, r21_8 = 1.6201851746019650645,
                     r35_8 = 2.0916500663351888699;
};

// The values sh[s] on the unit sphere.
template <class T, int L, class V>
RACE_EVERYWHERE void values(const Direction<V>& n, V* sh) {
  using C = Constants<T>;
  const V &x = n.x, &y = n.y, &z = n.z;
  sh[0] = V{} + T(1);
  if constexpr (L >= 1) {
    sh[1] = C::r3 * x;
    sh[2] = C::r3 * y;
    sh[3] = C::r3 * z;
  }
  if constexpr (L >= 2) {
    sh[4] = C::r15 * x * z;
    sh[5] = C::r15 * x * y;
    sh[7] = C::r15 * y * z;
    sh[6] = C::r5 * (T(1.5) * y * y - T(0.5));
    sh[8] = C::r15 * T(0.5) * (z * z - x * x);
  }
  if constexpr (L >= 3) {
    const V polar = C::r21_8 * (T(5) * y * y - T(1)), difference = z * z - x * x;
    sh[9] = C::r35_8 * x * (T(3) * z * z - x * x);
    sh[15] = C::r35_8 * z * (z * z - T(3) * x * x);
    sh[10] = C::r105 * x * y * z;
    sh[14] = C::r105 * T(0.5) * y * difference;
    sh[11] = polar * x;
    sh[13] = polar * z;
    sh[12] = C::r7 * y * (T(2.5) * y * y - T(1.5));
  }
}

// Calls term(s, axis, value) for the non-zero derivatives of the polynomials above. Only their
// tangential part has a meaning: the polynomials are equal to Y on the sphere alone.
template <class T, int L, class V, class F>
RACE_EVERYWHERE void derivatives(const Direction<V>& n, const F& term) {
  using C = Constants<T>;
  const V &x = n.x, &y = n.y, &z = n.z;
  if constexpr (L >= 1) {
    const V one = V{} + C::r3;
    term(1, 0, one);
    term(2, 1, one);
    term(3, 2, one);
  }
  if constexpr (L >= 2) {
    const V ax = C::r15 * x, ay = C::r15 * y, az = C::r15 * z;
    term(4, 0, az);
    term(4, 2, ax);
    term(5, 0, ay);
    term(5, 1, ax);
    term(6, 1, T(3) * C::r5 * y);
    term(7, 1, az);
    term(7, 2, ay);
    term(8, 0, -ax);
    term(8, 2, az);
  }
  if constexpr (L >= 3) {
    const V polar = C::r21_8 * (T(5) * y * y - T(1)), difference = z * z - x * x;
    const V xy = x * y, yz = y * z, xz = x * z;
    term(9, 0, T(3) * C::r35_8 * difference);
    term(9, 2, T(6) * C::r35_8 * xz);
    term(10, 0, C::r105 * yz);
    term(10, 1, C::r105 * xz);
    term(10, 2, C::r105 * xy);
    term(11, 0, polar);
    term(11, 1, T(10) * C::r21_8 * xy);
    term(12, 1, C::r7 * (T(7.5) * y * y - T(1.5)));
    term(13, 1, T(10) * C::r21_8 * yz);
    term(13, 2, polar);
    term(14, 0, -C::r105 * xy);
    term(14, 1, T(0.5) * C::r105 * difference);
    term(14, 2, C::r105 * yz);
    term(15, 0, T(-6) * C::r35_8 * xz);
    term(15, 2, T(3) * C::r35_8 * difference);
  }
}

// The adjoint of v from those of Y (without its constant first component) and of x: dY/dv = (1 - n
// n^T) grad Y / r and dx/dv = n / r_max.
template <class T, int L, class V>
RACE_EVERYWHERE void vjp(const Direction<V>& n, const V* bar_sh, const V& bar_x, T per_r_max,
                         V (&result)[3]) {
  V v[3] = {};
  derivatives<T, L>(n, [&](int s, int axis, const V& value) { v[axis] += bar_sh[s] * value; });
  const V along = bar_x * per_r_max - (n.x * v[0] + n.y * v[1] + n.z * v[2]) * n.inverse;
  result[0] = v[0] * n.inverse + along * n.x;
  result[1] = v[1] * n.inverse + along * n.y;
  result[2] = v[2] * n.inverse + along * n.z;
}

// The transpose: tangents of Y and (returned) of r, from a tangent of v, which is overwritten.
template <class T, int L, class V>
RACE_EVERYWHERE V jvp(const Direction<V>& n, V (&tangent)[3], V (&sh)[(L + 1) * (L + 1)]) {
  const V along = n.x * tangent[0] + n.y * tangent[1] + n.z * tangent[2];
  tangent[0] = (tangent[0] - along * n.x) * n.inverse;
  tangent[1] = (tangent[1] - along * n.y) * n.inverse;
  tangent[2] = (tangent[2] - along * n.z) * n.inverse;
  for (int s = 0; s < (L + 1) * (L + 1); ++s) sh[s] = V{};
  derivatives<T, L>(n, [&](int s, int axis, const V& value) { sh[s] += value * tangent[axis]; });
  return along;
}

}  // namespace race::harmonics
