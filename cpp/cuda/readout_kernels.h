#pragma once
// The interface of readout_cuda.cpp to the CUDA kernels: plain data and a stream, no torch.
// Arithmetic and layouts are those of ../src/readout.h.
#include <cstdint>

#include <cuda_runtime.h>

namespace race::cuda {

// One warp has one trunk of one atom: its lanes share the hidden channels, and sum over them.
template <class T>
struct ReadoutArguments {
  int64_t n_atoms, n_trunks, n_hidden, n_readouts, n_scalars, n_quadrupoles;
  const T *z, *tensor, *weight;
  int64_t z_stride, tensor_stride;
  T* out;
};

// One thread has one hidden channel of one atom.
template <class T>
struct ReadoutVjpArguments {
  int64_t n_atoms, n_trunks, n_hidden, n_readouts;
  const T *bar_energy, *weight, *z;
  int64_t z_stride;
  T* bar_z;
};

// One thread has one member of one atom.
template <class T>
struct NodeEnergyArguments {
  int64_t n_atoms, n_members, n_out, n_species;
  const int64_t* species;
  const double *scale, *shift;
  const T* out;
  double* energy;
};
template <class T>
struct NodeEnergyVjpArguments {
  int64_t n_atoms, n_members, n_species;
  const int64_t* species;
  const double *scale, *bar_energy;
  T* bar;
};

template <class T>
cudaError_t launch_readout(const ReadoutArguments<T>& args, cudaStream_t stream);
template <class T>
cudaError_t launch_readout_vjp(const ReadoutVjpArguments<T>& args, cudaStream_t stream);
template <class T>
cudaError_t launch_node_energy(const NodeEnergyArguments<T>& args, cudaStream_t stream);
template <class T>
cudaError_t launch_node_energy_vjp(const NodeEnergyVjpArguments<T>& args, cudaStream_t stream);

}  // namespace race::cuda
