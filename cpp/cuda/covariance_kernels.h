#pragma once
// The interface of covariance_cuda.cpp to the CUDA kernels: plain data and a stream, no torch. One
// thread computes one row.
#include <cstdint>

#include <cuda_runtime.h>

#include "../src/covariance.h"

namespace race::cuda {

template <class T>
struct HeadCovariance {
  covariance::Head head;
  double sigma0, jitter, noise_bound;
  const double* basis;  // [5, 9]
  int64_t n_rows, n_out;
  const T* raw;  // [n_rows, n_out]
  T* six;        // [n_rows, 6]
};

template <class T>
struct MemberCovariance {
  int64_t n_rows, n_members;
  const T* forces;  // [n_rows, M, 3]
  double* six;      // [n_rows, 6]
};

struct LogDeterminant {
  int64_t n_rows;
  const double* six;  // [n_rows, 6]
  double* result;
};

template <class T>
cudaError_t launch_head_covariance(const HeadCovariance<T>& args, cudaStream_t stream);
template <class T>
cudaError_t launch_member_covariance(const MemberCovariance<T>& args, cudaStream_t stream);
cudaError_t launch_log_determinant(const LogDeterminant& args, cudaStream_t stream);

}  // namespace race::cuda
