#include "race/conv.h"

#include <algorithm>
#include <utility>
#include <vector>

#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>

#include "conv_check.h"
#include "conv_kernel.h"
#include "isa.h"

namespace race {
namespace {

using at::Tensor;
using conv::Job;
using conv::KernelSet;
using conv::Sizes;

const IsaChoice<KernelSet>& choice() {
  static const auto chosen =
      choose_isa(conv::kernels_baseline, conv::kernels_avx2, conv::kernels_avx512);
  return chosen;
}

template <class T>
const conv::Kernels<T>& kernels();
template <>
const conv::Kernels<float>& kernels<float>() {
  return choice().kernels->f32;
}
template <>
const conv::Kernels<double>& kernels<double>() {
  return choice().kernels->f64;
}

// The CSR pointer and senders are trusted inside the loops: one pass here, cheap beside any tensor
// product.
void check_graph(const Sizes& n, const int64_t* sender, const int64_t* row_ptr) {
  RACE_CHECK(row_ptr[0] == 0 && row_ptr[n.receivers] == n.edges, "row_ptr",
             c10::str("to run from 0 to ", n.edges), row_ptr[0], " .. ", row_ptr[n.receivers]);
  for (int64_t j = 0; j < n.receivers; ++j)
    RACE_CHECK(row_ptr[j] <= row_ptr[j + 1], "row_ptr", "non-decreasing", row_ptr[j], " then ",
               row_ptr[j + 1], " at ", j);
  for (int64_t e = 0; e < n.edges; ++e)
    RACE_CHECK(sender[e] >= 0 && sender[e] < n.nodes, "sender", c10::str("[0, ", n.nodes, ")"),
               sender[e], " at edge ", e);
}

// Paths and coefficient tables in the kernels' form; paths with equal coefficients share one table.
template <class T>
struct Plan {
  std::vector<conv::Path> paths;
  std::vector<conv::Table<T>> tables;
  std::vector<std::vector<conv::Entry<T>>> entries;  // what the tables point to
  std::vector<std::vector<int32_t>> begins;

  Plan(const Sizes& n, c10::IntArrayRef rows, const Tensor& cg) {
    const Tensor host = cg.contiguous();
    const double* coefficients = host.const_data_ptr<double>();
    std::vector<const double*> sources;
    const std::vector<conv::PathRow> parsed = conv::parse_paths(n, rows, host.numel());
    entries.reserve(2 * parsed.size()),
        begins.reserve(2 * parsed.size());  // pointers into them must not move
    for (const conv::PathRow& r : parsed) {
      const int64_t d1 = r.d1(), d2 = r.d2(), d3 = r.d3();
      const double* source = coefficients + r.cg_offset;
      size_t t = 0;
      while (t < tables.size() &&
             !(tables[t].d1 == d1 && tables[t].d2 == d2 && tables[t].d3 == d3 &&
               std::equal(source, source + d1 * d2 * d3, sources[t])))
        ++t;
      if (t == tables.size()) {
        sources.push_back(source);
        add_table(source, d1, d2, d3, r.l2 * r.l2);
      }
      paths.push_back({static_cast<int32_t>(t), static_cast<int32_t>(d1), static_cast<int32_t>(d3),
                       r.mul, r.in_offset, n.members * r.mul, r.out_offset, n.members * r.out_mul,
                       r.out_mul, r.column, r.weight_offset, 0, false});
    }
    for (size_t p = 0; p < paths.size(); ++p)
      for (size_t r = p + 1; r < paths.size() && paths[p].partner == 0 && !paths[p].is_partner; ++r)
        if (are_partners(paths[p], paths[r]))
          paths[p].partner = static_cast<int32_t>(r), paths[r].is_partner = true;
  }

 private:
  // g itself and g (x) Y_0: one pass over the features serves both.
  bool are_partners(const conv::Path& a, const conv::Path& b) const {
    const bool apart = a.out_offset == b.out_offset && a.out_mul == b.out_mul &&
                       std::abs(a.column - b.column) >= a.mul;
    return !b.is_partner && a.table == b.table && tables[a.table].diagonal &&
           a.in_offset == b.in_offset && a.mul == b.mul && apart;
  }

