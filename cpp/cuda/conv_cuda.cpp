// race::conv and its derivatives on CUDA tensors; arguments, results and errors are those of
// race/conv.h. They use the current stream. They wait for the device once per graph (for its
// check), not per call. The table's adjoint takes up to RACE_CUDA_SCRATCH_MB (environment; default
// 1024) megabytes of scratch, or several passes if it needs more.
#include <algorithm>
#include <cstdlib>
#include <string>

#include <ATen/Dispatch.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/searchsorted.h>
#include <ATen/ops/sort.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#include "../src/conv_dispatch.h"
#include "../src/conv_problem.h"
#include "../src/recent.h"
#include "conv_tiling.h"
#include "register.h"
#include "remembered.h"
#include "sorted_edges.h"

namespace race::cuda {
namespace {

using at::Tensor;
using conv::Problem;

constexpr size_t kCoefficients = 256;  // casts of coefficients in memory

// Each multiprocessor holds at least this many warps of any of the kernels.
constexpr int64_t kWarpsPerMultiprocessor = 16;

int64_t warps_wanted() {
  int device = 0, count = 0;
  C10_CUDA_CHECK(cudaGetDevice(&device));
  C10_CUDA_CHECK(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device));
  return count * kWarpsPerMultiprocessor;
}

int64_t scratch_bytes() {
  static const int64_t megabytes = [] {
    const char* value = std::getenv("RACE_CUDA_SCRATCH_MB");
    return value ? std::max<int64_t>(std::atoll(value), 0) : 1024;
  }();
  return megabytes << 20;
}

struct CastKey {
  Remembered source;
  at::ScalarType dtype;

  bool gone() const { return source.gone(); }
};

// cg, cast to the type of the data and remembered. (Another stream may read it too: it is made
// once, long before.)
Tensor coefficients_for(const Tensor& cg, at::ScalarType dtype) {
  if (cg.is_inference()) return cg.to(dtype).contiguous();  // it has no versions
  static auto& casts = *new Recent<CastKey, Tensor>(kCoefficients);
  return casts.get([&](const CastKey& key) { return key.dtype == dtype && key.source.is(cg); },
                   [&] {
                     return std::pair{CastKey{Remembered(cg), dtype},
                                      cg.detach().to(dtype).contiguous().clone()};
                   });
}

// The contiguous operands of one call, with their edges and tiling.
struct Call {
  Problem n;
  cudaStream_t stream;
  Tensor g, radial, table, sh, cg;  // radial: R [M, E, K], or x [E]
  std::shared_ptr<const SortedEdges> edges;
  std::shared_ptr<const Tiling> tiling;

  Call(const Problem& n, const ConvOperands& o) : n(n), stream(c10::cuda::getCurrentCUDAStream()) {
    const bool tabulated = o.table.defined();
    g = o.g.contiguous();
    sh = o.sh.select(1, 0).contiguous();
    radial = tabulated ? o.radial.select(1, 0).contiguous() : o.radial.contiguous();
    if (tabulated) table = o.table.contiguous();
    cg = coefficients_for(o.cg, g.scalar_type());
    // Wide tiles share more loads, narrow ones are more numerous: wide tiles only if they still
    // fill the device.
    const bool wide = n.n_receivers * n.n_members * n.n_weights / kTile >= 4 * warps_wanted();
    tiling = tiling_for(n, cg.numel(), wide, g.device());
    edges = edges_for(o.sender, o.row_ptr, n.n_nodes, stream);
  }

