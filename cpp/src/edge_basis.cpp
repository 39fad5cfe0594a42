// race::edge_basis: distances and real spherical harmonics of edge vectors, and their derivatives
// contracted on the fly (the gradients, [E, S, 3], are never stored). e3nn's order and component
// normalisation: |Y_l|^2 = 2 l + 1, y the polar axis.
#include <torch/csrc/autograd/custom_function.h>

#include <cmath>

#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty.h>

#include "../simd/simd.h"
#include "check.h"
#include "operators.h"

namespace race {
namespace {

using at::Tensor;
using Two = std::tuple<Tensor, Tensor>;

constexpr const char* kSchemas[] = {
    // edge_vector [E, 3] -> x = r / r_max [E, 1], Y [E, S], S = (lmax + 1)^2
    "edge_basis(Tensor edge_vector, int lmax, float r_max) -> (Tensor, Tensor)",
    // adjoints of x [E, G, 1] and Y [E, G, S] -> adjoint of edge_vector [E, G, 3]
    "edge_basis_vjp(Tensor edge_vector, int lmax, float r_max, Tensor bar_x, Tensor bar_sh) "
    "-> Tensor",
    // its transpose: tangents of edge_vector [E, G, 3] -> tangents of x [E, G, 1] and Y [E, G, S]
    "edge_basis_jvp(Tensor edge_vector, int lmax, float r_max, Tensor tangent) -> (Tensor, Tensor)",
};

constexpr int kLanes = 8;         // edges worked on together, one per lane
constexpr int64_t kGrain = 4096;  // edges per thread, at least

int64_t check(const char* op, const Tensor& edge_vector, int64_t lmax, double r_max) {
  RACE_CHECK(op, edge_vector.dim() == 2 && edge_vector.size(1) == 3, "edge_vector", "[n_edges, 3]",
             edge_vector.sizes());
  RACE_CHECK(op,
             edge_vector.scalar_type() == at::kFloat || edge_vector.scalar_type() == at::kDouble,
             "edge_vector", "float32 or float64", edge_vector.scalar_type());
  RACE_CHECK(op, lmax >= 0 && lmax <= 3, "lmax", "0 to 3", lmax);
  RACE_CHECK(op, r_max > 0, "r_max", "a positive length", r_max);
  return (lmax + 1) * (lmax + 1);
}

// [n_edges, n_groups, width] in the edge vectors' type.
void check_rows(const char* op, const char* name, const Tensor& rows, const Tensor& edge_vector,
                int64_t n_groups, int64_t width) {
  RACE_CHECK(op,
             rows.dim() == 3 && rows.size(0) == edge_vector.size(0) &&
                 (n_groups < 0 || rows.size(1) == n_groups) && rows.size(2) == width,
             name,
             c10::str("[", edge_vector.size(0), ", ",
                      n_groups < 0 ? "n_groups" : std::to_string(n_groups), ", ", width, "]"),
             rows.sizes());
  RACE_CHECK(op, rows.scalar_type() == edge_vector.scalar_type(), name, edge_vector.scalar_type(),
             rows.scalar_type());
}

template <class T>
using EdgeVec = Vec<T, kLanes>;

// Where component k of group g of edge e lies.
template <class T>
struct Rows {
  T* data;
  int64_t edge, group, component;
};

template <class T>
Rows<const T> rows_of(const Tensor& t) {
  return {t.const_data_ptr<T>(), t.stride(0), t.stride(1), t.stride(2)};
}
template <class T>
Rows<T> rows_of(Tensor& t) {
  return {t.data_ptr<T>(), t.stride(0), t.stride(1), t.stride(2)};
}

// Inlined into every kernel: with all lanes in use the loops unroll to plain moves.
template <class T>
RACE_INLINE EdgeVec<T> gather(const Rows<const T>& rows, int64_t first, int count, int64_t group,
                              int64_t component) {
  EdgeVec<T> v;
  const T* p = rows.data + first * rows.edge + group * rows.group + component * rows.component;
  for (int i = 0; i < kLanes; ++i)
    v[i] = p[(i < count ? i : 0) * rows.edge];  // idle lanes repeat the first edge
  return v;
}

template <class T>
RACE_INLINE void scatter(const Rows<T>& rows, int64_t first, int count, int64_t group,
                         int64_t component, const EdgeVec<T>& v) {
  T* p = rows.data + first * rows.edge + group * rows.group + component * rows.component;
  for (int i = 0; i < count; ++i) p[i * rows.edge] = v[i];
}

template <class T>
struct Direction {
  EdgeVec<T> x, y, z, r, inverse;  // unit vector, length, 1 / length