  void add_table(const double* cg, int64_t d1, int64_t d2, int64_t d3, int64_t sh_offset) {
    bool diagonal = d2 == 1 && d1 == d3;
    for (int64_t m1 = 0; diagonal && m1 < d1; ++m1)
      for (int64_t m3 = 0; m3 < d3; ++m3)
        diagonal = diagonal && cg[m1 * d3 + m3] == (m1 == m3 ? cg[0] : 0.0);

    std::vector<conv::Entry<T>> by_q;
    std::vector<int32_t> q_begin{0};
    const int64_t q_count = diagonal ? 1 : d1 * d3;
    for (int64_t q = 0; q < q_count; ++q) {
      for (int64_t m2 = 0; m2 < d2; ++m2) {
        const double value = cg[(q / d3 * d2 + m2) * d3 + q % d3];
        if (value != 0 || diagonal)
          by_q.push_back(
              {static_cast<int32_t>(q), static_cast<int32_t>(m2), static_cast<T>(value)});
      }
      q_begin.push_back(static_cast<int32_t>(by_q.size()));
    }
    auto by_m2 = by_q;
    std::stable_sort(by_m2.begin(), by_m2.end(),
                     [](const auto& a, const auto& b) { return a.m2 < b.m2; });
    std::vector<int32_t> m2_begin(d2 + 1, 0);
    for (const auto& entry : by_m2) m2_begin[entry.m2 + 1] += 1;
    for (int64_t m2 = 0; m2 < d2; ++m2) m2_begin[m2 + 1] += m2_begin[m2];

    const auto keep = [](auto& store, auto&& values) {
      return store.emplace_back(std::forward<decltype(values)>(values)).data();
    };
    tables.push_back({static_cast<int32_t>(d1), static_cast<int32_t>(d2), static_cast<int32_t>(d3),
                      static_cast<int32_t>(sh_offset), static_cast<int32_t>(q_count), diagonal,
                      keep(entries, std::move(by_q)), keep(begins, std::move(q_begin)),
                      keep(entries, std::move(by_m2)), keep(begins, std::move(m2_begin))});
  }
};

// One thread works directly. Several share the members where each has its own results (no copies),
// else the receivers in runs of about equal numbers of edges; what is then scattered, to senders
// and to the table, goes to a copy per thread, summed in order of thread. No atomics: the result
// depends on the thread count by rounding only.
template <class T>
void launch(const Sizes& n, const Job<T>& job, bool second, Tensor& dg, Tensor& dtable) {
  const int64_t wanted = n.edges == 0 ? 1 : at::get_num_threads();
  const bool by_member = n.members >= wanted && n.members % wanted == 0 && (n.groups > 1 || !job.w);
  const int64_t threads = by_member ? wanted : std::min(wanted, std::max<int64_t>(1, n.receivers));
  const auto run = second ? kernels<T>().second : kernels<T>().first;
  const int64_t n_blocks = std::min<int64_t>(conv::kChunk, n.edges / conv::kLanes + n.receivers);
  const int64_t head = (n_blocks * sizeof(conv::Block) / sizeof(T) + 15) / 16 * 16;
  const Tensor scratch = at::empty({threads, head + n_blocks * conv::scratch_size(n.sh)},
                                   at::TensorOptions().dtype(c10::CppTypeToScalarType<T>::value));
  const auto copies = [&](const Tensor& result) {
    if (by_member || threads == 1 || !result.defined()) return Tensor();
    auto shape = result.sizes().vec();
    shape.insert(shape.begin(), threads);
    return at::zeros(shape, result.options());
  };
  const Tensor dg_copies = copies(dg), dtable_copies = copies(dtable);
  at::parallel_for(0, threads, 1, [&](int64_t first, int64_t last) {
    for (int64_t t = first; t < last; ++t) {
      Job<T> mine = job;
      T* at = scratch.data_ptr<T>() + t * scratch.size(1);
      const auto take = [&at](int64_t size) { return std::exchange(at, at + size); };
      mine.blocks = reinterpret_cast<conv::Block*>(take(head));
      const int64_t lanes = n_blocks * conv::kLanes;
      for (T** each : {&mine.y, &mine.c_lanes, &mine.dy_lanes}) *each = take(n.sh * lanes);
      for (T** each : {&mine.value, &mine.direction, &mine.slope, &mine.curve})
        *each = take(conv::kRows * lanes);
      mine.dx_lanes = take(lanes);
      if (by_member) {
        mine.first_member = n.members * t / threads;
        mine.last_member = n.members * (t + 1) / threads;
        run(mine, 0, n.receivers);
        continue;
      }
      if (dg_copies.defined()) mine.dg = dg_copies.data_ptr<T>() + t * dg.numel();
      if (dtable_copies.defined())
        mine.radial.dtable = dtable_copies.data_ptr<T>() + t * dtable.numel();
      const auto cut = [&](int64_t part) {
        return std::lower_bound(job.row_ptr, job.row_ptr + n.receivers, n.edges * part / threads) -
               job.row_ptr;
      };
      run(mine, cut(t), t + 1 == threads ? n.receivers : cut(t + 1));
    }
  });
  if (dg_copies.defined()) dg = dg_copies.sum(0);
  if (dtable_copies.defined()) dtable = dtable_copies.sum(0);
}

struct Operands {
  Tensor g, radial, table, sh, sender, row_ptr;
};

Operands prepare(const Tensor& g, const Tensor& radial, const Tensor& table, const Tensor& sh,
                 const Tensor& sender, const Tensor& row_ptr, const Sizes& n) {
  Operands ready{g.contiguous(),
                 table.defined() ? radial.select(1, 0) : radial.contiguous(),
                 table.defined() ? table.contiguous() : table,
                 sh.select(1, 0).contiguous(),
                 sender.contiguous(),
                 row_ptr.contiguous()};
  check_graph(n, ready.sender.const_data_ptr<int64_t>(), ready.row_ptr.const_data_ptr<int64_t>());
  return ready;
}

template <class T>
Job<T> make_job(const Sizes& n, const Plan<T>& plan, const Operands& in) {
  Job<T> job{};
  job.paths = plan.paths.data(), job.n_paths = plan.paths.size();
  job.tables = plan.tables.data(), job.n_tables = plan.tables.size();
  job.sh_dim = n.sh, job.n_groups = n.groups, job.n_edges = n.edges;
  job.last_member = n.members;
  job.sender = in.sender.const_data_ptr<int64_t>(),
  job.row_ptr = in.row_ptr.const_data_ptr<int64_t>();
  job.g = job.a = in.g.const_data_ptr<T>(), job.g_stride = job.a_stride = n.dim_in;
  job.radial.n_weights = n.weights, job.radial.n_rows = n.rows;
  if (n.rows) {
    job.radial.x = in.radial.const_data_ptr<T>(), job.radial.x_stride = in.radial.stride(0);
    job.radial.table = in.table.const_data_ptr<T>();
  } else {
    job.radial.rows = in.radial.const_data_ptr<T>();
  }
  job.sh = in.sh.const_data_ptr<T>(), job.sh_stride = n.sh;
  job.out_stride = n.dim_out;
  return job;
}

// Where the adjoints of (g, radial, table, sh) go, each only if it is wanted.
template <class T>
void set_results(Job<T>& job, const Sizes& n, const at::TensorOptions& o, const bool* mask,
                 std::array<Tensor, 4>& d) {
  if (mask[0]) {
    d[0] = at::zeros({n.nodes, n.dim_in}, o);
    job.dg = d[0].data_ptr<T>(), job.dg_stride = n.dim_in;
  }
  if (mask[1] && n.rows) {
    d[1] = at::empty({n.groups, n.edges}, o).transpose(0, 1);
    job.radial.dx = d[1].data_ptr<T>();
  } else if (mask[1]) {
    d[1] = at::zeros({n.members, n.edges, n.weights}, o);
    job.radial.drows = d[1].data_ptr<T>();
  }
  if (mask[2] && n.rows) {
    d[2] = at::zeros({n.members, n.rows, n.weights}, o);
    job.radial.dtable = d[2].data_ptr<T>();
  }
  if (mask[3]) {
    d[3] = at::empty({n.groups, n.edges, n.sh}, o).transpose(0, 1);
    job.dsh = d[3].data_ptr<T>();
  }
}

}  // namespace

const char* conv_isa() { return choice().name; }

Tensor conv_cpu(const Tensor& g, const Tensor& radial, const Tensor& table, const Tensor& sh,
                const Tensor& sender, const Tensor& row_ptr, c10::IntArrayRef paths,
                const Tensor& cg, int64_t dim_out) {
  const Sizes n = conv::check(g, radial, table, sh, sender, row_ptr, cg, dim_out);
  const Operands in = prepare(g, radial, table, sh, sender, row_ptr, n);
  Tensor out = at::zeros({n.receivers, dim_out}, g.options()), none;
  AT_DISPATCH_FLOATING_TYPES(g.scalar_type(), "race::conv", [&] {
    const Plan<scalar_t> plan(n, paths, cg);
    Job<scalar_t> job = make_job(n, plan, in);
    job.out = out.data_ptr<scalar_t>();
    launch(n, job, false, none, none);
  });
  return out;
}

std::array<Tensor, 4> conv_backward_cpu(const Tensor& grad, const Tensor& g, const Tensor& radial,
                                        const Tensor& table, const Tensor& sh, const Tensor& sender,
                                        const Tensor& row_ptr, c10::IntArrayRef paths,
                                        const Tensor& cg, std::array<bool, 4> mask) {
  conv::check_grad(grad, g, row_ptr);
  const Sizes n = conv::check(g, radial, table, sh, sender, row_ptr, cg, grad.size(1));
  const Operands in = prepare(g, radial, table, sh, sender, row_ptr, n);
  const Tensor w = grad.contiguous();
  std::array<Tensor, 4> d;
  AT_DISPATCH_FLOATING_TYPES(g.scalar_type(), "race::conv_backward", [&] {
    const Plan<scalar_t> plan(n, paths, cg);
    Job<scalar_t> job = make_job(n, plan, in);
    set_results(job, n, g.options(), mask.data(), d);
    job.w = w.const_data_ptr<scalar_t>();
    launch(n, job, false, d[0], d[2]);
  });
  return d;
}

std::array<Tensor, 5> conv_double_backward_cpu(const Tensor& bar_g, const Tensor& bar_radial,
                                               const Tensor& bar_sh, const Tensor& grad,
                                               const Tensor& g, const Tensor& radial,
                                               const Tensor& table, const Tensor& sh,
                                               const Tensor& sender, const Tensor& row_ptr,
                                               c10::IntArrayRef paths, const Tensor& cg,
                                               std::array<bool, 5> mask) {
  conv::check_grad(grad, g, row_ptr);
  const Sizes n = conv::check(g, radial, table, sh, sender, row_ptr, cg, grad.size(1));
  const Operands in = prepare(g, radial, table, sh, sender, row_ptr, n);
  conv::check_bar("bar_g", bar_g, g), conv::check_bar("bar_radial", bar_radial, radial),
      conv::check_bar("bar_sh", bar_sh, sh);
  const Tensor w = grad.contiguous();
  const auto dense = [](const Tensor& t) { return t.defined() ? t.contiguous() : t; };
  const Tensor a = dense(bar_g), b = dense(bar_radial), c = dense(bar_sh);
  Tensor out;
  std::array<Tensor, 4> d;
  AT_DISPATCH_FLOATING_TYPES(g.scalar_type(), "race::conv_double_backward", [&] {
    const Plan<scalar_t> plan(n, paths, cg);
    Job<scalar_t> job = make_job(n, plan, in);
    const Tensor absent =
        at::zeros({std::max({n.dim_in, n.weights, n.sh})}, g.options());  // read with stride 0
    const auto point = [&absent](const Tensor& t) {
      return (t.defined() ? t : absent).const_data_ptr<scalar_t>();
    };
    job.a = point(a), job.a_stride = a.defined() ? n.dim_in : 0;
    job.radial.b = job.radial.xi = point(b);
    job.radial.b_stride = b.defined() ? n.weights : 0,
    job.radial.b_member = b.defined() ? n.edges * n.weights : 0;
    job.radial.xi_stride = b.defined() ? n.groups : 0, job.radial.xi_group = b.defined() ? 1 : 0;
    job.c = point(c), job.c_stride = c.defined() ? n.groups * n.sh : 0;
    if (mask[0]) out = at::zeros_like(w);
    job.out = mask[0] ? out.data_ptr<scalar_t>() : nullptr;
    set_results(job, n, g.options(), mask.data() + 1, d);
    if (mask[1] || mask[2] || mask[3] || mask[4]) job.w = w.const_data_ptr<scalar_t>();
    launch(n, job, true, d[0], d[2]);
  });
  return {out, d[0], d[1], d[2], d[3]};
}

}  // namespace race
