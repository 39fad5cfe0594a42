#include "race/spline.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <algorithm>
#include <vector>

namespace race {
namespace {

using at::Tensor;

constexpr int64_t kColumns = 128;  // columns of the table per task: tasks of one member never write the same entry

// Hermite weights of (value, slope) at both ends of the interval that holds x, and of their x derivative.
template <class T>
struct Weights {
  int64_t row;
  T value[4], slope[4];

  Weights(T x, int64_t n_knots) {
    const T spacing = T(1) / T(n_knots - 1);
    const T position = std::min(std::max(x, T(0)), T(1)) * T(n_knots - 1);
    row = std::min(int64_t(position), n_knots - 2);
    const T t = position - T(row), s = T(1) - t;
    value[0] = (T(1) + T(2) * t) * s * s;
    value[1] = spacing * t * s * s;
    value[2] = t * t * (T(3) - T(2) * t);
    value[3] = -spacing * t * t * s;
    const bool inside = x > T(0) && x < T(1);
    slope[0] = inside ? -T(6) * t * s / spacing : T(0);
    slope[1] = inside ? s * (T(1) - T(3) * t) : T(0);
    slope[2] = -slope[0];
    slope[3] = inside ? t * (T(3) * t - T(2)) : T(0);
  }
};

struct Sizes {
  int64_t edges, groups, members, knots, columns;
};

Sizes check(const Tensor& x, const Tensor& table) {
  TORCH_CHECK(table.dim() == 4 && table.size(2) == 2 && table.size(1) >= 2, "radial_spline: table: expected [M, N >= 2, 2, K], got ", table.sizes());
  TORCH_CHECK(x.dim() == 2 && (x.size(1) == 1 || x.size(1) == table.size(0)), "radial_spline: x: expected [E, 1] or [E, ", table.size(0), "], got ",
              x.sizes());
  TORCH_CHECK(x.scalar_type() == table.scalar_type(), "radial_spline: x: expected ", table.scalar_type(), " like table, got ", x.scalar_type());
  return {x.size(0), x.size(1), table.size(0), table.size(1), table.size(3)};
}

// The loops over columns, compiled for several instruction sets (the loader picks). `p` are the four rows of an interval,
// (value, slope) at its left and right knot.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define RACE_CLONES __attribute__((target_clones("arch=skylake-avx512", "arch=haswell", "default")))
#else
#define RACE_CLONES
#endif

#define RACE_ROW_LOOPS(T)                                                                                                            \
  RACE_CLONES void combine(T* __restrict out, const T* __restrict p, const T* w, int64_t columns) {                                  \
    const T w0 = w[0], w1 = w[1], w2 = w[2], w3 = w[3];                                                                              \
    const T *p1 = p + columns, *p2 = p1 + columns, *p3 = p2 + columns;                                                               \
    for (int64_t c = 0; c < columns; ++c) out[c] = w0 * p[c] + w1 * p1[c] + w2 * p2[c] + w3 * p3[c];                                 \
  }                                                                                                                                  \
  RACE_CLONES T dot(const T* __restrict q, const T* __restrict p, const T* w, int64_t columns) {                                     \
    const T w0 = w[0], w1 = w[1], w2 = w[2], w3 = w[3];                                                                              \
    const T *p1 = p + columns, *p2 = p1 + columns, *p3 = p2 + columns;                                                               \
    T lanes[32] = {}, total = 0;                                                                                                     \
    int64_t c = 0;                                                                                                                   \
    for (; c + 32 <= columns; c += 32)                                                                                               \
      for (int i = 0; i < 32; ++i) lanes[i] += q[c + i] * (w0 * p[c + i] + w1 * p1[c + i] + w2 * p2[c + i] + w3 * p3[c + i]);        \
    for (; c < columns; ++c) total += q[c] * (w0 * p[c] + w1 * p1[c] + w2 * p2[c] + w3 * p3[c]);                                     \
    for (int i = 0; i < 32; ++i) total += lanes[i];                                                                                  \
    return total;                                                                                                                    \
  }                                                                                                                                  \
  /* p[row] += sum over the interval's edges of w[edge][row] q[edge], for columns first..last of `columns` */                        \
  RACE_CLONES void gather(T* __restrict p, const T* q, const int64_t* edge, const T* w, int64_t n, int64_t columns, int64_t first,   \
                          int64_t last) {                                                                                            \
    for (int64_t c0 = first; c0 < last; c0 += 32) {                                                                                  \
      T sum[4][32] = {};                                                                                                             \
      const int64_t width = std::min<int64_t>(32, last - c0);                                                                        \
      for (int64_t k = 0; k < n; ++k) {                                                                                              \
        const T* row = q + edge[k] * columns + c0;                                                                                   \
        const T w0 = w[4 * k], w1 = w[4 * k + 1], w2 = w[4 * k + 2], w3 = w[4 * k + 3];                                              \
        if (width == 32)                                                                                                             \
          for (int i = 0; i < 32; ++i) {                                                                                             \
            sum[0][i] += w0 * row[i];                                                                                                \
            sum[1][i] += w1 * row[i];                                                                                                \
            sum[2][i] += w2 * row[i];                                                                                                \
            sum[3][i] += w3 * row[i];                                                                                                \
          }                                                                                                                          \
        else                                                                                                                         \
          for (int i = 0; i < width; ++i) {                                                                                          \
            sum[0][i] += w0 * row[i];                                                                                                \
            sum[1][i] += w1 * row[i];                                                                                                \
            sum[2][i] += w2 * row[i];                                                                                                \
            sum[3][i] += w3 * row[i];                                                                                                \
          }                                                                                                                          \
      }                                                                                                                              \
      for (int row = 0; row < 4; ++row)                                                                                              \
        for (int i = 0; i < width; ++i) p[row * columns + c0 + i] += sum[row][i];                                                    \
    }                                                                                                                                \
  }

RACE_ROW_LOOPS(float)
RACE_ROW_LOOPS(double)

template <class T>
std::vector<Weights<T>> weights_of(const Tensor& x, const Sizes& n) {
  std::vector<Weights<T>> weights;
  weights.reserve(n.edges);
  const T* values = x.const_data_ptr<T>();
  for (int64_t e = 0; e < n.edges; ++e) weights.emplace_back(values[e * x.stride(0)], n.knots);
  return weights;
}

// Edges grouped by interval (counting sort): a table's adjoint is then one sum per interval, in registers.
struct Intervals {
  std::vector<int64_t> start, edge;

