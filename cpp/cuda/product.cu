#include <cmath>

#include "device.cuh"
#include "product_kernels.h"

namespace race::cuda {
namespace {

using product::BilinearMap;
using product::Entry;
using product::Run;

// value + epsilon tangent, epsilon^2 = 0
template <class T>
struct Dual {
  T value, tangent;
};

template <class T>
__device__ __forceinline__ Dual<T> operator*(const Dual<T>& a, const Dual<T>& b) {
  return {a.value * b.value, a.value * b.tangent + a.tangent * b.value};
}
template <class T>
__device__ __forceinline__ Dual<T> operator*(T a, const Dual<T>& b) {
  return {a * b.value, a * b.tangent};
}
template <class T>
__device__ __forceinline__ Dual<T>& operator+=(Dual<T>& a, const Dual<T>& b) {
  a.value += b.value;
  a.tangent += b.tangent;
  return a;
}
template <class T>
__device__ __forceinline__ Dual<T>& operator+=(Dual<T>& a, T b) {
  a.value += b;
  return a;
}

// The numbers are plain in first order, dual in second.
template <class T, bool Second>
struct Numbers {
  using type = T;
  __device__ static T get(const DualRows<T>& rows, int64_t i) { return rows.value[i]; }
  __device__ static void put(const DualRows<T, T*>& rows, int64_t i, T v) { rows.value[i] = v; }
  __device__ static T result(T v) { return v; }
};
template <class T>
struct Numbers<T, true> {
  using type = Dual<T>;
  __device__ static Dual<T> get(const DualRows<T>& rows, int64_t i) {
    return {rows.value[i], rows.tangent ? rows.tangent[i] : T(0)};
  }
  __device__ static void put(const DualRows<T, T*>& rows, int64_t i, const Dual<T>& v) {
    rows.value[i] = v.value;
    rows.tangent[i] = v.tangent;
  }
  __device__ static T result(const Dual<T>& v) { return v.tangent; }
};

template <class T>
DualRows<T> __device__ __forceinline__ readable(const DualRows<T, T*>& rows) {
  return {rows.value, rows.tangent};
}

// The components of one channel of one atom.
template <class T, bool Second>
struct Components {
  DualRows<T> rows;
  int64_t first, stride;

  __device__ __forceinline__ auto operator[](int32_t i) const {
    return Numbers<T, Second>::get(rows, first + i * stride);
  }
};
template <class T>
struct Cotangents {
  const T* rows;
  int64_t first, stride;

