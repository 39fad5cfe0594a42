#include "conv_device.cuh"

namespace race::cuda {
namespace {

// One warp has one tile, member and row of the table: the edges of the intervals that the row is
// part of.
template <class T>
__global__ void row_kernel(const __grid_constant__ TableSums<T> args) {
  const Operands<T>& in = args.operands;
  const int64_t n_intervals = in.n_rows - kInterval + 1, work = global_warp();
  const int64_t row = work % in.n_rows, member = work / in.n_rows % in.n_members,
                t = work / in.n_rows / in.n_members;
  if (t >= args.batch.n_tiles) return;
  const Tile& tile = args.batch.tiles[t];
  const int64_t scratch =
      (member * args.batch.columns + tile.columns_before - args.batch.columns_before) * in.n_edges;
  const int lane = threadIdx.x % kWarp, slot = lane / tile.lanes, step = kWarp / tile.lanes;
  const int64_t group = in.n_groups > 1 ? member : 0;

  for (int c0 = 0; c0 < tile.width; c0 += kWarp) {
    const int c = c0 + lane % tile.lanes;
    const bool live = c < tile.width;
    T sum = 0;
#pragma unroll
    for (int i = 0; i < kInterval; ++i) {
      const int64_t interval = row - i;
      if (interval < 0 || interval >= n_intervals) continue;
      for (int64_t k = args.interval_ptr[interval] + slot; k < args.interval_ptr[interval + 1];
           k += step) {
        const int64_t e = args.order[k], at = scratch + e * tile.width + c;
        const Splines<T> splines = find_splines<T, false>(in.x[e], in.n_rows);
        const T dr = live ? args.dr[at] : T(0);
        const T dr1 = live && args.dr1 ? in.bar_x[e * in.n_groups + group] * args.dr1[at] : T(0);
        sum += splines.value[i] * dr + splines.slope[i] * dr1;
      }
    }
    for (int lanes = tile.lanes; lanes < kWarp; lanes *= 2) sum += shuffle_xor(sum, lanes);
    if (!live || slot > 0) continue;
    T* out = args.dtable + (member * in.n_rows + row) * in.n_weights + tile.weight + c;
    if (args.atomic)
      atomicAdd(out, sum);
    else
      *out = sum;
  }
}

template <class T>
struct Intervals {
  const T* x;
  int64_t n_edges, n_rows;
  int32_t* interval;
};

template <class T>
__global__ void interval_kernel(const __grid_constant__ Intervals<T> args) {
  const int64_t e = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  T t;
  if (e < args.n_edges) args.interval[e] = find_interval(args.x[e], args.n_rows, t);
}

}  // namespace

template <class T>
cudaError_t launch_table_sums(const TableSums<T>& args, cudaStream_t stream) {
  return launch(row_kernel<T>, args,
                args.batch.n_tiles * args.operands.n_members * args.operands.n_rows, stream);
}

template <class T>
cudaError_t launch_intervals(const T* x, int64_t n_edges, int64_t n_rows, int32_t* interval,
                             cudaStream_t stream) {
  return launch(interval_kernel<T>, Intervals<T>{x, n_edges, n_rows, interval},
                (n_edges + kWarp - 1) / kWarp, stream);
}

template cudaError_t launch_table_sums<float>(const TableSums<float>&, cudaStream_t);
template cudaError_t launch_table_sums<double>(const TableSums<double>&, cudaStream_t);
template cudaError_t launch_intervals<float>(const float*, int64_t, int64_t, int32_t*,
                                             cudaStream_t);
template cudaError_t launch_intervals<double>(const double*, int64_t, int64_t, int32_t*,
                                              cudaStream_t);

}  // namespace race::cuda