  template <class T>
  Intervals(const std::vector<Weights<T>>& weights, int64_t n_knots) : start(n_knots), edge(weights.size()) {
    for (const auto& w : weights) ++start[w.row + 1];
    for (int64_t i = 1; i < n_knots; ++i) start[i] += start[i - 1];
    std::vector<int64_t> next(start);
    for (size_t e = 0; e < weights.size(); ++e) edge[next[weights[e].row]++] = int64_t(e);
  }
};

// Adjoint of a table for row weights weight(edge, member, row); tasks (member, columns) never write the same entry.
template <class T, class Weight>
Tensor table_adjoint(const Tensor& grad, const Tensor& table, const std::vector<Weights<T>>& weights, const Sizes& n, const Weight& weight) {
  Tensor result = at::zeros_like(table);
  const Intervals intervals(weights, n.knots);
  const T* q = grad.const_data_ptr<T>();
  T* out = result.mutable_data_ptr<T>();
  const int64_t blocks = (n.columns + kColumns - 1) / kColumns;
  at::parallel_for(0, n.members * blocks, 1, [&](int64_t begin, int64_t end) {
    std::vector<T> w;
    for (int64_t task = begin; task < end; ++task) {
      const int64_t m = task / blocks, first = (task % blocks) * kColumns, last = std::min(first + kColumns, n.columns);
      for (int64_t i = 0; i + 1 < n.knots; ++i) {
        const int64_t* edge = intervals.edge.data() + intervals.start[i];
        const int64_t count = intervals.start[i + 1] - intervals.start[i];
        if (count == 0) continue;
        w.resize(4 * count);
        for (int64_t k = 0; k < count; ++k)
          for (int row = 0; row < 4; ++row) w[4 * k + row] = weight(edge[k], m, row);
        gather(out + (m * n.knots + i) * 2 * n.columns, q + m * n.edges * n.columns, edge, w.data(), count, n.columns, first, last);
      }
    }
  });
  return result;
}

}  // namespace

Tensor radial_spline_cpu(const Tensor& x, const Tensor& table_in) {
  const Sizes n = check(x, table_in);
  const Tensor table = table_in.contiguous();
  Tensor result = at::empty({n.members, n.edges, n.columns}, table.options());
  AT_DISPATCH_FLOATING_TYPES(table.scalar_type(), "radial_spline", [&] {
    const auto weights = weights_of<scalar_t>(x, n);
    const scalar_t* rows = table.const_data_ptr<scalar_t>();
    scalar_t* out = result.mutable_data_ptr<scalar_t>();
    at::parallel_for(0, n.members * n.edges, 256, [&](int64_t begin, int64_t end) {
      for (int64_t k = begin; k < end; ++k) {
        const auto& w = weights[k % n.edges];
        combine(out + k * n.columns, rows + ((k / n.edges) * n.knots + w.row) * 2 * n.columns, w.value, n.columns);
      }
    });
  });
  return result;
}

std::tuple<Tensor, Tensor> radial_spline_backward_cpu(const Tensor& grad_in, const Tensor& x, const Tensor& table_in, std::array<bool, 2> mask) {
  const Sizes n = check(x, table_in);
  const Tensor table = table_in.contiguous(), grad = grad_in.contiguous();
  Tensor dx, dtable;
  AT_DISPATCH_FLOATING_TYPES(table.scalar_type(), "radial_spline_backward", [&] {
    const auto weights = weights_of<scalar_t>(x, n);
    const scalar_t* rows = table.const_data_ptr<scalar_t>();
    const scalar_t* g = grad.const_data_ptr<scalar_t>();
    if (mask[0]) {
      Tensor each = at::empty({n.edges, n.members}, table.options());
      scalar_t* out = each.mutable_data_ptr<scalar_t>();
      at::parallel_for(0, n.members * n.edges, 256, [&](int64_t begin, int64_t end) {
        for (int64_t k = begin; k < end; ++k) {
          const auto& w = weights[k % n.edges];
          const scalar_t* p = rows + ((k / n.edges) * n.knots + w.row) * 2 * n.columns;
          out[(k % n.edges) * n.members + k / n.edges] = dot(g + k * n.columns, p, w.slope, n.columns);
        }
      });
      dx = n.groups == n.members ? each : each.sum(1, true);
    }
    if (mask[1]) dtable = table_adjoint(grad, table, weights, n, [&](int64_t e, int64_t, int row) { return weights[e].value[row]; });
  });
  return {dx, dtable};
}

std::tuple<Tensor, Tensor> radial_spline_double_backward_cpu(const Tensor& bar_x_in, const Tensor& grad_in, const Tensor& x, const Tensor& table_in,
                                                             std::array<bool, 2> mask) {
  const Sizes n = check(x, table_in);
  const Tensor table = table_in.contiguous(), grad = grad_in.contiguous();
  const Tensor bar_x = bar_x_in.expand({n.edges, n.members}).contiguous();
  Tensor bar_grad, bar_table;
  AT_DISPATCH_FLOATING_TYPES(table.scalar_type(), "radial_spline_double_backward", [&] {
    const auto weights = weights_of<scalar_t>(x, n);
    const scalar_t* rows = table.const_data_ptr<scalar_t>();
    const scalar_t* bar = bar_x.const_data_ptr<scalar_t>();
    if (mask[0]) {
      bar_grad = at::empty_like(grad);
      scalar_t* out = bar_grad.mutable_data_ptr<scalar_t>();
      at::parallel_for(0, n.members * n.edges, 256, [&](int64_t begin, int64_t end) {
        for (int64_t k = begin; k < end; ++k) {
          const auto& w = weights[k % n.edges];
          const scalar_t b = bar[(k % n.edges) * n.members + k / n.edges];
          const scalar_t slope[4] = {b * w.slope[0], b * w.slope[1], b * w.slope[2], b * w.slope[3]};
          combine(out + k * n.columns, rows + ((k / n.edges) * n.knots + w.row) * 2 * n.columns, slope, n.columns);
        }
      });
    }
    if (mask[1])
      bar_table = table_adjoint(grad, table, weights, n, [&](int64_t e, int64_t m, int row) { return bar[e * n.members + m] * weights[e].slope[row]; });
  });
  return {bar_grad, bar_table};
}

}  // namespace race
