#include "race/conv.h"

#include <algorithm>
#include <utility>
#include <vector>

#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>

#include "conv_kernel.h"
#include "isa.h"

namespace race {
namespace {

using at::Tensor;
using conv::Job;
using conv::KernelSet;

constexpr int kFields = 10;

const IsaChoice<KernelSet>& choice() {
  static const auto chosen = choose_isa(conv::kernels_baseline, conv::kernels_avx2, conv::kernels_avx512);
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

struct Sizes {
  int64_t nodes, dim_in, members, edges, weights, groups, sh, receivers, knots;
};

#define RACE_CHECK(condition, name, expected, ...) \
  TORCH_CHECK_VALUE(condition, "race::conv: ", name, ": expected ", expected, ", got ", __VA_ARGS__)

Sizes check(const Tensor& g, const Tensor& radial, const Tensor& table, const Tensor& sh, const Tensor& sender, const Tensor& row_ptr,
            c10::IntArrayRef paths, const Tensor& cg) {
  RACE_CHECK(g.dim() == 2, "g", "[n_nodes, dim_in]", g.sizes());
  RACE_CHECK(g.scalar_type() == at::kFloat || g.scalar_type() == at::kDouble, "g", "float32 or float64", g.scalar_type());
  Sizes n{g.size(0), g.size(1), 0, 0, 0, 0, 0, 0, 0};
  RACE_CHECK(sh.dim() == 3 && sh.size(2) <= conv::kMaxSh, "sh", "[n_edges, 1 or n_members, (lmax + 1)^2 <= 16]", sh.sizes());
  n.edges = sh.size(0), n.groups = sh.size(1), n.sh = sh.size(2);
  if (table.defined()) {
    RACE_CHECK(table.dim() == 4 && table.size(0) >= 1 && table.size(1) >= 2 && table.size(2) == 3, "table", "[n_members, n_knots >= 2, 3, n_weights]",
               table.sizes());
    RACE_CHECK(table.scalar_type() == g.scalar_type(), "table", g.scalar_type(), table.scalar_type());
    n.members = table.size(0), n.knots = table.size(1), n.weights = table.size(3);
    RACE_CHECK(radial.dim() == 2 && radial.size(0) == n.edges && radial.size(1) == n.groups, "radial",
               c10::str("[", n.edges, ", ", n.groups, "], distances, as a table is given"), radial.sizes());
  } else {
    RACE_CHECK(radial.dim() == 3 && radial.size(1) == n.edges, "radial", c10::str("[n_members, ", n.edges, ", n_weights]"), radial.sizes());
    n.members = radial.size(0), n.weights = radial.size(2);
    RACE_CHECK(n.members >= 1, "radial", "at least one member", n.members);
  }
  RACE_CHECK(radial.scalar_type() == g.scalar_type(), "radial", g.scalar_type(), radial.scalar_type());
  RACE_CHECK(n.groups == 1 || n.groups == n.members, "sh", c10::str("[", n.edges, ", 1 or ", n.members, ", (lmax + 1)^2 <= 16]"), sh.sizes());
  RACE_CHECK(sh.scalar_type() == g.scalar_type(), "sh", g.scalar_type(), sh.scalar_type());
  RACE_CHECK(sender.dim() == 1 && sender.size(0) == n.edges && sender.scalar_type() == at::kLong, "sender", c10::str("int64 [", n.edges, "]"),
             sender.scalar_type(), " ", sender.sizes());
  RACE_CHECK(row_ptr.dim() == 1 && row_ptr.size(0) >= 1 && row_ptr.scalar_type() == at::kLong, "row_ptr", "int64 [n_receivers + 1]",
             row_ptr.scalar_type(), " ", row_ptr.sizes());
  RACE_CHECK(cg.scalar_type() == at::kDouble && cg.dim() == 1, "cg", "float64, one dimension", cg.scalar_type(), " ", cg.sizes());
  RACE_CHECK(paths.size() % kFields == 0, "paths", "rows of 10 integers", paths.size(), " integers");
  n.receivers = row_ptr.size(0) - 1;
  return n;
}

// The CSR pointer and senders are trusted inside the loops: one pass here, cheap beside any tensor product.
void check_graph(const Sizes& n, const int64_t* sender, const int64_t* row_ptr) {
  RACE_CHECK(row_ptr[0] == 0 && row_ptr[n.receivers] == n.edges, "row_ptr", c10::str("to run from 0 to ", n.edges),
             row_ptr[0], " .. ", row_ptr[n.receivers]);
  for (int64_t j = 0; j < n.receivers; ++j)
    RACE_CHECK(row_ptr[j] <= row_ptr[j + 1], "row_ptr", "non-decreasing", row_ptr[j], " then ", row_ptr[j + 1], " at ", j);
  for (int64_t e = 0; e < n.edges; ++e)
    RACE_CHECK(sender[e] >= 0 && sender[e] < n.nodes, "sender", c10::str("[0, ", n.nodes, ")"), sender[e], " at edge ", e);
}

// Paths and coefficient tables in the kernels' form; paths with equal coefficients share one table.
template <class T>
struct Plan {
  std::vector<conv::Path> paths;
  std::vector<conv::Table<T>> tables;
  std::vector<std::vector<conv::Entry<T>>> entries;  // what the tables point to
  std::vector<std::vector<int32_t>> begins;

  Plan(const Sizes& n, c10::IntArrayRef rows, const Tensor& cg, int64_t dim_out) {
    const Tensor host = cg.contiguous();
    const double* coefficients = host.const_data_ptr<double>();
    std::vector<const double*> sources;
    entries.reserve(rows.size() / kFields * 2), begins.reserve(rows.size() / kFields * 2);  // pointers into them must not move
    for (size_t p = 0; p < rows.size() / kFields; ++p) {
      const int64_t* row = rows.data() + p * kFields;
      const int64_t l1 = row[0], l2 = row[1], l3 = row[2], mul = row[3], in = row[4], out = row[5], out_mul = row[6], column = row[7],
                    weight = row[8], table = row[9];
      const auto where = [p](const char* field) { return c10::str("paths row ", p, ", ", field); };
      RACE_CHECK(std::min({l1, l2, l3}) >= 0 && std::max({l1, l2, l3}) <= 3, where("l1 l2 l3"), "0 to 3", l1, " ", l2, " ", l3);
      const int64_t d1 = 2 * l1 + 1, d2 = 2 * l2 + 1, d3 = 2 * l3 + 1;
      RACE_CHECK((l2 + 1) * (l2 + 1) <= n.sh, where("l2"), c10::str("a block of sh's ", n.sh, " columns"), l2);
      RACE_CHECK(mul >= 1 && in >= 0 && in + d1 * n.members * mul <= n.dim_in, where("in_offset, mul"),
                 c10::str("a block inside g's ", n.dim_in, " columns"), in, ", ", mul);
      RACE_CHECK(out >= 0 && out + d3 * n.members * out_mul <= dim_out, where("out_offset, out_mul"),
                 c10::str("a block inside dim_out = ", dim_out), out, ", ", out_mul);
      RACE_CHECK(column >= 0 && column + mul <= out_mul, where("out_column"), c10::str("0 to ", out_mul - mul), column);
      RACE_CHECK(weight >= 0 && weight + mul <= n.weights, where("weight_offset"), c10::str("0 to ", n.weights - mul), weight);
      RACE_CHECK(table >= 0 && table + d1 * d2 * d3 <= host.numel(), where("cg_offset"),
                 c10::str("a table inside cg's ", host.numel()), table);

      const double* source = coefficients + table;
      size_t t = 0;
      while (t < tables.size() && !(tables[t].d1 == d1 && tables[t].d2 == d2 && tables[t].d3 == d3 &&
                                    std::equal(source, source + d1 * d2 * d3, sources[t])))
        ++t;
      if (t == tables.size()) {
        sources.push_back(source);
        add_table(source, d1, d2, d3, l2 * l2);
      }
      paths.push_back({static_cast<int32_t>(t), static_cast<int32_t>(d1), static_cast<int32_t>(d3), mul, in, n.members * mul, out,
                       n.members * out_mul, out_mul, column, weight, 0, false});
    }
    for (size_t p = 0; p < paths.size(); ++p)
      for (size_t r = p + 1; r < paths.size() && paths[p].partner == 0 && !paths[p].is_partner; ++r)
        if (are_partners(paths[p], paths[r])) paths[p].partner = static_cast<int32_t>(r), paths[r].is_partner = true;
  }

 private:
  // g itself and g (x) Y_0: one pass over the features serves both.
  bool are_partners(const conv::Path& a, const conv::Path& b) const {
    const bool apart = a.out_offset != b.out_offset || std::abs(a.column - b.column) >= a.mul;
    return !b.is_partner && a.table == b.table && tables[a.table].diagonal && a.in_offset == b.in_offset && a.mul == b.mul && apart;
  }

  void add_table(const double* cg, int64_t d1, int64_t d2, int64_t d3, int64_t sh_offset) {
    bool diagonal = d2 == 1 && d1 == d3;
    for (int64_t m1 = 0; diagonal && m1 < d1; ++m1)
      for (int64_t m3 = 0; m3 < d3; ++m3) diagonal = diagonal && cg[m1 * d3 + m3] == (m1 == m3 ? cg[0] : 0.0);

    std::vector<conv::Entry<T>> by_q;
    std::vector<int32_t> q_begin{0};
    const int64_t q_count = diagonal ? 1 : d1 * d3;
    for (int64_t q = 0; q < q_count; ++q) {
      for (int64_t m2 = 0; m2 < d2; ++m2) {
        const double value = cg[(q / d3 * d2 + m2) * d3 + q % d3];
        if (value != 0 || diagonal) by_q.push_back({static_cast<int32_t>(q), static_cast<int32_t>(m2), static_cast<T>(value)});
      }
      q_begin.push_back(static_cast<int32_t>(by_q.size()));
    }
    auto by_m2 = by_q;
    std::stable_sort(by_m2.begin(), by_m2.end(), [](const auto& a, const auto& b) { return a.m2 < b.m2; });
    std::vector<int32_t> m2_begin(d2 + 1, 0);
    for (const auto& entry : by_m2) m2_begin[entry.m2 + 1] += 1;
    for (int64_t m2 = 0; m2 < d2; ++m2) m2_begin[m2 + 1] += m2_begin[m2];

    const auto keep = [](auto& store, auto&& values) { return store.emplace_back(std::forward<decltype(values)>(values)).data(); };
    tables.push_back({static_cast<int32_t>(d1), static_cast<int32_t>(d2), static_cast<int32_t>(d3), static_cast<int32_t>(sh_offset),
                      static_cast<int32_t>(q_count), diagonal, keep(entries, std::move(by_q)),
                      keep(begins, std::move(q_begin)), keep(entries, std::move(by_m2)), keep(begins, std::move(m2_begin))});
  }
};

// One thread works directly. Several share the members where each has its own results (no copies), else the receivers in runs of
// about equal numbers of edges; what is then scattered, to senders and to the table, goes to a copy per thread, summed in order of
// thread. No atomics: the result depends on the thread count by rounding only.
template <class T>
void launch(const Sizes& n, const Job<T>& job, bool second, Tensor& dg, Tensor& dtable) {
  const int64_t wanted = n.edges == 0 ? 1 : at::get_num_threads();
  const bool by_member = n.members >= wanted && n.members % wanted == 0 && (n.groups > 1 || !job.w);
  const int64_t threads = by_member ? wanted : std::min(wanted, std::max<int64_t>(1, n.receivers));
  const auto run = second ? kernels<T>().second : kernels<T>().first;
  const int64_t n_blocks = std::min<int64_t>(conv::kChunk, n.edges / conv::kLanes + n.receivers);
  const int64_t head = (n_blocks * sizeof(conv::Block) / sizeof(T) + 15) / 16 * 16;
  const Tensor scratch = at::empty({threads, head + n_blocks * conv::scratch_size(n.sh)}, at::TensorOptions().dtype(c10::CppTypeToScalarType<T>::value));
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
      for (T** each : {&mine.value, &mine.direction, &mine.slope, &mine.curve}) *each = take(conv::kRows * lanes);
      mine.dx_lanes = take(lanes);
      if (by_member) {
        mine.first_member = n.members * t / threads;
        mine.last_member = n.members * (t + 1) / threads;
        run(mine, 0, n.receivers);
        continue;
      }
      if (dg_copies.defined()) mine.dg = dg_copies.data_ptr<T>() + t * dg.numel();
      if (dtable_copies.defined()) mine.radial.dtable = dtable_copies.data_ptr<T>() + t * dtable.numel();
      const auto cut = [&](int64_t part) {
        return std::lower_bound(job.row_ptr, job.row_ptr + n.receivers, n.edges * part / threads) - job.row_ptr;
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

Operands prepare(const Tensor& g, const Tensor& radial, const Tensor& table, const Tensor& sh, const Tensor& sender, const Tensor& row_ptr,
                 const Sizes& n) {
  Operands ready{g.contiguous(), table.defined() ? radial.select(1, 0) : radial.contiguous(), table.defined() ? table.contiguous() : table,
                 sh.select(1, 0).contiguous(), sender.contiguous(), row_ptr.contiguous()};
  check_graph(n, ready.sender.const_data_ptr<int64_t>(), ready.row_ptr.const_data_ptr<int64_t>());
  return ready;
}

template <class T>
Job<T> make_job(const Sizes& n, const Plan<T>& plan, const Operands& in, int64_t dim_out) {
  Job<T> job{};
  job.paths = plan.paths.data(), job.n_paths = plan.paths.size();
  job.tables = plan.tables.data(), job.n_tables = plan.tables.size();
  job.sh_dim = n.sh, job.n_groups = n.groups, job.n_edges = n.edges;
  job.last_member = n.members;
  job.sender = in.sender.const_data_ptr<int64_t>(), job.row_ptr = in.row_ptr.const_data_ptr<int64_t>();
  job.g = job.a = in.g.const_data_ptr<T>(), job.g_stride = job.a_stride = n.dim_in;
  job.radial.n_weights = n.weights, job.radial.n_knots = n.knots;
  if (n.knots) {
    job.radial.x = in.radial.const_data_ptr<T>(), job.radial.x_stride = in.radial.stride(0);
    job.radial.table = in.table.const_data_ptr<T>();
  } else {
    job.radial.rows = in.radial.const_data_ptr<T>();
  }
  job.sh = in.sh.const_data_ptr<T>(), job.sh_stride = n.sh;
  job.out_stride = dim_out;
  return job;
}

// Where the adjoints of (g, radial, table, sh) go, each only if it is wanted.
template <class T>
void set_results(Job<T>& job, const Sizes& n, const at::TensorOptions& o, const bool* mask, std::array<Tensor, 4>& d) {
  if (mask[0]) {
    d[0] = at::zeros({n.nodes, n.dim_in}, o);
    job.dg = d[0].data_ptr<T>(), job.dg_stride = n.dim_in;
  }
  if (mask[1] && n.knots) {
    d[1] = at::empty({n.edges, n.groups}, o);
    job.radial.dx = d[1].data_ptr<T>();
  } else if (mask[1]) {
    d[1] = at::zeros({n.members, n.edges, n.weights}, o);
    job.radial.drows = d[1].data_ptr<T>();
  }
  if (mask[2] && n.knots) {
    d[2] = at::zeros({n.members, n.knots, 3, n.weights}, o);
    job.radial.dtable = d[2].data_ptr<T>();
  }
  if (mask[3]) {
    d[3] = at::empty({n.edges, n.groups, n.sh}, o);
    job.dsh = d[3].data_ptr<T>();
  }
}

void check_grad(const Tensor& grad, const Sizes& n, const Tensor& g) {
  RACE_CHECK(grad.dim() == 2 && grad.size(0) == n.receivers && grad.scalar_type() == g.scalar_type(), "grad",
             c10::str(g.scalar_type(), " [", n.receivers, ", dim_out]"), grad.scalar_type(), " ", grad.sizes());
}

}  // namespace

const char* conv_isa() { return choice().name; }

Tensor conv_cpu(const Tensor& g, const Tensor& radial, const Tensor& table, const Tensor& sh, const Tensor& sender, const Tensor& row_ptr,
                c10::IntArrayRef paths, const Tensor& cg, int64_t dim_out) {
  const Sizes n = check(g, radial, table, sh, sender, row_ptr, paths, cg);
  const Operands in = prepare(g, radial, table, sh, sender, row_ptr, n);
  Tensor out = at::zeros({n.receivers, dim_out}, g.options()), none;
  AT_DISPATCH_FLOATING_TYPES(g.scalar_type(), "race::conv", [&] {
    const Plan<scalar_t> plan(n, paths, cg, dim_out);
    Job<scalar_t> job = make_job(n, plan, in, dim_out);
    job.out = out.data_ptr<scalar_t>();
    launch(n, job, false, none, none);
  });
  return out;
}

std::array<Tensor, 4> conv_backward_cpu(const Tensor& grad, const Tensor& g, const Tensor& radial, const Tensor& table, const Tensor& sh,
                                        const Tensor& sender, const Tensor& row_ptr, c10::IntArrayRef paths, const Tensor& cg,
                                        std::array<bool, 4> mask) {
  const Sizes n = check(g, radial, table, sh, sender, row_ptr, paths, cg);
  check_grad(grad, n, g);
  const Operands in = prepare(g, radial, table, sh, sender, row_ptr, n);
  const Tensor w = grad.contiguous();
  std::array<Tensor, 4> d;
  AT_DISPATCH_FLOATING_TYPES(g.scalar_type(), "race::conv_backward", [&] {
    const Plan<scalar_t> plan(n, paths, cg, w.size(1));
    Job<scalar_t> job = make_job(n, plan, in, w.size(1));
    set_results(job, n, g.options(), mask.data(), d);
    job.w = w.const_data_ptr<scalar_t>();
    launch(n, job, false, d[0], d[2]);
  });
  return d;
}

std::array<Tensor, 5> conv_double_backward_cpu(const Tensor& bar_g, const Tensor& bar_radial, const Tensor& bar_sh, const Tensor& grad,
                                               const Tensor& g, const Tensor& radial, const Tensor& table, const Tensor& sh,
                                               const Tensor& sender, const Tensor& row_ptr, c10::IntArrayRef paths, const Tensor& cg,
                                               std::array<bool, 5> mask) {
  const Sizes n = check(g, radial, table, sh, sender, row_ptr, paths, cg);
  check_grad(grad, n, g);
  const Operands in = prepare(g, radial, table, sh, sender, row_ptr, n);
  const Tensor w = grad.contiguous();
  const auto dense = [](const Tensor& t) { return t.defined() ? t.contiguous() : t; };
  const Tensor a = dense(bar_g), b = dense(bar_radial), c = dense(bar_sh);
  Tensor out;
  std::array<Tensor, 4> d;
  AT_DISPATCH_FLOATING_TYPES(g.scalar_type(), "race::conv_double_backward", [&] {
    const Plan<scalar_t> plan(n, paths, cg, w.size(1));
    Job<scalar_t> job = make_job(n, plan, in, w.size(1));
    const Tensor absent = at::zeros({std::max({n.dim_in, n.weights, n.sh})}, g.options());  // read with stride 0
    const auto point = [&absent](const Tensor& t) { return (t.defined() ? t : absent).const_data_ptr<scalar_t>(); };
    job.a = point(a), job.a_stride = a.defined() ? n.dim_in : 0;
    job.radial.b = job.radial.xi = point(b);
    job.radial.b_stride = b.defined() ? n.weights : 0, job.radial.b_member = b.defined() ? n.edges * n.weights : 0;
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
