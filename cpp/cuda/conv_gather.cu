#include "conv_device.cuh"

namespace race::cuda {
namespace {

// All tasks process these rows before the next ones: their edges stay in the second-level cache.
// Warps that run at one time read the same few columns of the radial table, which stay in the
// first-level cache.
constexpr int64_t kRowsTogether = 8192;

template <class T, bool Second>
struct GatherTile {
  const Gather<T>& args;
  const Tile& tile;
  int64_t row, member;
  bool first;  // the first tile of its task stores, later tiles add

  template <int D1, int D2, int C>
  __device__ __forceinline__ void run(int c0) const {
    const Operands<T>& in = args.operands;
    const int lane = threadIdx.x % kWarp, slot = C == 2 ? 0 : lane / tile.lanes,
              c = c0 + (C == 2 ? lane : lane % tile.lanes);
    const int step = C == 2 ? 1 : kWarp / tile.lanes;
    bool live[C];
#pragma unroll
    for (int i = 0; i < C; ++i) live[i] = c + i * kWarp < tile.width;
    const int64_t x_column = tile.in + member * tile.in_member + c, weight = tile.weight + c;
    const int64_t group = in.n_groups > 1 ? member : 0;

    T sum[C][D1][D2] = {};
    const int64_t end = args.row_ptr[row + 1];
    for (int64_t k = args.row_ptr[row] + slot; k < end; k += step) {
      const int64_t e = args.edge ? args.edge[k] : k;
      if (in.table && in.x[e] >= T(1)) continue;  // R = R' = R'' = 0; NaN goes on
      const int64_t start = args.node[k] * args.x_width + x_column;
      T y[D2], yc[D2], r[C] = {}, b[C] = {};
#pragma unroll
      for (int m = 0; m < D2; ++m) {
        y[m] = in.sh[e * in.sh_dim + tile.sh_offset + m];
        if constexpr (Second)
          yc[m] = in.bar_sh ? in.bar_sh[(e * in.n_groups + group) * in.sh_dim + tile.sh_offset + m]
                            : T(0);
      }
      if (in.table) {
        const Splines<T> splines = find_splines<T, false>(in.x[e], in.n_rows);
        const T xi = Second && in.bar_x ? in.bar_x[e * in.n_groups + group] : T(0);
        const T* rows = in.table + (member * in.n_rows + splines.row) * in.n_weights + weight;
#pragma unroll
        for (int i = 0; i < C; ++i)
          if (live[i])
#pragma unroll
            for (int n = 0; n < kInterval; ++n) {
              const T p = rows[n * in.n_weights + i * kWarp];
              r[i] += splines.value[n] * p;
              if constexpr (Second) b[i] += xi * splines.slope[n] * p;
            }
      } else {
        const int64_t at = (member * in.n_edges + e) * in.n_weights + weight;
#pragma unroll
        for (int i = 0; i < C; ++i)
          if (live[i]) {
            r[i] = in.radial[at + i * kWarp];
            if constexpr (Second) b[i] = in.bar_radial ? in.bar_radial[at + i * kWarp] : T(0);
          }
      }
#pragma unroll
      for (int m1 = 0; m1 < D1; ++m1)
#pragma unroll
        for (int i = 0; i < C; ++i) {
          const int64_t at = start + m1 * tile.in_stride + i * kWarp;
          const T x = live[i] ? args.x[at] : T(0), rx = r[i] * x;
          T s = rx;
          if constexpr (Second) s = b[i] * x + (args.bar && live[i] ? r[i] * args.bar[at] : T(0));
#pragma unroll
          for (int m2 = 0; m2 < D2; ++m2) {
            sum[i][m1][m2] += s * y[m2];
            if constexpr (Second) sum[i][m1][m2] += rx * yc[m2];
          }
        }
    }
    if constexpr (C == 1)  // narrow tiles: the slots took different edges
      for (int lanes = tile.lanes; lanes < kWarp; lanes *= 2)
#pragma unroll
        for (int m1 = 0; m1 < D1; ++m1)
#pragma unroll
          for (int m2 = 0; m2 < D2; ++m2) sum[0][m1][m2] += shuffle_xor(sum[0][m1][m2], lanes);
    if (slot > 0) return;

    T* out = args.out + row * args.out_width + tile.out + member * tile.out_member + c;
    const T* cg = in.cg + tile.cg;
    for (int m3 = 0; m3 < tile.d_out; ++m3, out += tile.out_stride, cg += tile.cg_out) {
      T total[C] = {};
#pragma unroll
      for (int m1 = 0; m1 < D1; ++m1)
#pragma unroll
        for (int m2 = 0; m2 < D2; ++m2) {
          const T coefficient = cg[m1 * tile.cg_in + m2 * tile.cg_sh];
#pragma unroll
          for (int i = 0; i < C; ++i) total[i] += coefficient * sum[i][m1][m2];
        }
#pragma unroll
      for (int i = 0; i < C; ++i) {
        if (!live[i]) continue;
        if (args.atomic)
          atomicAdd(out + i * kWarp, total[i]);
        else
          out[i * kWarp] = first ? total[i] : out[i * kWarp] + total[i];
      }
    }
  }
};

template <class T, bool Second>
__global__ void __launch_bounds__(kWarp* kWarpsPerBlock, kBlocksPerMultiprocessor<T>)
    gather_kernel(const __grid_constant__ Gather<T> args) {
  const int64_t n_members = args.operands.n_members, work = global_warp(),
                per_batch = kRowsTogether * args.n_tasks * n_members;
  const int64_t batch = work / per_batch, first_row = batch * kRowsTogether;
  if (first_row >= args.n_rows) return;
  const int64_t rows =
      args.n_rows - first_row < kRowsTogether ? args.n_rows - first_row : kRowsTogether;
  const int64_t within = work - batch * per_batch, task = within / rows;
  if (task >= args.n_tasks * n_members) return;
  const int64_t member = task % n_members, run = task / n_members;
  for (int32_t t = args.task_begin[run]; t < args.task_begin[run + 1]; ++t)
    for_dimensions(args.tiles[t],
                   GatherTile<T, Second>{args, args.tiles[t], first_row + within % rows, member,
                                         t == args.task_begin[run]});
}

}  // namespace

template <class T>
cudaError_t launch_gather(const Gather<T>& args, bool second, cudaStream_t stream) {
  return launch(second ? gather_kernel<T, true> : gather_kernel<T, false>, args,
                args.n_rows * args.n_tasks * args.operands.n_members, stream);
}

template cudaError_t launch_gather<float>(const Gather<float>&, bool, cudaStream_t);
template cudaError_t launch_gather<double>(const Gather<double>&, bool, cudaStream_t);

}  // namespace race::cuda
