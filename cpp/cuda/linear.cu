#include <cmath>

#include "device.cuh"
#include "linear_kernels.h"

namespace race::cuda {
namespace {

template <class T>
struct alignas(4 * sizeof(T)) Four {
  T v[4];
};

// The shared memory of one warp: a tile of its rows.
template <class T>
struct Staged {
  Four<T> x[kMapRows][kWarp / 4];
  int64_t atom[kMapRows];
  int32_t component[kMapRows];
};

// Rows [first, first + count) of a species, numbered through its atoms and their d components.
// Species -1 is that of atoms that belong to none.
struct RowTile {
  int64_t species, position, first;
  int count;
};

// The tile-th tile of kMapRows rows; count 0: there are fewer.
__device__ __forceinline__ RowTile find_rows(const BySpecies& atoms, int64_t d, int64_t tile) {
  const int64_t n_groups = atoms.begin ? atoms.n_species + 2 : 1;
  for (int64_t k = 0; k < n_groups; ++k) {
    int64_t species = k - 1, begin = 0, end = atoms.n_atoms;
    if (atoms.begin) {
      if (k > 0) begin = atoms.begin[k - 1];
      if (k <= atoms.n_species) end = atoms.begin[k];
      if (k > atoms.n_species) species = -1;
    } else {
      species = 0;
    }
    const int64_t n_rows = (end - begin) * d, n_tiles = (n_rows + kMapRows - 1) / kMapRows;
    if (tile < n_tiles) {
      const int64_t first = tile * kMapRows, left = n_rows - first;
      return {species, begin, first, static_cast<int>(left < kMapRows ? left : kMapRows)};
    }
    tile -= n_tiles;
  }
  return {0, 0, 0, 0};
}

// Writes the atoms and components of the rows.
template <class T>
__device__ __forceinline__ void find_atoms(const BySpecies& atoms, const RowTile& rows, int64_t d,
                                           int lane, Staged<T>& staged) {
  if (lane < kMapRows) {
    const int64_t row = rows.first + (lane < rows.count ? lane : 0),
                  position = rows.position + row / d;
    staged.atom[lane] = atoms.order ? atoms.order[position] : position;
    staged.component[lane] = static_cast<int32_t>(row % d);
  }
  __syncwarp();
}

// C columns per lane: v, v + 32.
template <int C, class T>
__device__ __forceinline__ void map_rows(const MapArguments<T>& args, const MapTask& task,
                                         const RowTile& rows, int64_t member, int64_t v0, int lane,
                                         Staged<T>& staged) {
  const int64_t M = args.n_members;
  find_atoms(args.atoms, rows, task.d, lane, staged);
  T* to = args.tensors[task.to] + task.out_offset;
  const auto out = [&](int r, int c) {
    return staged.atom[r] * args.widths[task.to] +
           (staged.component[r] * M + member) * task.mul_out + v0 + lane + c * kWarp;
  };
  bool live[C];
  T sum[kMapRows][C];
#pragma unroll
  for (int c = 0; c < C; ++c) live[c] = v0 + lane + c * kWarp < task.mul_out;
#pragma unroll
  for (int r = 0; r < kMapRows; ++r)
#pragma unroll
    for (int c = 0; c < C; ++c) {
      sum[r][c] = T(0);
      if (r >= rows.count || !live[c]) continue;
      if (rows.species < 0)
        sum[r][c] = T(NAN);
      else if (task.start == MapStart::itself)
        sum[r][c] = to[out(r, c)];
      else if (task.start == MapStart::rows)
        sum[r][c] =
            args.rows[rows.species * args.row_width + task.row_offset +
                      (staged.component[r] * M + member) * task.mul_out + v0 + lane + c * kWarp];
    }

  const int last = rows.species < 0 ? task.first : task.last;
  for (int k = task.first; k < last; ++k) {
    const MapTerm term = args.terms[k];
    const T* x = args.tensors[term.from] + term.in_offset;
    const T* matrix = args.weight + member * args.weight_member + term.weight +
                      rows.species * term.weight_species + (v0 + lane) * term.step_out;
    for (int u0 = 0; u0 < term.mul_in; u0 += kWarp) {
      __syncwarp();  // the numbers before these have been read
#pragma unroll
      for (int r = 0; r < kMapRows; ++r) {
        const bool there = r < rows.count && u0 + lane < term.mul_in;
        staged.x[r][lane / 4].v[lane % 4] =
            there ? x[staged.atom[r] * args.widths[term.from] +
                      (staged.component[r] * M + member) * term.mul_in + u0 + lane]
                  : T(0);
      }
      __syncwarp();
      const int n = term.mul_in - u0 < kWarp ? term.mul_in - u0 : kWarp;
      for (int u = 0; u < n; u += 4) {
        T w[4][C];
#pragma unroll
        for (int i = 0; i < 4; ++i)
#pragma unroll
          for (int c = 0; c < C; ++c)
            w[i][c] = u + i < n && live[c]
                          ? matrix[(u0 + u + i) * term.step_in + c * kWarp * term.step_out]
                          : T(0);
#pragma unroll
        for (int r = 0; r < kMapRows; ++r) {
          const Four<T> x4 = staged.x[r][u / 4];
#pragma unroll
          for (int i = 0; i < 4; ++i)
#pragma unroll
            for (int c = 0; c < C; ++c) sum[r][c] += x4.v[i] * w[i][c];
        }
      }
    }
  }
#pragma unroll
  for (int r = 0; r < kMapRows; ++r)
#pragma unroll
    for (int c = 0; c < C; ++c)
      if (r < rows.count && live[c]) to[out(r, c)] = sum[r][c];
}

// One warp has one task, member, tile of columns and, fastest, tile of rows: neighbours share
// matrices.
template <class T>
__global__ void map_kernel(const __grid_constant__ MapArguments<T> args) {
  __shared__ Staged<T> staged[kWarpsPerBlock];
  int64_t work = global_warp();
  for (int64_t k = 0; k < args.n_tasks; ++k) {
    const MapTask& task = args.tasks[k];
    const int64_t tiles = row_tiles(args.atoms, task.d), columns = column_tiles(task.mul_out),
                  warps = tiles * columns * args.n_members;
    if (work >= warps) {
      work -= warps;
      continue;
    }
    const RowTile rows = find_rows(args.atoms, task.d, work % tiles);
    if (rows.count == 0) return;
    const int lane = threadIdx.x % kWarp;
    const int64_t member = work / tiles % args.n_members, v0 = work / tiles / args.n_members * 64;
    Staged<T>& mine = staged[threadIdx.x / kWarp];
    if (task.mul_out - v0 > kWarp)
      map_rows<2>(args, task, rows, member, v0, lane, mine);
    else
      map_rows<1>(args, task, rows, member, v0, lane, mine);
    return;
  }
}

// One warp has one block, member, species, part of its rows, kMapRows values of u and 32 of v.
template <class T>
__global__ void outer_kernel(const __grid_constant__ OuterArguments<T> args) {
  int64_t work = global_warp();
  const int64_t M = args.n_members, S = args.atoms.n_species;
  for (int64_t k = args.first_block; k < args.last_block; ++k) {
    const MapBlock block = args.blocks[k];
    const int64_t us = (block.mul_in + kMapRows - 1) / kMapRows,
                  vs = (block.mul_out + kWarp - 1) / kWarp, warps = us * vs * M * S * args.n_parts;
    if (work >= warps) {
      work -= warps;
      continue;
    }
    const int64_t v = work % vs * kWarp + threadIdx.x % kWarp, u0 = work / vs % us * kMapRows,
                  member = work / vs / us % M, species = work / vs / us / M % S,
                  part = work / vs / us / M / S;
    const int64_t begin = args.atoms.begin ? args.atoms.begin[species] : 0,
                  n_rows =
                      ((args.atoms.begin ? args.atoms.begin[species + 1] : args.atoms.n_atoms) -
                       begin) *
                      block.d;
    const bool live = v < block.mul_out;
    T sum[kMapRows] = {};
    for (int64_t row = n_rows * part / args.n_parts; row < n_rows * (part + 1) / args.n_parts;
         ++row) {
      const int64_t position = begin + row / block.d, column = row % block.d * M + member;
      const int64_t atom = args.atoms.order ? args.atoms.order[position] : position;
      const T* x = args.x + atom * args.x_width + block.in_offset + column * block.mul_in + u0;
      const T g =
          live ? args.grad[atom * args.grad_width + block.out_offset + column * block.mul_out + v]
               : T(0);
#pragma unroll
      for (int r = 0; r < kMapRows; ++r)
        if (u0 + r < block.mul_in) sum[r] += x[r] * g;
    }
    T* to = args.dweight + ((part * M + member) * S + species) * args.numel + block.weight +
            u0 * block.mul_out + v;
#pragma unroll
    for (int r = 0; r < kMapRows; ++r)
      if (live && u0 + r < block.mul_in) to[r * block.mul_out] += sum[r];
    return;
  }
}

}  // namespace

template <class T>
cudaError_t launch_maps(const MapArguments<T>& args, int64_t warps, cudaStream_t stream) {
  return launch(map_kernel<T>, args, warps, stream);
}

template <class T>
cudaError_t launch_outer(const OuterArguments<T>& args, int64_t warps, cudaStream_t stream) {
  return launch(outer_kernel<T>, args, warps, stream);
}

template cudaError_t launch_maps<float>(const MapArguments<float>&, int64_t, cudaStream_t);
template cudaError_t launch_maps<double>(const MapArguments<double>&, int64_t, cudaStream_t);
template cudaError_t launch_outer<float>(const OuterArguments<float>&, int64_t, cudaStream_t);
template cudaError_t launch_outer<double>(const OuterArguments<double>&, int64_t, cudaStream_t);

}  // namespace race::cuda
