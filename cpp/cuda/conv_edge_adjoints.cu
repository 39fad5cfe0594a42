#include "conv_device.cuh"

namespace race::cuda {
namespace {

// The shared memory of one warp: what it works on, for which registers are too few; its edges, and
// the adjoints of their harmonics (and, last, distance) summed so far.
template <class T>
struct Chunk {
  int64_t receiver, end;  // end: of the receiver's edges
  int64_t begin;          // first edge of the chunk
  int32_t n;              // edges of the chunk
  int32_t part, group;
  int64_t sender[kEdgeChunk];
  int32_t row[kEdgeChunk];  // rows of the table; -1: none, the edge's adjoints are zero
  T value[kInterval][kEdgeChunk], slope[kInterval][kEdgeChunk], curve[kInterval][kEdgeChunk];
  T sum[kEdgeChunk][kMaxSh + 1];
};

// Sums V numbers over groups of `lanes` lanes. While a lane has several numbers, each exchange
// halves them: 9 exchanges for 8 numbers over a warp instead of 40. put(index, sum) is called once
// for every number and group.
template <int V, class T, class Put>
__device__ __forceinline__ void sum_lanes(T* v, int lanes, int lane, int index, Put&& put) {
  const int offset = lanes / 2;
  if constexpr (V > 1) {
    if (offset > 0) {
      const bool upper = lane & offset;
      T half[V / 2];
#pragma unroll
      for (int i = 0; i < V / 2; ++i) {
        const T give = upper ? v[i] : v[i + V / 2];
        half[i] = (upper ? v[i + V / 2] : v[i]) + shuffle_xor(give, offset);
      }
      sum_lanes<V / 2>(half, offset, lane, index + (upper ? V / 2 : 0), put);
    } else {
#pragma unroll
      for (int i = 0; i < V; ++i) put(index + i, v[i]);
    }
  } else {
    T total = v[0];
    for (int o = offset; o > 0; o /= 2) total += shuffle_xor(total, o);
    if ((lane & (lanes - 1)) == 0) put(index, total);
  }
}

template <class T, bool Second>
struct EdgeTile {
  const EdgeAdjoints<T>& args;
  const Tile& tile;
  Chunk<T>& chunk;
  int member;

