#pragma once
// The interface of conv_cuda.cpp to the CUDA kernels: plain data and a stream, no torch. Arithmetic
// and layouts are those of race/conv.h.
//
// The unit of work is one warp with up to kTile channels of one path and one member, lane by
// channel. So no kernel needs a barrier, and the path's numbers live in registers. The loops use
// small matrices over (m1, m2), P (gather) or v (edge adjoints): the coupling coefficients then
// enter once per atom instead of once per edge:
//
//   gather          P[m1, m2] = sum_e R x[m1] Y[m2],   out[m3] = sum_{m1 m2} cg P
//   edge adjoints   v[m1, m2] = sum_m3 cg w[m3],       t[m2] = sum_m1 x[m1] v[m1, m2],
//                   dR = t . Y,   dY = R t
//
// Nothing is summed atomically, so results do not depend on timing. The adjoint of g is a gather as
// well, over the edges sorted by sender. The adjoint of the table is one over the edges sorted by
// interval. Atomic sums are used only if two paths share weights or columns, as none of conv_paths
// do. All sums are in the type of the data; tensor cores are not used.
#include <cstdint>

#include <cuda_runtime.h>

#include "warp.h"

namespace race::cuda {

constexpr int kTile = 64;     // channels of a tile at most: two to a lane
constexpr int kInterval = 6;  // rows of the table that determine R in an interval
constexpr int kMaxSh = 16;    // (lmax + 1)^2, lmax = 3
constexpr int kEdgeChunk =
    32;  // edges of a receiver whose adjoints are summed in shared memory together

// Up to kTile channels of one path, for every member. `in` and `out` are the rows read and written;
// a transposed tile has them swapped. d_* and *_stride are the numbers and steps of the spherical
// components. *_member is the step to the next member's columns.
struct Tile {
  int32_t d_in, d_sh, d_out, sh_offset;
  int32_t width, lanes;  // channels, and the power of two they are padded to: 32 / lanes edges go
                         // through the warp together
  int32_t in, in_stride, in_member, out, out_stride, out_member;
  int32_t weight;  // first column of R
  int32_t cg, cg_in, cg_sh,
      cg_out;  // coefficient of (m_in, m_sh, m_out): cg + m_in cg_in + m_sh cg_sh + m_out cg_out
  int32_t columns_before;  // channels of the tiles before this one
};

// The operands of race::conv, and those of the second order (bars of race/conv.h) if given.
template <class T>
struct Operands {
  int64_t n_edges, n_weights, n_members, n_groups, sh_dim,
      n_rows;           // n_rows is that of the table, zero without one
  const T* radial;      // [M, E, K], null with a table
  const T* bar_radial;  // its cotangent [M, E, K], null: zero
  const T* table;       // [M, N, K]
  const T* x;           // [E]
  const T* bar_x;       // [E, G], null: zero
  const T* sh;          // [E, S]
  const T* bar_sh;      // [E, G, S], null: zero
  const T* cg;
};

// out[row] = sum over the row's edges. Each task is a run of tiles that write the same columns,
// done by one warp one after the other.
//   first order   T(x, R, Y)
//   second order  T(bar, R, Y) + T(x, b, Y) + T(x, R, c), b and c being the operands' bars, each of
//   the three only if given
template <class T>
struct Gather {
  Operands<T> operands;
  const Tile* tiles;
  const int32_t* task_begin;  // [n_tasks + 1]
  int64_t n_tasks, n_rows;
  const int64_t* row_ptr;  // [n_rows + 1]
  const int64_t* node;     // [E] row of x at the other end
  const int64_t* edge;     // [E] index of the edge in the operands, null: its own
  const T *x, *bar;        // [*, x_width]
  int64_t x_width;
  T* out;  // [n_rows, out_width]
  int64_t out_width;
  bool atomic;  // tasks share columns of out, which is zero
};

// Tiles that go through the edge kernels together. The adjoints of R, before those of the table,
// are [M, tile, E, width].
struct Batch {
  const Tile* tiles;
  int32_t n_tiles;
  int64_t columns_before, columns;  // channels of the tiles before these, and of these
};

// Adjoints of R, Y and x of every edge, over the tiles of a batch for all members.
template <class T>
struct EdgeAdjoints {
  Operands<T> operands;
  Batch batch;
  int64_t n_receivers, n_parts;
  const int64_t *row_ptr, *sender;
  const T *g, *bar_g;  // [*, g_width], bar_g null: zero
  int64_t g_width;
  const T* w;  // [n_receivers, w_width]
  int64_t w_width;
  T* dradial;       // [M, E, K], null: not wanted
  bool atomic;      // paths share columns of dradial, which is zero
  T *dr, *dr1;      // adjoints of R for the table; second order: also the first-order ones.
                    // Null: not wanted
  T* dsh;           // [n_parts, E, G, S], null: not wanted
  T* dx;            // [n_parts, E, G], null: not wanted
  bool accumulate;  // dsh and dx are added to
};

// dtable[m, n, k] = the sum over the edges of the six intervals that row n is part of.
template <class T>
struct TableSums {
  Operands<T> operands;
  Batch batch;
  const int64_t* interval_ptr;  // [N - 4] edges of interval i: order[interval_ptr[i]] ..
                                // order[interval_ptr[i + 1]]
  const int64_t* order;         // [E]
  const T *dr, *dr1;            // as above; dr1 null: first order, or no bar_x
  T* dtable;                    // [M, N, K], zero where nothing is written
  bool atomic;
};

// Each returns what the launch returned.
template <class T>
cudaError_t launch_gather(const Gather<T>& args, bool second, cudaStream_t stream);
template <class T>
cudaError_t launch_edge_adjoints(const EdgeAdjoints<T>& args, bool second, cudaStream_t stream);
template <class T>
cudaError_t launch_table_sums(const TableSums<T>& args, cudaStream_t stream);

// interval[e], as the kernels above find it.
template <class T>
cudaError_t launch_intervals(const T* x, int64_t n_edges, int64_t n_rows, int32_t* interval,
                             cudaStream_t stream);

}  // namespace race::cuda