  RACE_INLINE Direction(const Rows<const T>& vectors, int64_t first, int count) {
    x = gather(vectors, first, count, 0, 0);
    y = gather(vectors, first, count, 0, 1);
    z = gather(vectors, first, count, 0, 2);
    const EdgeVec<T> square = x * x + y * y + z * z;
    for (int i = 0; i < kLanes; ++i) r[i] = std::sqrt(square[i]);
    inverse = T(1) / r;
    x *= inverse;
    y *= inverse;
    z *= inverse;
  }
};

template <class T>
struct Constants {
  static constexpr T r3 = 1.7320508075688772935, r5 = 2.2360679774997896964,
                     r7 = 2.6457513110645905905, r15 = 3.8729833462074168852,
                     r105 = 10.246950765959598383, r21_8 = 1.6201851746019650645,
                     r35_8 = 2.0916500663351888699;
};

// sh[s] on the unit sphere.
template <class T, int L>
RACE_INLINE void harmonics(const Direction<T>& n, EdgeVec<T>* sh) {
  using C = Constants<T>;
  const EdgeVec<T>&x = n.x, &y = n.y, &z = n.z;
  sh[0] = EdgeVec<T>{} + T(1);
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
    const EdgeVec<T> polar = C::r21_8 * (T(5) * y * y - T(1)), difference = z * z - x * x;
    sh[9] = C::r35_8 * x * (T(3) * z * z - x * x);
    sh[15] = C::r35_8 * z * (z * z - T(3) * x * x);
    sh[10] = C::r105 * x * y * z;
    sh[14] = C::r105 * T(0.5) * y * difference;
    sh[11] = polar * x;
    sh[13] = polar * z;
    sh[12] = C::r7 * y * (T(2.5) * y * y - T(1.5));
  }
}

// Calls term(s, axis, value) for the derivatives, where they are not zero, of the polynomials
// above. Only their tangential part means anything: the polynomials are equal to Y on the sphere
// alone.
template <class T, int L, class F>
RACE_INLINE void derivatives(const Direction<T>& n, const F& term) {
  using C = Constants<T>;
  const EdgeVec<T>&x = n.x, &y = n.y, &z = n.z;
  if constexpr (L >= 1) {
    const EdgeVec<T> one = EdgeVec<T>{} + C::r3;
    term(1, 0, one);
    term(2, 1, one);
    term(3, 2, one);
  }
  if constexpr (L >= 2) {
    const EdgeVec<T> ax = C::r15 * x, ay = C::r15 * y, az = C::r15 * z;
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
    const EdgeVec<T> polar = C::r21_8 * (T(5) * y * y - T(1)), difference = z * z - x * x;
    const EdgeVec<T> xy = x * y, yz = y * z, xz = x * z;
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

// The three kernels, on `count` edges from `first`. dY/dv = (1 - n n^T) grad Y / r and dx/dv = n /
// r_max.
struct Values {
  template <class T, int L>
  RACE_INLINE static void run(const Rows<const T>& vectors, T per_r_max, int64_t, const Rows<T>& x,
                              const Rows<T>& sh, int64_t first, int count) {
    const Direction<T> n(vectors, first, count);
    EdgeVec<T> values[(L + 1) * (L + 1)];
    harmonics<T, L>(n, values);
    scatter<T>(x, first, count, 0, 0, n.r * per_r_max);
    for (int s = 0; s < (L + 1) * (L + 1); ++s) scatter<T>(sh, first, count, 0, s, values[s]);
  }
};

struct Vjp {
  template <class T, int L>
  RACE_INLINE static void run(const Rows<const T>& vectors, T per_r_max, int64_t n_groups,
                              const Rows<const T>& bar_x, const Rows<const T>& bar_sh,
                              const Rows<T>& result, int64_t first, int count) {
    const Direction<T> n(vectors, first, count);
    for (int64_t g = 0; g < n_groups; ++g) {
      EdgeVec<T> bar[(L + 1) * (L + 1)], v[3] = {};
      for (int s = 1; s < (L + 1) * (L + 1); ++s) bar[s] = gather(bar_sh, first, count, g, s);
      derivatives<T, L>(
          n, [&](int s, int axis, const EdgeVec<T>& value) { v[axis] += bar[s] * value; });
      const EdgeVec<T> along = gather(bar_x, first, count, g, 0) * per_r_max -
                               (n.x * v[0] + n.y * v[1] + n.z * v[2]) * n.inverse;
      scatter<T>(result, first, count, g, 0, v[0] * n.inverse + along * n.x);
      scatter<T>(result, first, count, g, 1, v[1] * n.inverse + along * n.y);
      scatter<T>(result, first, count, g, 2, v[2] * n.inverse + along * n.z);
    }
  }
};

struct Jvp {
  template <class T, int L>
  RACE_INLINE static void run(const Rows<const T>& vectors, T per_r_max, int64_t n_groups,
                              const Rows<const T>& tangent, const Rows<T>& x, const Rows<T>& sh,
                              int64_t first, int count) {
    const Direction<T> n(vectors, first, count);
    for (int64_t g = 0; g < n_groups; ++g) {
      EdgeVec<T> u[3], values[(L + 1) * (L + 1)] = {};
      for (int axis = 0; axis < 3; ++axis) u[axis] = gather(tangent, first, count, g, axis);
      const EdgeVec<T> along = n.x * u[0] + n.y * u[1] + n.z * u[2];
      scatter<T>(x, first, count, g, 0, along * per_r_max);
      u[0] = (u[0] - along * n.x) * n.inverse;
      u[1] = (u[1] - along * n.y) * n.inverse;
      u[2] = (u[2] - along * n.z) * n.inverse;
      derivatives<T, L>(
          n, [&](int s, int axis, const EdgeVec<T>& value) { values[s] += value * u[axis]; });
      for (int s = 0; s < (L + 1) * (L + 1); ++s) scatter<T>(sh, first, count, g, s, values[s]);
    }
  }
};

template <class Kernel, class T, int L, class... Operands>
void over_edges(int64_t n_edges, const Operands&... operands) {
  at::parallel_for(0, n_edges, kGrain, [&](int64_t begin, int64_t end) {
    int64_t e = begin;
    for (; e + kLanes <= end; e += kLanes) Kernel::template run<T, L>(operands..., e, kLanes);
    if (e < end) Kernel::template run<T, L>(operands..., e, static_cast<int>(end - e));
  });
}

template <class Kernel, class T, class... Operands>
void launch(const Tensor& edge_vector, int64_t lmax, double r_max, int64_t n_groups,
            const Operands&... operands) {
  const Rows<const T> vectors{edge_vector.const_data_ptr<T>(), edge_vector.stride(0), 0,
                              edge_vector.stride(1)};
  const T per_r_max = static_cast<T>(1.0 / r_max);
  const auto function =
      lmax == 0   ? over_edges<Kernel, T, 0, Rows<const T>, T, int64_t, Operands...>
      : lmax == 1 ? over_edges<Kernel, T, 1, Rows<const T>, T, int64_t, Operands...>
      : lmax == 2 ? over_edges<Kernel, T, 2, Rows<const T>, T, int64_t, Operands...>
                  : over_edges<Kernel, T, 3, Rows<const T>, T, int64_t, Operands...>;
  function(edge_vector.size(0), vectors, per_r_max, n_groups, operands...);
}

// [E, G, width], new.
Tensor rows_like(const Tensor& edge_vector, int64_t n_groups, int64_t width) {
  return at::empty({edge_vector.size(0), n_groups, width}, edge_vector.options());
}

Two values_cpu(const Tensor& edge_vector, int64_t lmax, double r_max) {
  const int64_t S = check("edge_basis", edge_vector, lmax, r_max);
  Tensor x = rows_like(edge_vector, 1, 1), sh = rows_like(edge_vector, 1, S);
  AT_DISPATCH_FLOATING_TYPES(edge_vector.scalar_type(), "race::edge_basis", [&] {
    launch<Values, scalar_t>(edge_vector, lmax, r_max, 1, rows_of<scalar_t>(x),
                             rows_of<scalar_t>(sh));
  });
  return {x.squeeze(1), sh.squeeze(1)};
}

Tensor vjp_cpu(const Tensor& edge_vector, int64_t lmax, double r_max, const Tensor& bar_x,
               const Tensor& bar_sh) {
  const int64_t S = check("edge_basis_vjp", edge_vector, lmax, r_max);
  check_rows("edge_basis_vjp", "bar_x", bar_x, edge_vector, -1, 1);
  check_rows("edge_basis_vjp", "bar_sh", bar_sh, edge_vector, bar_x.size(1), S);
  Tensor result = rows_like(edge_vector, bar_x.size(1), 3);
  AT_DISPATCH_FLOATING_TYPES(edge_vector.scalar_type(), "race::edge_basis_vjp", [&] {
    launch<Vjp, scalar_t>(edge_vector, lmax, r_max, bar_x.size(1), rows_of<scalar_t>(bar_x),
                          rows_of<scalar_t>(bar_sh), rows_of<scalar_t>(result));
  });
  return result;
}

Two jvp_cpu(const Tensor& edge_vector, int64_t lmax, double r_max, const Tensor& tangent) {
  const int64_t S = check("edge_basis_jvp", edge_vector, lmax, r_max);
  check_rows("edge_basis_jvp", "tangent", tangent, edge_vector, -1, 3);
  Tensor x = rows_like(edge_vector, tangent.size(1), 1),
         sh = rows_like(edge_vector, tangent.size(1), S);
  AT_DISPATCH_FLOATING_TYPES(edge_vector.scalar_type(), "race::edge_basis_jvp", [&] {
    launch<Jvp, scalar_t>(edge_vector, lmax, r_max, tangent.size(1), rows_of<scalar_t>(tangent),
                          rows_of<scalar_t>(x), rows_of<scalar_t>(sh));
  });
  return {x, sh};
}

Two values_meta(const Tensor& edge_vector, int64_t lmax, double r_max) {
  const int64_t S = check("edge_basis", edge_vector, lmax, r_max);
  return {edge_vector.new_empty({edge_vector.size(0), 1}),
          edge_vector.new_empty({edge_vector.size(0), S})};
}

Tensor vjp_meta(const Tensor& edge_vector, int64_t lmax, double r_max, const Tensor& bar_x,
                const Tensor& bar_sh) {
  return rows_like(edge_vector, bar_x.size(1), 3);
}

Two jvp_meta(const Tensor& edge_vector, int64_t lmax, double r_max, const Tensor& tangent) {
  return {rows_like(edge_vector, tangent.size(1), 1),
          rows_like(edge_vector, tangent.size(1), (lmax + 1) * (lmax + 1))};
}

// Linear in the adjoints, so the transpose is its whole derivative. Training on forces asks for no
// more: edges are data.
struct VjpFunction : torch::autograd::Function<VjpFunction> {
  static Tensor forward(torch::autograd::AutogradContext* context, const Tensor& edge_vector,
                        int64_t lmax, double r_max, const Tensor& bar_x, const Tensor& bar_sh) {
    const at::AutoDispatchBelowADInplaceOrView guard;
    context->save_for_backward({edge_vector});
    context->saved_data["lmax"] = lmax;
    context->saved_data["r_max"] = r_max;
    static const auto handle = find_operator<decltype(vjp_cpu)>("race::edge_basis_vjp");
    return handle.call(edge_vector, lmax, r_max, bar_x, bar_sh);
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 const torch::autograd::variable_list& grad) {
    static const auto handle = find_operator<decltype(jvp_cpu)>("race::edge_basis_jvp");
    const auto [x, sh] =
        handle.call(context->get_saved_variables()[0], context->saved_data["lmax"].toInt(),
                    context->saved_data["r_max"].toDouble(), grad[0]);
    return {Tensor(), Tensor(), Tensor(), x, sh};
  }
};

Tensor vjp_autograd(const Tensor& edge_vector, int64_t lmax, double r_max, const Tensor& bar_x,
                    const Tensor& bar_sh) {
  TORCH_CHECK_NOT_IMPLEMENTED(
      !(at::GradMode::is_enabled() && edge_vector.requires_grad()),
      "race::edge_basis_vjp: edge_vector: expected a tensor that requires no gradient (second "
      "derivatives with respect to edge vectors are not implemented), got one that does; detach it, "
      "or use a model with set_fused(False)");
  return VjpFunction::apply(edge_vector, lmax, r_max, bar_x, bar_sh);
}

const bool registered =
    register_operators("race::edge_basis", __FILE__, __LINE__, [](torch::Library* library) {
      Operator(library, kSchemas[0])
          .cpu(TORCH_FN(values_cpu))
          .not_differentiable()
          .meta(TORCH_FN(values_meta));
      Operator(library, kSchemas[1])
          .cpu(TORCH_FN(vjp_cpu))
          .autograd(TORCH_FN(vjp_autograd))
          .meta(TORCH_FN(vjp_meta));
      Operator(library, kSchemas[2])
          .cpu(TORCH_FN(jvp_cpu))
          .not_differentiable()
          .meta(TORCH_FN(jvp_meta));
    });

}  // namespace
}  // namespace race
