#pragma once
// Linear maps of rows by matrices of their species, for race::linear and race::chain: plain data
// and a stream, no torch.
//
// The unit of work is one warp with kMapRows rows (components of atoms of one species) and up to 64
// columns of one member. Rows wait in shared memory, 32 numbers at a time; each matrix element is
// loaded once for all of them; sums live in registers. Every number has one owner: nothing is
// summed atomically, and no kernel needs a barrier of a block.
#include <cstdint>

#include <cuda_runtime.h>

namespace race::cuda {

constexpr int kMapRows = 8;
constexpr int kMaxTensors = 16;  // tensors of a chain, at most

// One term added to a block of columns: x[i, in_offset:] viewed [d, M, mul_in] times the matrix at
// weight + species * weight_species, element (u, v) at u * step_in + v * step_out.
struct MapTerm {
  int32_t from, mul_in;
  int64_t in_offset, weight, weight_species, step_in, step_out;
};

// One task: tensor `to`, columns out_offset: viewed [d, M, mul_out], = its start + terms first ..
// last.
enum class MapStart : int32_t { zero, rows, itself };
struct MapTask {
  int32_t to, d, mul_out, first, last;
  MapStart start;
  int64_t out_offset, row_offset;  // row_offset: offset of the first column in `rows`
};

// Rows grouped by species: positions begin[s] .. begin[s + 1] of order are atoms of species s.
// Null: all are of species 0, in their own order. Atoms of no species get NaN.
struct BySpecies {
  int64_t n_atoms, n_species;
  const int64_t *begin, *order;
};

template <class T>
struct MapArguments {
  BySpecies atoms;
  const MapTask* tasks;
  const MapTerm* terms;
  int64_t n_tasks, n_members, weight_member;
  const T* weight;
  const T* rows;  // [S, row_width], initial values of new tensors; or null
  int64_t row_width;
  T* tensors[kMaxTensors];
  int64_t widths[kMaxTensors];
};

// Adjoint of the matrices: dweight[part, m, species, (u, v)] = sum over a part of the species' rows
// of x[u] grad[v]. A warp has kMapRows values of u and up to 32 of v.
struct MapBlock {
  int32_t d, mul_in, mul_out;
  int64_t in_offset, out_offset, weight;
};

template <class T>
struct OuterArguments {
  BySpecies atoms;
  const MapBlock* blocks;
  int64_t first_block, last_block, n_members, n_parts, numel;
  const T *x, *grad;
  int64_t x_width, grad_width;
  T* dweight;  // [n_parts, M, S, numel], zero; added to
};

// Warps that the tasks (blocks) need: host and device count in the same way.
template <class T>
cudaError_t launch_maps(const MapArguments<T>& args, int64_t warps, cudaStream_t stream);
template <class T>
cudaError_t launch_outer(const OuterArguments<T>& args, int64_t warps, cudaStream_t stream);

// Most tiles of rows in a task: each group of atoms ends with one that is not full.
#ifdef __CUDACC__
__host__ __device__
#endif
    inline int64_t row_tiles(const BySpecies& atoms, int64_t d) {
  return (atoms.n_atoms * d) / kMapRows + (atoms.begin ? atoms.n_species + 2 : 1);
}
#ifdef __CUDACC__
__host__ __device__
#endif
    inline int64_t column_tiles(int64_t mul_out) {
  return mul_out > 32 ? (mul_out + 63) / 64 : 1;
}

}  // namespace race::cuda
