#include "gate_kernels.h"

#include <cmath>

#include "device.cuh"

namespace race::cuda {
namespace {

template <class T>
__device__ __forceinline__ T read(const GateRows<T>& rows, int64_t atom, int64_t column) {
  return rows.data ? rows.data[atom * rows.stride + column] : T(0);
}

template <class T, GateMap map>
__global__ void gate_kernel(const __grid_constant__ GateArguments<T> args) {
  const int64_t work = global_thread(), atom = work / args.n_channels;
  if (atom >= args.n_atoms) return;
  int64_t channel = work % args.n_channels, k = 0;
  while (channel >= args.n_members * args.blocks[k].mul)
    channel -= args.n_members * args.blocks[k++].mul;
  const gate::Block& block = args.blocks[k];
  const int64_t step = args.n_members * block.mul, first = block.offset + channel,
                row = atom * args.dim;
  if (block.gate < 0) {
    const T x = read(args.u, atom, first), s = sigmoid(x), slope = s * (1 - s);
    if constexpr (map == GateMap::value) {
      args.out[row + first] = args.silu_norm * x * s;
    } else if constexpr (map == GateMap::backward) {
      args.du[row + first] = args.silu_norm * (s + x * slope) * read(args.grad, atom, first);
    } else {
      const T v = args.silu_norm * read(args.bar_u, atom, first);
      args.out[row + first] = (s + x * slope) * v;
      args.du[row + first] = slope * (2 + x * (1 - 2 * s)) * v * read(args.grad, atom, first);
    }
    return;
  }
  const int64_t of_gate = channel / block.mul * args.n_gates + block.gate + channel % block.mul;
  const T s = sigmoid(read(args.gates, atom, of_gate)), open = args.sigmoid_norm * s,
          slope = open * (1 - s);
  T sum = 0;
  if constexpr (map == GateMap::value) {
    for (int64_t d = 0; d < block.d; ++d)
      args.out[row + first + d * step] = open * read(args.u, atom, first + d * step);
    return;
  } else if constexpr (map == GateMap::backward) {
    for (int64_t d = 0; d < block.d; ++d) {
      const int64_t at = first + d * step;
      const T w = read(args.grad, atom, at);
      args.du[row + at] = open * w;
      sum += read(args.u, atom, at) * w;
    }
  } else {
    const T z = read(args.bar_gates, atom, of_gate), bend = (1 - 2 * s) * z;
    for (int64_t d = 0; d < block.d; ++d) {
      const int64_t at = first + d * step;
      const T x = read(args.u, atom, at), w = read(args.grad, atom, at),
              v = read(args.bar_u, atom, at);
      args.out[row + at] = open * v + slope * z * x;
      args.du[row + at] = slope * z * w;
      sum += (v + bend * x) * w;
    }
  }
  args.dgates[atom * args.n_members * args.n_gates + of_gate] = slope * sum;
}

}  // namespace

template <class T>
cudaError_t launch_gate(GateMap map, const GateArguments<T>& args, cudaStream_t stream) {
  const auto kernel = map == GateMap::value      ? gate_kernel<T, GateMap::value>
                      : map == GateMap::backward ? gate_kernel<T, GateMap::backward>
                                                 : gate_kernel<T, GateMap::double_backward>;
  return launch_threads(kernel, args, args.n_atoms * args.n_channels, stream);
}

template cudaError_t launch_gate<float>(GateMap, const GateArguments<float>&, cudaStream_t);
template cudaError_t launch_gate<double>(GateMap, const GateArguments<double>&, cudaStream_t);

}  // namespace race::cuda