  template <int D1, int D2, int C>
  __device__ __forceinline__ void run(int c0) const {
    const Operands<T>& in = args.operands;
    const int lanes = C == 2 ? kWarp : tile.lanes, lane = threadIdx.x % kWarp, slot = lane / lanes,
              c = c0 + lane % lanes;
    bool live[C];
#pragma unroll
    for (int i = 0; i < C; ++i) live[i] = c + i * kWarp < tile.width;

    T v[C][D1][D2] = {};
    const T* w = args.w + chunk.receiver * args.w_width + tile.out + member * tile.out_member + c;
    const T* cg = in.cg + tile.cg;
    for (int m3 = 0; m3 < tile.d_out; ++m3, w += tile.out_stride, cg += tile.cg_out) {
      T w3[C];
#pragma unroll
      for (int i = 0; i < C; ++i) w3[i] = live[i] ? w[i * kWarp] : T(0);
#pragma unroll
      for (int m1 = 0; m1 < D1; ++m1)
#pragma unroll
        for (int m2 = 0; m2 < D2; ++m2) {
          const T coefficient = cg[m1 * tile.cg_in + m2 * tile.cg_sh];
#pragma unroll
          for (int i = 0; i < C; ++i) v[i][m1][m2] += coefficient * w3[i];
        }
    }

    constexpr int V = D2 == 1 ? 2 : D2 == 3 ? 4 : 8;  // adjoints of Y[m2], of x, and padding
    const int x_column = tile.in + member * tile.in_member + c, weight = tile.weight + c,
              group = in.n_groups > 1 ? member : 0;
    const bool sums = args.dsh || args.dx;
    for (int base = 0; base < chunk.n; base += kWarp / lanes) {
      const int k = base + slot;
      T part[V] = {};
      if (k < chunk.n && !(in.table && chunk.row[k] < 0)) {
        const int64_t e = chunk.begin + k, start = chunk.sender[k] * args.g_width + x_column;
        const T* sh = in.sh + e * in.sh_dim + tile.sh_offset;
        const T* bar_sh = Second && in.bar_sh
                              ? in.bar_sh + (e * in.n_groups + group) * in.sh_dim + tile.sh_offset
                              : nullptr;
        const T xi = Second && in.bar_x ? in.bar_x[e * in.n_groups + group] : T(0);
#pragma unroll
        for (int i = 0; i < C; ++i) {
          if (!live[i]) continue;
          T r = 0, b = 0, slope = 0,
            curve = 0;  // R and its derivatives by x; b is the direction of R in the second order
          if (in.table) {
            const T* rows =
                in.table + (member * in.n_rows + chunk.row[k]) * in.n_weights + weight + i * kWarp;
#pragma unroll
            for (int a = 0; a < kInterval; ++a) {
              const T p = rows[a * in.n_weights];
              r += chunk.value[a][k] * p;
              slope += chunk.slope[a][k] * p;
              if constexpr (Second) curve += chunk.curve[a][k] * p;
            }
            if constexpr (Second) b = xi * slope;
          } else {
            const int64_t at = (member * in.n_edges + e) * in.n_weights + weight + i * kWarp;
            r = in.radial[at];
            if constexpr (Second) b = in.bar_radial ? in.bar_radial[at] : T(0);
          }

          T t[D2] = {}, ta[D2] = {};  // adjoints of x and, in the second order, of its direction
#pragma unroll
          for (int m1 = 0; m1 < D1; ++m1) {
            const T x = args.g[start + m1 * tile.in_stride + i * kWarp];
            T xa = 0;
            if constexpr (Second)
              xa = args.bar_g ? args.bar_g[start + m1 * tile.in_stride + i * kWarp] : T(0);
#pragma unroll
            for (int m2 = 0; m2 < D2; ++m2) {
              t[m2] += x * v[i][m1][m2];
              if constexpr (Second) ta[m2] += xa * v[i][m1][m2];
            }
          }
          T dr1 = 0, dr = 0;
#pragma unroll
          for (int m2 = 0; m2 < D2; ++m2) {
            const T y = sh[m2];  // read here: before the sums, registers are too few
            dr1 += t[m2] * y;
            if constexpr (Second) {
              dr += ta[m2] * y + t[m2] * (bar_sh ? bar_sh[m2] : T(0));
              part[m2] += r * ta[m2] + b * t[m2];
            } else {
              part[m2] += r * t[m2];
            }
          }
          if constexpr (!Second) dr = dr1;
          part[D2] += dr * slope;
          if constexpr (Second) part[D2] += xi * dr1 * curve;

          if (args.dradial) {
            T* out = args.dradial + (member * in.n_edges + e) * in.n_weights + weight + i * kWarp;
            if (args.atomic)
              atomicAdd(out, dr);
            else
              *out = dr;
          }
          if (args.dr) {
            const Batch& batch = args.batch;
            const int64_t before = member * batch.columns + tile.columns_before,
                          at = (before - batch.columns_before) * in.n_edges + e * tile.width + c +
                               i * kWarp;
            args.dr[at] = dr;
            if (Second && args.dr1) args.dr1[at] = dr1;
          }
        }
      }
      if (sums)
        sum_lanes<V>(part, lanes, lane, 0, [&](int index, T value) {
          if (k >= chunk.n || index > D2) return;
          chunk.sum[k][index < D2 ? tile.sh_offset + index : kMaxSh] += value;
        });
    }
    __syncwarp();  // the next tile's sums are added by other lanes
  }
};

// One warp has one receiver, a part of the tiles and (if members have adjoints of their own) one
// member.
template <class T, bool Second>
__global__ void __launch_bounds__(kWarp* kWarpsPerBlock, kBlocksPerMultiprocessor<T>)
    edge_kernel(const __grid_constant__ EdgeAdjoints<T> args) {
  __shared__ Chunk<T> chunks[kWarpsPerBlock];
  const Operands<T>& in = args.operands;
  Chunk<T>& chunk = chunks[threadIdx.x / kWarp];
  const int lane = threadIdx.x % kWarp;
  const int64_t work = global_warp() / args.n_receivers;
  if (work >= args.n_parts * in.n_groups) return;
  if (lane == 0) {
    chunk.receiver = global_warp() % args.n_receivers;
    chunk.end = args.row_ptr[chunk.receiver + 1];
    chunk.part = static_cast<int>(work % args.n_parts);
    chunk.group = static_cast<int>(work / args.n_parts);
  }
  __syncwarp();

  const int n_tiles = args.batch.n_tiles,
            members = in.n_groups > 1 ? 1 : static_cast<int>(in.n_members);
  for (int64_t begin = args.row_ptr[chunk.receiver]; begin < chunk.end; begin += kEdgeChunk) {
    const int64_t left = chunk.end - begin;
    const int n = static_cast<int>(left < kEdgeChunk ? left : kEdgeChunk);
    if (lane == 0) {
      chunk.begin = begin;
      chunk.n = n;
    }
    if (lane < n) {
      chunk.sender[lane] = args.sender[begin + lane];
      if (in.table) {
        const T x = in.x[begin + lane];
        const Splines<T> splines = find_splines<T, Second>(x, in.n_rows);
        chunk.row[lane] = x >= T(1) && !args.dr ? -1 : splines.row;
        for (int a = 0; a < kInterval; ++a) {
          chunk.value[a][lane] = splines.value[a];
          chunk.slope[a][lane] = splines.slope[a];
          if constexpr (Second) chunk.curve[a][lane] = splines.curve[a];
        }
      }
      for (int s = 0; s <= kMaxSh; ++s) chunk.sum[lane][s] = 0;
    }
    __syncwarp();

    for (int q = chunk.part; q < n_tiles * members; q += static_cast<int>(args.n_parts)) {
      const int member = in.n_groups > 1 ? chunk.group : q / n_tiles;
      const Tile& tile = args.batch.tiles[q % n_tiles];
      for_dimensions(tile, EdgeTile<T, Second>{args, tile, chunk, member});
    }

    const int64_t row = (chunk.part * in.n_edges + begin) * in.n_groups +
                        chunk.group;  // into dsh; the next edge's is n_groups further
    if (args.dsh)
      for (int at = lane; at < n * in.sh_dim; at += kWarp) {
        const int64_t k = at / in.sh_dim, s = at % in.sh_dim;
        T* out = args.dsh + (row + k * in.n_groups) * in.sh_dim + s;
        if (s == 0)
          *out = T(0);  // the first harmonic is a constant: its adjoint is zero
        else
          *out = args.accumulate ? *out + chunk.sum[k][s] : chunk.sum[k][s];
      }
    if (args.dx && lane < n) {
      T* out = args.dx + row + lane * in.n_groups;
      *out = args.accumulate ? *out + chunk.sum[lane][kMaxSh] : chunk.sum[lane][kMaxSh];
    }
    __syncwarp();
  }
}

}  // namespace

template <class T>
cudaError_t launch_edge_adjoints(const EdgeAdjoints<T>& args, bool second, cudaStream_t stream) {
  if (args.batch.n_tiles == 0) return cudaSuccess;
  return launch(second ? edge_kernel<T, true> : edge_kernel<T, false>, args,
                args.n_receivers * args.n_parts * args.operands.n_groups, stream);
}

template cudaError_t launch_edge_adjoints<float>(const EdgeAdjoints<float>&, bool, cudaStream_t);
template cudaError_t launch_edge_adjoints<double>(const EdgeAdjoints<double>&, bool, cudaStream_t);

}  // namespace race::cuda