  template <class T>
  Operands<T> operands(const Tensor& bar_radial = {}, const Tensor& bar_sh = {}) const {
    const auto pointer = [](const Tensor& t) {
      return t.defined() ? t.const_data_ptr<T>() : nullptr;
    };
    const bool tabulated = table.defined();
    Operands<T> o{};
    o.n_edges = n.n_edges;
    o.n_weights = n.n_weights;
    o.n_members = n.n_members;
    o.n_groups = n.n_groups;
    o.sh_dim = n.n_sh;
    o.n_rows = n.n_rows;
    (tabulated ? o.x : o.radial) = pointer(radial);
    (tabulated ? o.bar_x : o.bar_radial) = pointer(bar_radial);
    o.table = pointer(table);
    o.sh = pointer(sh);
    o.bar_sh = pointer(bar_sh);
    o.cg = pointer(cg);
    return o;
  }
};

Tensor result(const Schedule& schedule, int64_t rows, int64_t columns,
              const at::TensorOptions& options) {
  return schedule.covers && !schedule.overlaps ? at::empty({rows, columns}, options)
                                               : at::zeros({rows, columns}, options);
}

// Sums features of senders into out [n_receivers, dim_out].
template <class T>
Tensor gather_forward(const Call& call, const Operands<T>& operands, const Tensor& bar_g,
                      bool second) {
  const Schedule& schedule = call.tiling->forward;
  Tensor out = result(schedule, call.n.n_receivers, call.n.dim_out, call.g.options());
  Gather<T> args{};
  args.operands = operands;
  args.tiles = schedule.tiles_ptr();
  args.task_begin = static_cast<const int32_t*>(schedule.device_task_begin.const_data_ptr());
  args.n_tasks = schedule.n_tasks();
  args.n_rows = call.n.n_receivers;
  args.row_ptr = call.edges->row_ptr.const_data_ptr<int64_t>();
  args.node = call.edges->sender.const_data_ptr<int64_t>();
  args.x = call.g.const_data_ptr<T>();
  args.bar = bar_g.defined() ? bar_g.const_data_ptr<T>() : nullptr;
  args.x_width = call.n.dim_in;
  args.out = out.mutable_data_ptr<T>();
  args.out_width = call.n.dim_out;
  args.atomic = schedule.overlaps;
  C10_CUDA_CHECK(launch_gather(args, second, call.stream));
  return out;
}

// The adjoint of g [n_nodes, dim_in] from features w of receivers: over the edges of each sender,
// with in and out swapped.
template <class T>
Tensor gather_transposed(const Call& call, const Operands<T>& operands, const Tensor& w,
                         bool second) {
  const Schedule& schedule = call.tiling->transposed;
  const BySender& edges = call.edges->by_sender();
  Tensor out = result(schedule, call.n.n_nodes, call.n.dim_in, call.g.options());
  Gather<T> args{};
  args.operands = operands;
  args.tiles = schedule.tiles_ptr();
  args.task_begin = static_cast<const int32_t*>(schedule.device_task_begin.const_data_ptr());
  args.n_tasks = schedule.n_tasks();
  args.n_rows = call.n.n_nodes;
  args.row_ptr = edges.row_ptr.const_data_ptr<int64_t>();
  args.node = edges.receiver.const_data_ptr<int64_t>();
  args.edge = edges.order.const_data_ptr<int64_t>();
  args.x = w.const_data_ptr<T>();
  args.x_width = call.n.dim_out;
  args.out = out.mutable_data_ptr<T>();
  args.out_width = call.n.dim_in;
  args.atomic = schedule.overlaps;
  C10_CUDA_CHECK(launch_gather(args, second, call.stream));
  return out;
}

// Edges in the order of the table's intervals.
struct Intervals {
  Tensor order, ptr;

