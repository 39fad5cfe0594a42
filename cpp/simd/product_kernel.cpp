// The kernels behind race::product, vectorised over channels. They are compiled once per
// instruction set, like conv_kernel.cpp.
//
// A tile of channels of one member goes through all atoms of a species: its weights are read, and
// their adjoints written, once. All kernels are one loop over a list of coupling coefficients
// (`contract`). Second derivatives are the same loops on dual numbers: the value is the first
// order's result, the tangent the second order's.
#include "product_kernel.h"

#include "simd.h"

namespace race::product {
namespace {

// value + epsilon tangent, epsilon^2 = 0
template <class V>
struct Dual {
  V value, tangent;
};

template <class V>
RACE_INLINE Dual<V> operator*(const Dual<V>& a, const Dual<V>& b) {
  return {a.value * b.value, a.value * b.tangent + a.tangent * b.value};
}
template <class V>
RACE_INLINE Dual<V> operator*(const V& a, const Dual<V>& b) {
  return {a * b.value, a * b.tangent};
}
template <class V>
RACE_INLINE Dual<V> operator*(const Dual<V>& a, const V& b) {
  return {a.value * b, a.tangent * b};
}
template <class V>
RACE_INLINE Dual<V> operator+(const Dual<V>& a, const Dual<V>& b) {
  return {a.value + b.value, a.tangent + b.tangent};
}
template <class V>
RACE_INLINE Dual<V> operator+(const V& a, const Dual<V>& b) {
  return {a + b.value, b.tangent};
}

template <class T, class V>
RACE_INLINE V scaled(T factor, const V& v) {
  return factor * v;
}
template <class T, class V>
RACE_INLINE Dual<V> scaled(T factor, const Dual<V>& v) {
  return {factor * v.value, factor * v.tangent};
}

// The result of an order: the value in first order, the tangent in second.
template <class V>
RACE_INLINE const V& result(const V& v) {
  return v;
}
template <class V>
RACE_INLINE const V& result(const Dual<V>& v) {
  return v.tangent;
}

template <class A, class B>
using Times = decltype(A() * B());

// sums[c] = sum over the entries up to `end` of value a b, for C vectors of channels.
template <class T, int C, class A, class B>
RACE_INLINE void sum_entries(const Entry<T>*& e, const Entry<T>* end, const A* a, const B* b,
                             Times<A, B>* sums) {
  RACE_UNROLLED (c, 0, C) sums[c] = scaled(e->value, a[e->a * C + c] * b[e->b * C + c]);
  for (++e; e != end; ++e)
    RACE_UNROLLED (c, 0, C) sums[c] = sums[c] + scaled(e->value, a[e->a * C + c] * b[e->b * C + c]);
}

// out[o] = start[o] + component o of the bilinear map of a and b.
template <class T, int C, class W, class A, class B, class S, class O>
RACE_INLINE void contract(const BilinearMap<T>& list, int64_t n_components, const W* weight,
                          const A* a, const B* b, const S* start, O* out) {
  const Entry<T>* e = list.entries;
  const Run* run = list.runs;
  for (int64_t o = 0; o < n_components; ++o) {
    O total[C];
    RACE_UNROLLED (c, 0, C) total[c] = start[o * C + c] + O{};
    for (const Run* last = list.runs + list.begin[o + 1]; run != last; ++run) {
      Times<A, B> sums[C];
      sum_entries<T, C>(e, list.entries + run->end, a, b, sums);
      RACE_UNROLLED (c, 0, C) total[c] = total[c] + weight[run->path * C + c] * sums[c];
    }
    RACE_UNROLLED (c, 0, C) out[o * C + c] = total[c];
  }
}

// The adjoint of the weights of the same map, from the adjoint `bar` of its result: added to.
template <class T, int C, class V, class A, class B, class G>
RACE_INLINE void weigh(const BilinearMap<T>& list, int64_t n_components, const G* bar, const A* a,
                       const B* b, V* dweight) {
  const Entry<T>* e = list.entries;
  const Run* run = list.runs;
  for (int64_t o = 0; o < n_components; ++o)
    for (const Run* last = list.runs + list.begin[o + 1]; run != last; ++run) {
      Times<A, B> sums[C];
      sum_entries<T, C>(e, list.entries + run->end, a, b, sums);
      RACE_UNROLLED (c, 0, C) {
        const auto product = bar[o * C + c] * sums[c];
        dweight[run->path * C + c] += result(product);
      }
    }
}

// Channels first .. first + n of every component of a row, in C vectors each; the rest are zero.
template <class T, int C>
struct Channels {
  using V = Vec<T, kWidth<T>>;
  int64_t first, n, stride;  // stride: from one component to the next

