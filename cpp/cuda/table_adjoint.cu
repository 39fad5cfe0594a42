#include "device.cuh"

namespace race::cuda {
namespace {

// One warp has one tile, member and row of the table: the edges of the intervals that the row is
// part of.
template <class T>
__global__ void row_kernel(const __grid_constant__ TableSums<T> job) {
  const Operands<T>& in = job.operands;
  const int64_t n_tiles = job.last_tile - job.first_tile, n_intervals = in.n_rows - kInterval + 1,
                work = global_warp();
  const int64_t row = work % in.n_rows, member = work / in.n_rows % in.n_members,
                t = work / in.n_rows / in.n_members;
  if (t >= n_tiles) return;
  const Tile& tile = job.tiles[job.first_tile + t];
  const int64_t before = job.tiles[job.first_tile].columns_before;
  const int64_t columns =
      job.tiles[job.last_tile - 1].columns_before + job.tiles[job.last_tile - 1].width - before;
  const int64_t scratch = (member * columns + tile.columns_before - before) * in.n_edges;
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
      for (int64_t k = job.interval_ptr[interval] + slot; k < job.interval_ptr[interval + 1];
           k += step) {
        const int64_t e = job.order[k], at = scratch + e * tile.width + c;
        const Splines<T> splines = find_splines<T, false>(in.x[e], in.n_rows);
        const T dr = live ? job.dr[at] : T(0);
        const T dr1 = live && job.dr1 ? in.bar_x[e * in.n_groups + group] * job.dr1[at] : T(0);
        sum += splines.value[i] * dr + splines.slope[i] * dr1;
      }
    }
    for (int lanes = tile.lanes; lanes < kWarp; lanes *= 2) sum += shuffle_xor(sum, lanes);
    if (!live || slot > 0) continue;
    T* out = job.dtable + (member * in.n_rows + row) * in.n_weights + tile.weight + c;
    if (job.atomic)
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
__global__ void interval_kernel(const __grid_constant__ Intervals<T> job) {
  const int64_t e = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  T t;
  if (e < job.n_edges) job.interval[e] = find_interval(job.x[e], job.n_rows, t);
}

struct Receivers {
  const int64_t *row_ptr, *sender;
  int64_t n_receivers, n_edges, n_nodes;
  int64_t *receiver, *fault;
};

__device__ void report(const Receivers& job, int64_t kind, int64_t position, int64_t value) {
  job.fault[0] = kind;  // one bad entry; any of them will do
  job.fault[1] = position;
  job.fault[2] = value;
}

// One warp has one receiver.
__global__ void receiver_kernel(const __grid_constant__ Receivers job) {
  const int64_t j = global_warp();
  if (j >= job.n_receivers) return;
  const int lane = threadIdx.x % kWarp;
  const int64_t begin = job.row_ptr[j], end = job.row_ptr[j + 1];
  const bool wrong = begin < 0 || end < begin || end > job.n_edges || (j == 0 && begin != 0) ||
                     (j == job.n_receivers - 1 && end != job.n_edges);
  if (wrong) {
    if (lane == 0) report(job, 1, j, end);
    return;
  }
  for (int64_t e = begin + lane; e < end; e += kWarp) {
    job.receiver[e] = j;
    if (job.sender[e] < 0 || job.sender[e] >= job.n_nodes) report(job, 2, e, job.sender[e]);
  }
}

}  // namespace

template <class T>
cudaError_t launch_table_sums(const TableSums<T>& job, cudaStream_t stream) {
  return launch(row_kernel<T>, job,
                (job.last_tile - job.first_tile) * job.operands.n_members * job.operands.n_rows,
                stream);
}

template <class T>
cudaError_t launch_intervals(const T* x, int64_t n_edges, int64_t n_rows, int32_t* interval,
                             cudaStream_t stream) {
  return launch(interval_kernel<T>, Intervals<T>{x, n_edges, n_rows, interval},
                (n_edges + kWarp - 1) / kWarp, stream);
}

cudaError_t launch_receivers(const int64_t* row_ptr, const int64_t* sender, int64_t n_receivers,
                             int64_t n_edges, int64_t n_nodes, int64_t* receiver, int64_t* fault,
                             cudaStream_t stream) {
  return launch(receiver_kernel,
                Receivers{row_ptr, sender, n_receivers, n_edges, n_nodes, receiver, fault},
                n_receivers, stream);
}

template cudaError_t launch_table_sums<float>(const TableSums<float>&, cudaStream_t);
template cudaError_t launch_table_sums<double>(const TableSums<double>&, cudaStream_t);
template cudaError_t launch_intervals<float>(const float*, int64_t, int64_t, int32_t*,
                                             cudaStream_t);
template cudaError_t launch_intervals<double>(const double*, int64_t, int64_t, int32_t*,
                                              cudaStream_t);

}  // namespace race::cuda
