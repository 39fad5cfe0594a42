#include "race/conv.h"

#include <algorithm>
#include <utility>
#include <vector>

#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>

#include "../simd/conv_kernel.h"
#include "check.h"
#include "conv_plan.h"
#include "conv_problem.h"
#include "isa.h"

namespace race {
namespace {

using at::Tensor;
using conv::Arguments;
using conv::KernelPaths;
using conv::Problem;

const IsaChoice<conv::KernelSet>& choice() {
  static const auto chosen = RACE_CHOOSE_ISA(conv);
  return chosen;
}

// The CSR pointer and senders are trusted inside the loops: one pass here, cheap beside any tensor
// product.
void check_graph(const Problem& n, const int64_t* sender, const int64_t* row_ptr) {
  RACE_CHECK("conv", row_ptr[0] == 0 && row_ptr[n.n_receivers] == n.n_edges, "row_ptr",
             c10::str("to run from 0 to ", n.n_edges), row_ptr[0], " .. ", row_ptr[n.n_receivers]);
  for (int64_t j = 0; j < n.n_receivers; ++j)
    RACE_CHECK("conv", row_ptr[j] <= row_ptr[j + 1], "row_ptr", "non-decreasing", row_ptr[j],
               " then ", row_ptr[j + 1], " at ", j);
  for (int64_t e = 0; e < n.n_edges; ++e)
    RACE_CHECK("conv", sender[e] >= 0 && sender[e] < n.n_nodes, "sender",
               c10::str("[0, ", n.n_nodes, ")"), sender[e], " at edge ", e);
}

template <class T>
KernelPaths<T> plan_for(const Problem& n, const Tensor& cg) {
  return {n.paths, n.n_members, cg.contiguous().const_data_ptr<double>()};
}

// One thread works directly. Several threads share the members if each member has results of its
// own (no copies). Else they share the receivers, in runs of about equal numbers of edges. Sums
// scattered to senders and to the table then go to a copy for each thread but the first, which are
// added in order of thread. There are no atomics: the result depends on the thread count by
// rounding only.
template <class T>
void launch(const Problem& n, const Arguments<T>& args, bool second, const Tensor& dg,
            const Tensor& dtable) {
  const int64_t wanted = n.n_edges == 0 ? 1 : at::get_num_threads();
  const bool by_member =
      n.n_members >= wanted && n.n_members % wanted == 0 && (n.n_groups > 1 || !args.w);
  const int64_t threads =
      by_member ? wanted : std::min(wanted, std::max<int64_t>(1, n.n_receivers));
  const auto run = second ? choice().of<T>().second : choice().of<T>().first;
  const int64_t n_blocks =
      std::min<int64_t>(conv::kChunk, n.n_edges / conv::kLanes + n.n_receivers);
  const int64_t head = (n_blocks * sizeof(conv::EdgeBlock) / sizeof(T) + 15) / 16 * 16;
  const Tensor scratch = at::empty({threads, head + n_blocks * conv::scratch_size(n.n_sh)},
                                   at::TensorOptions().dtype(c10::CppTypeToScalarType<T>::value));
  const auto copies = [&](const Tensor& result) {
    if (by_member || threads == 1 || !result.defined()) return Tensor();
    auto shape = result.sizes().vec();
    shape.insert(shape.begin(), threads - 1);
    return at::zeros(shape, result.options());
  };
  const Tensor dg_copies = copies(dg), dtable_copies = copies(dtable);
  at::parallel_for(0, threads, 1, [&](int64_t first, int64_t last) {
    for (int64_t t = first; t < last; ++t) {
      Arguments<T> mine = args;
      T* at = scratch.data_ptr<T>() + t * scratch.size(1);
      const auto take = [&at](int64_t size) { return std::exchange(at, at + size); };
      mine.blocks = reinterpret_cast<conv::EdgeBlock*>(take(head));
      const int64_t lanes = n_blocks * conv::kLanes;
      for (T** each : {&mine.y, &mine.c_lanes, &mine.dy_lanes}) *each = take(n.n_sh * lanes);
      for (T** each : {&mine.value, &mine.direction, &mine.slope, &mine.curve})
        *each = take(conv::kRows * lanes);
      mine.dx_lanes = take(lanes);
      if (by_member) {
        mine.first_member = n.n_members * t / threads;
        mine.last_member = n.n_members * (t + 1) / threads;
        run(mine, 0, n.n_receivers);
        continue;
      }
      if (t > 0 && dg_copies.defined()) mine.dg = dg_copies.data_ptr<T>() + (t - 1) * dg.numel();
      if (t > 0 && dtable_copies.defined())
        mine.radial.dtable = dtable_copies.data_ptr<T>() + (t - 1) * dtable.numel();
      const auto cut = [&](int64_t part) {
        return std::lower_bound(args.row_ptr, args.row_ptr + n.n_receivers,
                                n.n_edges * part / threads) -
               args.row_ptr;
      };
      run(mine, cut(t), t + 1 == threads ? n.n_receivers : cut(t + 1));
    }
  });
  for (int64_t t = 1; t < threads; ++t) {
    if (dg_copies.defined()) dg.add_(dg_copies.select(0, t - 1));
    if (dtable_copies.defined()) dtable.add_(dtable_copies.select(0, t - 1));
  }
}

// The contiguous operands: R, or x without its group axis, and sh without its group axis.
ConvOperands prepare(const ConvOperands& o, const Problem& n) {
  const bool tabulated = o.table.defined();
  ConvOperands ready{.g = o.g.contiguous(),
                     .radial = tabulated ? o.radial.select(1, 0) : o.radial.contiguous(),
                     .table = tabulated ? o.table.contiguous() : o.table,
                     .sh = o.sh.select(1, 0).contiguous(),
                     .sender = o.sender.contiguous(),
                     .row_ptr = o.row_ptr.contiguous(),
                     .paths = o.paths,
                     .cg = o.cg};
  check_graph(n, ready.sender.const_data_ptr<int64_t>(), ready.row_ptr.const_data_ptr<int64_t>());
  return ready;
}

template <class T>
Arguments<T> make_arguments(const Problem& n, const KernelPaths<T>& plan, const ConvOperands& in) {
  Arguments<T> args{};
  args.paths = plan.paths.data();
  args.n_paths = plan.paths.size();
  args.tables = plan.tables.data();
  args.n_tables = plan.tables.size();
  args.sh_dim = n.n_sh;
  args.n_groups = n.n_groups;
  args.n_edges = n.n_edges;
  args.last_member = n.n_members;
  args.sender = in.sender.const_data_ptr<int64_t>();
  args.row_ptr = in.row_ptr.const_data_ptr<int64_t>();
  args.g = args.a = in.g.const_data_ptr<T>();
  args.g_stride = args.a_stride = n.dim_in;
  args.radial.n_weights = n.n_weights;
  args.radial.n_rows = n.n_rows;
  if (n.n_rows) {
    args.radial.x = in.radial.const_data_ptr<T>();
    args.radial.x_stride = in.radial.stride(0);
    args.radial.table = in.table.const_data_ptr<T>();
  } else {
    args.radial.rows = in.radial.const_data_ptr<T>();
  }
  args.sh = in.sh.const_data_ptr<T>();
  args.sh_stride = n.n_sh;
  args.out_stride = n.dim_out;
  return args;
}

// Targets of the adjoints of (g, radial, table, sh), each only if requested.
template <class T>
void set_results(Arguments<T>& args, const Problem& n, const at::TensorOptions& o, const bool* mask,
                 std::array<Tensor, 4>& d) {
  if (mask[0]) {
    d[0] = at::zeros({n.n_nodes, n.dim_in}, o);
    args.dg = d[0].data_ptr<T>();
    args.dg_stride = n.dim_in;
  }
  if (mask[1] && n.n_rows) {
    d[1] = at::empty({n.n_groups, n.n_edges}, o).transpose(0, 1);
    args.radial.dx = d[1].data_ptr<T>();
  } else if (mask[1]) {
    d[1] = at::zeros({n.n_members, n.n_edges, n.n_weights}, o);
    args.radial.drows = d[1].data_ptr<T>();
  }
  if (mask[2] && n.n_rows) {
    d[2] = at::zeros({n.n_members, n.n_rows, n.n_weights}, o);
    args.radial.dtable = d[2].data_ptr<T>();
  }
  if (mask[3]) {
    d[3] = at::empty({n.n_groups, n.n_edges, n.n_sh}, o).transpose(0, 1);
    args.dsh = d[3].data_ptr<T>();
  }
}

}  // namespace

const char* conv_isa() { return choice().name; }

Tensor conv_cpu(const ConvOperands& operands, int64_t dim_out) {
  const Problem n(operands, dim_out);
  const ConvOperands in = prepare(operands, n);
  Tensor out = at::zeros({n.n_receivers, dim_out}, in.g.options()), none;
  AT_DISPATCH_FLOATING_TYPES(in.g.scalar_type(), "race::conv", [&] {
    const KernelPaths<scalar_t> plan = plan_for<scalar_t>(n, in.cg);
    Arguments<scalar_t> args = make_arguments(n, plan, in);
    args.out = out.data_ptr<scalar_t>();
    launch(n, args, false, none, none);
  });
  return out;
}

std::array<Tensor, 4> conv_backward_cpu(const Tensor& grad, const ConvOperands& operands,
                                        std::array<bool, 4> mask) {
  const Problem n(grad, operands);
  const ConvOperands in = prepare(operands, n);
  const Tensor w = grad.contiguous();
  std::array<Tensor, 4> d;
  AT_DISPATCH_FLOATING_TYPES(in.g.scalar_type(), "race::conv_backward", [&] {
    const KernelPaths<scalar_t> plan = plan_for<scalar_t>(n, in.cg);
    Arguments<scalar_t> args = make_arguments(n, plan, in);
    set_results(args, n, in.g.options(), mask.data(), d);
    args.w = w.const_data_ptr<scalar_t>();
    launch(n, args, false, d[0], d[2]);
  });
  return d;
}

std::array<Tensor, 5> conv_double_backward_cpu(const ConvBars& bars, const Tensor& grad,
                                               const ConvOperands& operands,
                                               std::array<bool, 5> mask) {
  const Problem n(bars, grad, operands);
  const ConvOperands in = prepare(operands, n);
  const Tensor w = grad.contiguous();
  const auto dense = [](const Tensor& t) { return t.defined() ? t.contiguous() : t; };
  const Tensor a = dense(bars.g), b = dense(bars.radial), c = dense(bars.sh);
  Tensor out;
  std::array<Tensor, 4> d;
  AT_DISPATCH_FLOATING_TYPES(in.g.scalar_type(), "race::conv_double_backward", [&] {
    const KernelPaths<scalar_t> plan = plan_for<scalar_t>(n, in.cg);
    Arguments<scalar_t> args = make_arguments(n, plan, in);
    const Tensor absent = at::zeros({std::max({n.dim_in, n.n_weights, n.n_sh})},
                                    in.g.options());  // read with stride 0
    const auto point = [&absent](const Tensor& t) {
      return (t.defined() ? t : absent).const_data_ptr<scalar_t>();
    };
    args.a = point(a);
    args.a_stride = a.defined() ? n.dim_in : 0;
    args.radial.b = args.radial.xi = point(b);
    args.radial.b_stride = b.defined() ? n.n_weights : 0;
    args.radial.b_member = b.defined() ? n.n_edges * n.n_weights : 0;
    args.radial.xi_stride = b.defined() ? n.n_groups : 0;
    args.radial.xi_group = b.defined() ? 1 : 0;
    args.c = point(c);
    args.c_stride = c.defined() ? n.n_groups * n.n_sh : 0;
    if (mask[0]) out = at::zeros_like(w);
    args.out = mask[0] ? out.data_ptr<scalar_t>() : nullptr;
    set_results(args, n, in.g.options(), mask.data() + 1, d);
    if (mask[1] || mask[2] || mask[3] || mask[4]) args.w = w.const_data_ptr<scalar_t>();
    launch(n, args, true, d[0], d[2]);
  });
  return {out, d[0], d[1], d[2], d[3]};
}

}  // namespace race