  __device__ __forceinline__ T operator[](int32_t i) const { return rows[first + i * stride]; }
};

template <class N, class T, class A, class B>
__device__ __forceinline__ N sum_entries(const Entry<T>* e, const Entry<T>* end, const A& a,
                                         const B& b) {
  N sum{};
  for (; e != end; ++e) sum += e->value * (a[e->a] * b[e->b]);
  return sum;
}

// Calls put(o, sum) for every component of the bilinear map of a and b.
template <class N, class T, class W, class A, class B, class Put>
__device__ __forceinline__ void contract(const BilinearMap<T>& list, int64_t n_components,
                                         const W& weight, const A& a, const B& b, Put&& put) {
  int32_t entry = 0, run = 0;
  for (int32_t o = 0; o < n_components; ++o) {
    N total{};
    for (; run < list.begin[o + 1]; ++run) {
      const Run r = list.runs[run];
      total += weight[r.path] * sum_entries<N>(list.entries + entry, list.entries + r.end, a, b);
      entry = r.end;
    }
    put(o, total);
  }
}

template <class T, bool Second>
__global__ void product_kernel(const __grid_constant__ ProductArguments<T> args) {
  using Of = Numbers<T, Second>;
  using N = typename Of::type;
  const int64_t width = args.n_members * args.n_channels, warps = (width + kWarp - 1) / kWarp,
                atom = global_warp() / warps,
                channel = global_warp() % warps * kWarp + threadIdx.x % kWarp;
  if (atom >= args.n_atoms || channel >= width) return;
  const int64_t D = args.n_components, first = atom * D * width + channel,
                species = args.species[atom];
  const auto at = [=](int32_t o) { return first + o * width; };
  if (species < 0 || species >= args.n_species) {  // a species outside has no weights: no number is
                                                   // right
    for (int32_t o = 0; o < D; ++o) {
      if (args.out) args.out[at(o)] = T(NAN);
      if (args.dx) args.dx[at(o)] = T(NAN);
    }
    return;
  }
  const int64_t member = channel / args.n_channels,
                matrix = (member * args.n_species + species) * args.n_paths * args.n_channels;
  const Components<T, Second> weight{args.weight, matrix + channel % args.n_channels,
                                     args.n_channels},
      x{args.x, first, width}, p2{readable(args.p2), first, width},
      bar_p2{readable(args.bar_p2), first, width};
  const Cotangents<T> grad{args.grad, first, width};
  const auto& maps = args.maps;

  contract<N>(maps.second, D, weight, x, x, [&](int32_t o, N sum) {
    Of::put(args.p2, at(o), sum);
    sum += x[o];
    if (args.out) args.out[at(o)] = Of::result(sum);
  });
  if (args.out && maps.has_third)
    contract<N>(maps.third, D, weight, p2, x,
                [&](int32_t o, const N& sum) { args.out[at(o)] += Of::result(sum); });
  if (!args.grad) return;
  contract<N>(maps.third_first, D, weight, grad, x, [&](int32_t o, N sum) {
    sum += grad[o];
    Of::put(args.bar_p2, at(o), sum);
  });
  if (!args.dx) return;
  contract<N>(maps.second_back, D, weight, bar_p2, x, [&](int32_t o, N sum) {
    sum += grad[o];
    args.dx[at(o)] = Of::result(sum);
  });
  if (maps.has_third)
    contract<N>(maps.third_second, D, weight, grad, p2,
                [&](int32_t o, const N& sum) { args.dx[at(o)] += Of::result(sum); });
}

// Adds to dweight, in which this thread has one column for every path.
template <class T, bool Second, class Bar, class Left>
__device__ __forceinline__ void weigh(const ProductWeights<T>& args, const BilinearMap<T>& list,
                                      int64_t begin, int64_t end, int64_t channel, T* dweight,
                                      const Bar& bar_of, const Left& left_of) {
  using N = typename Numbers<T, Second>::type;
  int32_t entry = 0, run = 0;
  for (int32_t o = 0; o < args.n_components; ++o)
    for (; run < list.begin[o + 1]; ++run) {
      const Run r = list.runs[run];
      T total = 0;
      for (int64_t k = begin; k < end; ++k) {
        const int64_t first = args.order[k] * args.n_components * args.width + channel;
        const Components<T, Second> x{args.x, first, args.width};
        const N sum = sum_entries<N>(list.entries + entry, list.entries + r.end, left_of(first), x);
        const N product = bar_of(first)[o] * sum;
        total += Numbers<T, Second>::result(product);
      }
      dweight[r.path * args.width] += total;
      entry = r.end;
    }
}

template <class T, bool Second>
__global__ void weights_kernel(const __grid_constant__ ProductWeights<T> args) {
  const int64_t warps = (args.width + kWarp - 1) / kWarp, work = global_warp() / warps,
                channel = global_warp() % warps * kWarp + threadIdx.x % kWarp;
  const int64_t species = work % args.n_species, part = work / args.n_species;
  if (part >= args.n_parts || channel >= args.width) return;
  const int64_t first = args.begin[species], n = args.begin[species + 1] - first;
  const int64_t begin = first + n * part / args.n_parts,
                end = first + n * (part + 1) / args.n_parts;
  T* dweight = args.dweight + work * args.n_paths * args.width + channel;
  const auto rows = [&](const DualRows<T>& of) {
    return [&args, &of](int64_t at) { return Components<T, Second>{of, at, args.width}; };
  };
  weigh<T, Second>(args, args.maps.second, begin, end, channel, dweight, rows(args.bar_p2),
                   rows(args.x));
  if (args.maps.has_third)
    weigh<T, Second>(
        args, args.maps.third, begin, end, channel, dweight,
        [&args](int64_t at) { return Cotangents<T>{args.grad, at, args.width}; }, rows(args.p2));
}

}  // namespace

template <class T>
cudaError_t launch_product(const ProductArguments<T>& args, bool second, cudaStream_t stream) {
  const int64_t width = args.n_members * args.n_channels;
  return launch(second ? product_kernel<T, true> : product_kernel<T, false>, args,
                args.n_atoms * ((width + kWarp - 1) / kWarp), stream);
}

template <class T>
cudaError_t launch_product_weights(const ProductWeights<T>& args, bool second,
                                   cudaStream_t stream) {
  return launch(second ? weights_kernel<T, true> : weights_kernel<T, false>, args,
                args.n_parts * args.n_species * ((args.width + kWarp - 1) / kWarp), stream);
}

template cudaError_t launch_product<float>(const ProductArguments<float>&, bool, cudaStream_t);
template cudaError_t launch_product<double>(const ProductArguments<double>&, bool, cudaStream_t);
template cudaError_t launch_product_weights<float>(const ProductWeights<float>&, bool,
                                                   cudaStream_t);
template cudaError_t launch_product_weights<double>(const ProductWeights<double>&, bool,
                                                    cudaStream_t);

}  // namespace race::cuda
