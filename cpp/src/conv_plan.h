#pragma once
// The plan of a convolution: plain data, like the kernels, which tests/cpp/simd runs without torch.
#include <algorithm>
#include <cstdlib>
#include <utility>
#include <vector>

#include "../simd/conv_kernel.h"

namespace race::conv {

// Paths and coefficient tables in the kernels' form; paths with equal coefficients share one table.
template <class T>
struct KernelPaths {
  std::vector<PlannedPath> paths;
  std::vector<CouplingTable<T>> tables;
  std::vector<std::vector<Entry<T>>> entries;  // the tables point to these entries
  std::vector<std::vector<int32_t>> begins;

  KernelPaths(const std::vector<Path>& given, int64_t n_members, const double* cg) {
    std::vector<const double*> sources;
    entries.reserve(2 * given.size());  // pointers into them must not move
    begins.reserve(2 * given.size());
    for (const Path& r : given) {
      const int64_t d1 = r.d1(), d2 = r.d2(), d3 = r.d3();
      const double* source = cg + r.cg_offset;
      size_t t = 0;
      while (t < tables.size() &&
             !(tables[t].d1 == d1 && tables[t].d2 == d2 && tables[t].d3 == d3 &&
               std::equal(source, source + d1 * d2 * d3, sources[t])))
        ++t;
      if (t == tables.size()) {
        sources.push_back(source);
        add_table(source, d1, d2, d3, r.l2 * r.l2);
      }
      PlannedPath planned{};
      static_cast<Path&>(planned) = r;
      planned.table = static_cast<int32_t>(t);
      planned.in_stride = n_members * r.mul;
      planned.out_stride = n_members * r.out_mul;
      paths.push_back(planned);
    }
    for (size_t p = 0; p < paths.size(); ++p)
      for (size_t r = p + 1; r < paths.size() && paths[p].partner == 0 && !paths[p].is_partner; ++r)
        if (are_partners(paths[p], paths[r])) {
          paths[p].partner = static_cast<int32_t>(r);
          paths[r].is_partner = true;
        }
  }

 private:
  // g itself and g (x) Y_0: one pass over the features serves both.
  bool are_partners(const PlannedPath& a, const PlannedPath& b) const {
    const bool apart = a.out_offset == b.out_offset && a.out_mul == b.out_mul &&
                       std::abs(a.out_column - b.out_column) >= a.mul;
    return !b.is_partner && a.table == b.table && tables[a.table].diagonal &&
           a.in_offset == b.in_offset && a.mul == b.mul && apart;
  }

  void add_table(const double* cg, int64_t d1, int64_t d2, int64_t d3, int64_t sh_offset) {
    bool diagonal = d2 == 1 && d1 == d3;
    for (int64_t m1 = 0; diagonal && m1 < d1; ++m1)
      for (int64_t m3 = 0; m3 < d3; ++m3)
        diagonal = diagonal && cg[m1 * d3 + m3] == (m1 == m3 ? cg[0] : 0.0);

    std::vector<Entry<T>> by_q;
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
    CouplingTable<T> table{};
    table.d1 = static_cast<int32_t>(d1);
    table.d2 = static_cast<int32_t>(d2);
    table.d3 = static_cast<int32_t>(d3);
    table.sh_offset = static_cast<int32_t>(sh_offset);
    table.q_size = static_cast<int32_t>(q_count);
    table.diagonal = diagonal;
    table.by_q = keep(entries, std::move(by_q));
    table.q_begin = keep(begins, std::move(q_begin));
    table.by_m2 = keep(entries, std::move(by_m2));
    table.m2_begin = keep(begins, std::move(m2_begin));
    tables.push_back(table);
  }
};

}  // namespace race::conv