  RACE_INLINE V get(const T* row, int64_t component, int c) const {
    const T* from = row + component * stride + first + c * kWidth<T>;
    const int64_t left = n - c * kWidth<T>;
    if (left >= kWidth<T>) return load<V>(from);
    V v{};
    if (left > 0) __builtin_memcpy(&v, from, left * sizeof(T));
    return v;
  }
  RACE_INLINE void put(T* row, int64_t component, int c, const V& v) const {
    T* to = row + component * stride + first + c * kWidth<T>;
    const int64_t left = n - c * kWidth<T>;
    if (left >= kWidth<T>)
      store(to, v);
    else if (left > 0)
      __builtin_memcpy(to, &v, left * sizeof(T));
  }
  RACE_INLINE void get(const T* row, int64_t count, V* to) const {
    for (int64_t k = 0; k < count; ++k)
      RACE_UNROLLED (c, 0, C) to[k * C + c] = get(row, k, c);
  }
  RACE_INLINE void get(const T* row, const T* tangents, int64_t count, Dual<V>* to) const {
    for (int64_t k = 0; k < count; ++k)
      RACE_UNROLLED (c, 0, C) to[k * C + c] = {get(row, k, c), get(tangents, k, c)};
  }
  template <class Number>
  RACE_INLINE void put(T* row, int64_t count, const Number* from) const {
    for (int64_t k = 0; k < count; ++k)
      RACE_UNROLLED (c, 0, C) put(row, k, c, result(from[k * C + c]));
  }
};

// Positions [begin, end) of one species, C vectors of channels of one member. X and W: a vector, or
// dual if x and the weights have a direction.
template <class T, int C, class X, class W>
void run_tile(const Arguments<T>& args, int64_t member, int64_t species, int64_t first,
              int64_t count, int64_t begin, int64_t end) {
  using V = Vec<T, kWidth<T>>;
  using XW = Times<W, X>;
  constexpr bool kSecond = !std::is_same_v<X, V>;
  const int64_t D = args.n_components, P = args.n_paths, width = args.n_members * args.n_channels;
  const Channels<T, C> channels{member * args.n_channels + first, count, width};
  const Channels<T, C> of_weights{first, count, args.n_channels};
  const int64_t matrix = (member * args.n_species + species) * P * args.n_channels;

  T* at = args.scratch;
  const auto take = [&at](auto* type, int64_t n) {
    auto* taken = reinterpret_cast<decltype(type)>(at);
    at += n * C * sizeof(*type) / sizeof(T);
    return taken;
  };
  W* weight = take(static_cast<W*>(nullptr), P);
  V* dweight = take(static_cast<V*>(nullptr), P);
  X* x = take(static_cast<X*>(nullptr), D);
  V* grad = take(static_cast<V*>(nullptr), D);
  X* zero = take(static_cast<X*>(nullptr), D);
  XW* p2 = take(static_cast<XW*>(nullptr), D);
  XW* bar_p2 = take(static_cast<XW*>(nullptr), D);
  XW* sum = take(static_cast<XW*>(nullptr), D);

  for (int64_t k = 0; k < D * C; ++k) zero[k] = X{};
  for (int64_t k = 0; k < P * C; ++k) dweight[k] = V{};
  if constexpr (std::is_same_v<W, V>)
    of_weights.get(args.weight + matrix, P, weight);
  else
    of_weights.get(args.weight + matrix, args.bar_weight + matrix, P, weight);

  const BilinearMaps<T>& maps = args.maps;
  for (int64_t position = begin; position < end; ++position) {
    const int64_t row = (args.order ? args.order[position] : position) * D * width;
    if constexpr (kSecond)
      channels.get(args.x + row, args.bar_x + row, D, x);
    else
      channels.get(args.x + row, D, x);
    if (args.out || maps.has_third) contract<T, C>(maps.second, D, weight, x, x, zero, p2);
    if (args.out) {
      for (int64_t k = 0; k < D * C; ++k) sum[k] = x[k] + p2[k];
      if (maps.has_third) contract<T, C>(maps.third, D, weight, p2, x, sum, sum);
      channels.put(args.out + row, D, sum);
    }
    if (!args.grad) continue;
    channels.get(args.grad + row, D, grad);
    if (maps.has_third) {
      contract<T, C>(maps.third_first, D, weight, grad, x, grad, bar_p2);
    } else {
      for (int64_t k = 0; k < D * C; ++k) bar_p2[k] = grad[k] + XW{};
    }
    if (args.dx) {
      for (int64_t k = 0; k < D * C; ++k) sum[k] = grad[k] + XW{};
      if (maps.has_third) contract<T, C>(maps.third_second, D, weight, grad, p2, sum, sum);
      contract<T, C>(maps.second_back, D, weight, bar_p2, x, sum, sum);
      channels.put(args.dx + row, D, sum);
    }
    if (args.dweight) {
      weigh<T, C>(maps.second, D, bar_p2, x, x, dweight);
      if (maps.has_third) weigh<T, C>(maps.third, D, grad, p2, x, dweight);
    }
  }
  if (!args.dweight) return;
  for (int64_t p = 0; p < P; ++p)
    for (int c = 0; c < C; ++c)
      of_weights.put(args.dweight + matrix, p, c,
                     of_weights.get(args.dweight + matrix, p, c) + dweight[p * C + c]);
}

template <class T, int C, bool Second>
void run_numbers(const Arguments<T>& args, int64_t member, int64_t species, int64_t first,
                 int64_t count, int64_t begin, int64_t end) {
  using V = Vec<T, kWidth<T>>;
  if constexpr (!Second)
    run_tile<T, C, V, V>(args, member, species, first, count, begin, end);
  else if (args.bar_weight)
    run_tile<T, C, Dual<V>, Dual<V>>(args, member, species, first, count, begin, end);
  else
    run_tile<T, C, Dual<V>, V>(args, member, species, first, count, begin, end);
}

template <class T, bool Second>
void run(const Arguments<T>& args, int64_t begin, int64_t end) {
  constexpr int64_t W = kWidth<T>, kMost = Second ? 2 : kVectors;
  for (int64_t member = 0; member < args.n_members; ++member)
    for (int64_t species = 0; species < args.n_species; ++species) {
      const int64_t first = begin > args.begin[species] ? begin : args.begin[species],
                    last = end < args.begin[species + 1] ? end : args.begin[species + 1];
      if (first >= last) continue;
      for (int64_t c = 0, left; (left = args.n_channels - c) > 0;) {
        const auto tile = [&]<int C>() {
          const int64_t n = left < C * W ? left : C * W;
          run_numbers<T, C, Second>(args, member, species, c, n, first, last);
          c += n;
        };
        if (kMost >= 4 && left > 2 * W)
          tile.template operator()<kMost>();
        else if (left > W)
          tile.template operator()<2>();
        else
          tile.template operator()<1>();
      }
    }
}

const KernelSet kSet{.f32 = {.first = run<float, false>, .second = run<float, true>},
                     .f64 = {.first = run<double, false>, .second = run<double, true>}};

}  // namespace

const KernelSet* RACE_KERNELS() { return &kSet; }

}  // namespace race::product
