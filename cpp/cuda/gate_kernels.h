#pragma once
// The interface of gate_cuda.cpp to the CUDA kernels: plain data and a stream, no torch. Arithmetic
// and layouts are those of race/gate.h.
//
// One thread has one channel of one block of one atom, with all its components: neighbouring
// threads read neighbouring numbers, and the adjoint of a gate is summed by one thread.
#include <cstdint>

#include <cuda_runtime.h>

#include "../src/gate_block.h"

namespace race::cuda {

// Rows of [n, width], which may be columns of a wider tensor.
template <class T>
struct GateRows {
  const T* data;
  int64_t stride;
};

template <class T>
struct GateArguments {
  gate::Block blocks[gate::kMaxBlocks];
  int64_t n_blocks, n_atoms, n_members, n_gates, dim;
  int64_t n_channels;  // of all blocks and members: threads of an atom
  T silu_norm, sigmoid_norm;
  GateRows<T> u, gates, grad, bar_u, bar_gates;  // a cotangent that is null is zero
  T* out;                                        // [n, dim]: the result, or the adjoint of grad
  T *du, *dgates;                                // [n, dim], [n, M K]
};

enum class GateMap { value, backward, double_backward };

template <class T>
cudaError_t launch_gate(GateMap map, const GateArguments<T>& args, cudaStream_t stream);

}  // namespace race::cuda