  template <class T>
  static Intervals find(const Call& call) {
    const Tensor interval =
        at::empty({call.n.n_edges}, call.edges->sender.options().dtype(at::kInt));
    C10_CUDA_CHECK(launch_intervals(call.radial.const_data_ptr<T>(), call.n.n_edges, call.n.n_rows,
                                    interval.mutable_data_ptr<int32_t>(), call.stream));
    const auto [key, order] = at::sort(interval, /*stable=*/true, 0, /*descending=*/false);
    return {order, at::searchsorted(key, at::arange(call.n.n_rows - kInterval + 2, key.options()))};
  }
};

struct EdgeResults {
  Tensor dradial, dtable, dsh;  // dradial: adjoint of R [M, E, K], or of x [E, G]
};

template <class T>
EdgeResults edge_adjoints(const Call& call, const Operands<T>& operands, const Tensor& w,
                          const Tensor& bar_g, bool second, bool want_radial, bool want_table,
                          bool want_sh) {
  const Problem& n = call.n;
  const Tiling& tiling = *call.tiling;
  const bool tabulated = call.table.defined();
  const auto options = call.g.options();
  const std::vector<Tile>& tiles = tiling.forward.tiles;
  const int64_t n_tiles = static_cast<int64_t>(tiles.size());
  want_table = want_table && tabulated;
  EdgeResults results;
  if (!want_radial && !want_table && !want_sh) return results;

  EdgeAdjoints<T> args{};
  args.operands = operands;
  args.n_receivers = n.n_receivers;
  args.row_ptr = call.edges->row_ptr.const_data_ptr<int64_t>();
  args.sender = call.edges->sender.const_data_ptr<int64_t>();
  args.g = call.g.const_data_ptr<T>();
  args.bar_g = bar_g.defined() ? bar_g.const_data_ptr<T>() : nullptr;
  args.g_width = n.dim_in;
  args.w = w.const_data_ptr<T>();
  args.w_width = n.dim_out;

  // If receivers are few, several warps share the tiles of each, and their sums are added at the
  // end.
  const int64_t share = n_tiles * (n.n_groups > 1 ? 1 : n.n_members);
  const int64_t parts =
      std::clamp<int64_t>(warps_wanted() / std::max<int64_t>(n.n_receivers * n.n_groups, 1), 1,
                          std::max<int64_t>(share, 1));
  args.n_parts = parts;
  Tensor dsh, dx;
  const auto empty = [&](c10::IntArrayRef shape) {
    return n_tiles > 0 ? at::empty(shape, options) : at::zeros(shape, options);
  };
  if (want_sh) {
    dsh = empty({parts, n.n_edges, n.n_groups, n.n_sh});
    args.dsh = dsh.mutable_data_ptr<T>();
  }
  if (want_radial && tabulated) {
    dx = empty({parts, n.n_edges, n.n_groups});
    args.dx = dx.mutable_data_ptr<T>();
  }
  if (want_radial && !tabulated) {
    const std::array<int64_t, 3> shape{n.n_members, n.n_edges, n.n_weights};
    results.dradial =
        tiling.weights_disjoint ? at::empty(shape, options) : at::zeros(shape, options);
    args.dradial = results.dradial.template mutable_data_ptr<T>();
    args.atomic = !tiling.weights_disjoint;
  }

  if (!want_table) {
    args.batch = tiling.forward.batch(0, n_tiles);
    C10_CUDA_CHECK(launch_edge_adjoints(args, second, call.stream));
  } else {
    results.dtable = at::zeros_like(call.table);
    const bool two = second && operands.bar_x;
    const int64_t per_column = std::max<int64_t>(
        n.n_members * n.n_edges * static_cast<int64_t>(sizeof(T)) * (two ? 2 : 1), 1);
    const Intervals intervals = Intervals::find<T>(call);
    for (int64_t first = 0, last; first < n_tiles; first = last) {
      int64_t columns = 0;
      for (last = first;
           last < n_tiles &&
           (last == first || (columns + tiles[last].width) * per_column <= scratch_bytes());
           ++last)
        columns += tiles[last].width;
      const Tensor scratch = at::empty({two ? 2 : 1, n.n_members * n.n_edges * columns}, options);
      args.batch = tiling.forward.batch(first, last);
      args.accumulate = first > 0;
      args.dr = scratch.mutable_data_ptr<T>();
      args.dr1 = two ? args.dr + scratch.size(1) : nullptr;
      C10_CUDA_CHECK(launch_edge_adjoints(args, second, call.stream));
      TableSums<T> sums{};
      sums.operands = operands;
      sums.batch = args.batch;
      sums.interval_ptr = intervals.ptr.template const_data_ptr<int64_t>();
      sums.order = intervals.order.template const_data_ptr<int64_t>();
      sums.dr = args.dr;
      sums.dr1 = args.dr1;
      sums.dtable = results.dtable.template mutable_data_ptr<T>();
      sums.atomic = !tiling.weights_disjoint;
      C10_CUDA_CHECK(launch_table_sums(sums, call.stream));
    }
  }
  const auto add_parts = [&](const Tensor& t) { return parts == 1 ? t.squeeze(0) : t.sum(0); };
  if (dsh.defined()) results.dsh = add_parts(dsh);
  if (dx.defined()) results.dradial = add_parts(dx);
  return results;
}

Tensor forward(const ConvOperands& operands, int64_t dim_out) {
  const c10::cuda::OptionalCUDAGuard guard(operands.g.device());
  const Call call(Problem(operands, dim_out), operands);
  return AT_DISPATCH_FLOATING_TYPES(call.g.scalar_type(), "race::conv", [&] {
    return gather_forward<scalar_t>(call, call.operands<scalar_t>(), {}, false);
  });
}

std::array<Tensor, 4> backward(const Tensor& grad, const ConvOperands& operands,
                               std::array<bool, 4> mask) {
  const c10::cuda::OptionalCUDAGuard guard(operands.g.device());
  const Call call(Problem(grad, operands), operands);
  const Tensor w = grad.contiguous();
  std::array<Tensor, 4> d;
  AT_DISPATCH_FLOATING_TYPES(call.g.scalar_type(), "race::conv_backward", [&] {
    const auto in = call.operands<scalar_t>();
    if (mask[0]) d[0] = gather_transposed<scalar_t>(call, in, w, false);
    EdgeResults edges = edge_adjoints<scalar_t>(call, in, w, {}, false, mask[1], mask[2], mask[3]);
    d[1] = edges.dradial;
    d[2] = edges.dtable;
    d[3] = edges.dsh;
  });
  return d;
}

std::array<Tensor, 5> double_backward(const ConvBars& bars, const Tensor& grad,
                                      const ConvOperands& operands, std::array<bool, 5> mask) {
  const c10::cuda::OptionalCUDAGuard guard(operands.g.device());
  const Call call(Problem(bars, grad, operands), operands);
  const auto dense = [](const Tensor& t) { return t.defined() ? t.contiguous() : t; };
  const Tensor w = grad.contiguous(), a = dense(bars.g), b = dense(bars.radial);
  Tensor c;  // the first harmonic is a constant: it has no direction
  if (bars.sh.defined()) {
    c = bars.sh.clone(at::MemoryFormat::Contiguous);
    c.select(2, 0).zero_();
  }
  std::array<Tensor, 5> d;
  AT_DISPATCH_FLOATING_TYPES(call.g.scalar_type(), "race::conv_double_backward", [&] {
    const auto in = call.operands<scalar_t>(b, c);
    if (mask[0]) d[0] = gather_forward<scalar_t>(call, in, a, true);
    if (mask[1]) d[1] = gather_transposed<scalar_t>(call, in, w, true);
    EdgeResults edges = edge_adjoints<scalar_t>(call, in, w, a, true, mask[2], mask[3], mask[4]);
    d[2] = edges.dradial;
    d[3] = edges.dtable;
    d[4] = edges.dsh;
  });
  return d;
}

const bool registered = register_kernels("race::conv", [](torch::Library& library) {
  library.impl("conv", TORCH_FN(conv::forward<forward>));
  library.impl("conv_backward", TORCH_FN(conv::backward<backward>));
  library.impl("conv_double_backward", TORCH_FN(conv::double_backward<double_backward>));
});

}  // namespace
}  // namespace race::cuda
