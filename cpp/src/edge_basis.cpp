// race::edge_basis: distances and real spherical harmonics of edge vectors, and their derivatives,
// contracted on the fly: the gradients [E, S, 3] are never stored. The order and component
// normalisation are e3nn's: |Y_l|^2 = 2 l + 1, y is the polar axis.
#include <torch/csrc/autograd/custom_function.h>

#include <cmath>

#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty.h>

#include "../simd/simd.h"
#include "check.h"
#include "edge_basis.h"
#include "harmonics.h"
#include "operators.h"

namespace race {
namespace {

using at::Tensor;
using edge_basis::EdgeRows;
using harmonics::Direction;
using Two = std::tuple<Tensor, Tensor>;

constexpr int kLanes = 8;         // edges worked on together, one per lane
constexpr int64_t kGrain = 4096;  // edges per thread, at least

using edge_basis::rows_like;

template <class T>
using EdgeVec = Vec<T, kLanes>;

template <class T>
EdgeRows<const T> rows_of(const Tensor& t) {
  return {t.const_data_ptr<T>(), t.stride(0), t.stride(1), t.stride(2)};
}
template <class T>
EdgeRows<T> rows_of(Tensor& t) {
  return {t.data_ptr<T>(), t.stride(0), t.stride(1), t.stride(2)};
}

// Inlined into every kernel: with all lanes in use the loops unroll to plain moves.
template <class T>
RACE_INLINE EdgeVec<T> gather(const EdgeRows<const T>& rows, int64_t first, int count,
                              int64_t group, int64_t component) {
  EdgeVec<T> v;
  const T* p = rows.data + first * rows.edge + group * rows.group + component * rows.component;
  for (int i = 0; i < kLanes; ++i)
    v[i] = p[(i < count ? i : 0) * rows.edge];  // idle lanes repeat the first edge
  return v;
}

template <class T>
RACE_INLINE void scatter(const EdgeRows<T>& rows, int64_t first, int count, int64_t group,
                         int64_t component, const EdgeVec<T>& v) {
  T* p = rows.data + first * rows.edge + group * rows.group + component * rows.component;
  for (int i = 0; i < count; ++i) p[i * rows.edge] = v[i];
}

template <class T>
RACE_INLINE Direction<EdgeVec<T>> direction(const EdgeRows<const T>& vectors, int64_t first,
                                            int count) {
  Direction<EdgeVec<T>> n;
  n.x = gather(vectors, first, count, 0, 0);
  n.y = gather(vectors, first, count, 0, 1);
  n.z = gather(vectors, first, count, 0, 2);
  const EdgeVec<T> square = n.x * n.x + n.y * n.y + n.z * n.z;
  for (int i = 0; i < kLanes; ++i) n.r[i] = std::sqrt(square[i]);
  n.inverse = T(1) / n.r;
  n.x *= n.inverse;
  n.y *= n.inverse;
  n.z *= n.inverse;
  return n;
}

// The three kernels; each works on `count` edges from `first`.
struct Values {
  template <class T, int L>
  RACE_INLINE static void run(const EdgeRows<const T>& vectors, T per_r_max, int64_t,
                              const EdgeRows<T>& x, const EdgeRows<T>& sh, int64_t first,
                              int count) {
    const auto n = direction<T>(vectors, first, count);
    EdgeVec<T> values[(L + 1) * (L + 1)];
    harmonics::values<T, L>(n, values);
    scatter<T>(x, first, count, 0, 0, n.r * per_r_max);
    for (int s = 0; s < (L + 1) * (L + 1); ++s) scatter<T>(sh, first, count, 0, s, values[s]);
  }
};

struct Vjp {
  template <class T, int L>
  RACE_INLINE static void run(const EdgeRows<const T>& vectors, T per_r_max, int64_t n_groups,
                              const EdgeRows<const T>& bar_x, const EdgeRows<const T>& bar_sh,
                              const EdgeRows<T>& result, int64_t first, int count) {
    const auto n = direction<T>(vectors, first, count);
    for (int64_t g = 0; g < n_groups; ++g) {
      EdgeVec<T> bar[(L + 1) * (L + 1)] = {}, v[3];
      for (int s = 1; s < (L + 1) * (L + 1); ++s) bar[s] = gather(bar_sh, first, count, g, s);
      harmonics::vjp<T, L>(n, bar, gather(bar_x, first, count, g, 0), per_r_max, v);
      for (int axis = 0; axis < 3; ++axis) scatter<T>(result, first, count, g, axis, v[axis]);
    }
  }
};

struct Jvp {
  template <class T, int L>
  RACE_INLINE static void run(const EdgeRows<const T>& vectors, T per_r_max, int64_t n_groups,
                              const EdgeRows<const T>& tangent, const EdgeRows<T>& x,
                              const EdgeRows<T>& sh, int64_t first, int count) {
    const auto n = direction<T>(vectors, first, count);
    for (int64_t g = 0; g < n_groups; ++g) {
      EdgeVec<T> u[3], values[(L + 1) * (L + 1)];
      for (int axis = 0; axis < 3; ++axis) u[axis] = gather(tangent, first, count, g, axis);
      const EdgeVec<T> along = harmonics::jvp<T, L>(n, u, values);
      scatter<T>(x, first, count, g, 0, along * per_r_max);
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
  const EdgeRows<const T> vectors{edge_vector.const_data_ptr<T>(), edge_vector.stride(0), 0,
                                  edge_vector.stride(1)};
  const T per_r_max = static_cast<T>(1.0 / r_max);
  const auto function =
      lmax == 0   ? over_edges<Kernel, T, 0, EdgeRows<const T>, T, int64_t, Operands...>
      : lmax == 1 ? over_edges<Kernel, T, 1, EdgeRows<const T>, T, int64_t, Operands...>
      : lmax == 2 ? over_edges<Kernel, T, 2, EdgeRows<const T>, T, int64_t, Operands...>
                  : over_edges<Kernel, T, 3, EdgeRows<const T>, T, int64_t, Operands...>;
  function(edge_vector.size(0), vectors, per_r_max, n_groups, operands...);
}

Two values_cpu(const Tensor& edge_vector, int64_t lmax, double r_max) {
  const int64_t S = edge_basis::check_values(edge_vector, lmax, r_max);
  Tensor x = rows_like(edge_vector, 1, 1), sh = rows_like(edge_vector, 1, S);
  AT_DISPATCH_FLOATING_TYPES(edge_vector.scalar_type(), "race::edge_basis", [&] {
    launch<Values, scalar_t>(edge_vector, lmax, r_max, 1, rows_of<scalar_t>(x),
                             rows_of<scalar_t>(sh));
  });
  return {x.squeeze(1), sh.squeeze(1)};
}

Tensor vjp_cpu(const Tensor& edge_vector, int64_t lmax, double r_max, const Tensor& bar_x,
               const Tensor& bar_sh) {
  edge_basis::check_vjp(edge_vector, lmax, r_max, bar_x, bar_sh);
  Tensor result = rows_like(edge_vector, bar_x.size(1), 3);
  AT_DISPATCH_FLOATING_TYPES(edge_vector.scalar_type(), "race::edge_basis_vjp", [&] {
    launch<Vjp, scalar_t>(edge_vector, lmax, r_max, bar_x.size(1), rows_of<scalar_t>(bar_x),
                          rows_of<scalar_t>(bar_sh), rows_of<scalar_t>(result));
  });
  return result;
}

Two jvp_cpu(const Tensor& edge_vector, int64_t lmax, double r_max, const Tensor& tangent) {
  const int64_t S = edge_basis::check_jvp(edge_vector, lmax, r_max, tangent);
  Tensor x = rows_like(edge_vector, tangent.size(1), 1),
         sh = rows_like(edge_vector, tangent.size(1), S);
  AT_DISPATCH_FLOATING_TYPES(edge_vector.scalar_type(), "race::edge_basis_jvp", [&] {
    launch<Jvp, scalar_t>(edge_vector, lmax, r_max, tangent.size(1), rows_of<scalar_t>(tangent),
                          rows_of<scalar_t>(x), rows_of<scalar_t>(sh));
  });
  return {x, sh};
}

Two values_meta(const Tensor& edge_vector, int64_t lmax, double r_max) {
  const int64_t S = edge_basis::check_values(edge_vector, lmax, r_max);
  return {edge_vector.new_empty({edge_vector.size(0), 1}),
          edge_vector.new_empty({edge_vector.size(0), S})};
}

Tensor vjp_meta(const Tensor& edge_vector, int64_t lmax, double r_max, const Tensor& bar_x,
                const Tensor& bar_sh) {
  edge_basis::check_vjp(edge_vector, lmax, r_max, bar_x, bar_sh);
  return rows_like(edge_vector, bar_x.size(1), 3);
}

Two jvp_meta(const Tensor& edge_vector, int64_t lmax, double r_max, const Tensor& tangent) {
  const int64_t S = edge_basis::check_jvp(edge_vector, lmax, r_max, tangent);
  return {rows_like(edge_vector, tangent.size(1), 1), rows_like(edge_vector, tangent.size(1), S)};
}

// The map is linear in the adjoints, and its transpose is the only derivative given. Training on
// forces needs no other: edges are data.
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
      Operator(library, kEdgeBasisSchemas[0])
          .cpu(TORCH_FN(values_cpu))
          .not_differentiable()
          .meta(TORCH_FN(values_meta));
      Operator(library, kEdgeBasisSchemas[1])
          .cpu(TORCH_FN(vjp_cpu))
          .autograd(TORCH_FN(vjp_autograd))
          .meta(TORCH_FN(vjp_meta));
      Operator(library, kEdgeBasisSchemas[2])
          .cpu(TORCH_FN(jvp_cpu))
          .not_differentiable()
          .meta(TORCH_FN(jvp_meta));
    });

}  // namespace
}  // namespace race
