#include "readout_kernels.h"

#include <cmath>

#include "device.cuh"

namespace race::cuda {
namespace {

template <class T>
__global__ void readout_kernel(const __grid_constant__ ReadoutArguments<T> args) {
  const int lane = threadIdx.x % kWarp;
  const int64_t work = global_warp(), atom = work / args.n_trunks, trunk = work % args.n_trunks;
  if (atom >= args.n_atoms) return;
  const int64_t H = args.n_hidden, S = args.n_scalars, Q = args.n_quadrupoles, n_out = S + 5 * Q,
                width = args.n_readouts * S;
  const T* z = args.z + atom * args.z_stride + trunk * H;
  const T* weight = args.weight + trunk * H * width;
  // Columns of readout r of this atom and trunk
  const auto out = [&](int64_t r) {
    return args.out + ((atom * args.n_readouts + r) * args.n_trunks + trunk) * n_out;
  };
  for (int64_t first = 0; first < width; first += kWarp) {  // each lane keeps one of these sums
    const int count = static_cast<int>(width - first < kWarp ? width - first : kWarp);
    T mine = 0;
    for (int64_t begin = 0; begin < H; begin += kWarp) {
      const int64_t h = begin + lane;
      const T x = h < H ? z[h] : T(0), active = x * sigmoid(x);
      for (int k = 0; k < count; ++k) {
        const T sum = over_lanes(h < H ? active * weight[h * width + first + k] : T(0));
        if (k == lane) mine += sum;
      }
    }
    const int64_t k = first + lane;
    if (lane < count) out(k / S)[k % S] = mine;
  }
  const T* tensor = args.tensor + atom * args.tensor_stride;
  for (int64_t k = lane; k < args.n_readouts * Q * 5; k += kWarp) {
    const int64_t r = k / (5 * Q), q = k / 5 % Q, m = k % 5;
    out(r)[S + 5 * q + m] = tensor[((m * args.n_trunks + trunk) * args.n_readouts + r) * Q + q];
  }
}

template <class T>
__global__ void readout_vjp_kernel(const __grid_constant__ ReadoutVjpArguments<T> args) {
  const int64_t width = args.n_trunks * args.n_hidden, work = global_thread(), atom = work / width,
                column = work % width, trunk = column / args.n_hidden;
  if (atom >= args.n_atoms) return;
  T bar = 0;
  for (int64_t r = 0; r < args.n_readouts; ++r)
    bar += args.bar_energy[(atom * args.n_readouts + r) * args.n_trunks + trunk] *
           args.weight[r * width + column];
  const T x = args.z[atom * args.z_stride + column], s = sigmoid(x);
  args.bar_z[work] = bar * s * (1 + x * (1 - s));
}

template <class T>
__global__ void node_energy_kernel(const __grid_constant__ NodeEnergyArguments<T> args) {
  const int64_t work = global_thread(), atom = work / args.n_members;
  if (atom >= args.n_atoms) return;
  const int64_t species = args.species[atom];
  const bool known = species >= 0 && species < args.n_species;  // else no number is right
  args.energy[work] =
      known ? args.shift[species] +
                  args.scale[species] * static_cast<double>(args.out[work * args.n_out])
            : double(NAN);
}

template <class T>
__global__ void node_energy_vjp_kernel(const __grid_constant__ NodeEnergyVjpArguments<T> args) {
  const int64_t work = global_thread(), atom = work / args.n_members;
  if (atom >= args.n_atoms) return;
  const int64_t species = args.species[atom];
  const bool known = species >= 0 && species < args.n_species;
  args.bar[work] =
      known ? static_cast<T>(args.scale[species] * args.bar_energy[work % args.n_members]) : T(NAN);
}

}  // namespace

template <class T>
cudaError_t launch_readout(const ReadoutArguments<T>& args, cudaStream_t stream) {
  return launch(readout_kernel<T>, args, args.n_atoms * args.n_trunks, stream);
}

template <class T>
cudaError_t launch_readout_vjp(const ReadoutVjpArguments<T>& args, cudaStream_t stream) {
  return launch_threads(readout_vjp_kernel<T>, args, args.n_atoms * args.n_trunks * args.n_hidden,
                        stream);
}

template <class T>
cudaError_t launch_node_energy(const NodeEnergyArguments<T>& args, cudaStream_t stream) {
  return launch_threads(node_energy_kernel<T>, args, args.n_atoms * args.n_members, stream);
}

template <class T>
cudaError_t launch_node_energy_vjp(const NodeEnergyVjpArguments<T>& args, cudaStream_t stream) {
  return launch_threads(node_energy_vjp_kernel<T>, args, args.n_atoms * args.n_members, stream);
}

#define RACE_INSTANTIATE(T)                                                                \
  template cudaError_t launch_readout<T>(const ReadoutArguments<T>&, cudaStream_t);        \
  template cudaError_t launch_readout_vjp<T>(const ReadoutVjpArguments<T>&, cudaStream_t); \
  template cudaError_t launch_node_energy<T>(const NodeEnergyArguments<T>&, cudaStream_t); \
  template cudaError_t launch_node_energy_vjp<T>(const NodeEnergyVjpArguments<T>&, cudaStream_t);
RACE_INSTANTIATE(float)
RACE_INSTANTIATE(double)
#undef RACE_INSTANTIATE

}  // namespace race::cuda
