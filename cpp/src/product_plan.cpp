#include "product_plan.h"

#include <algorithm>
#include <cstring>
#include <string>
#include <tuple>
#include <utility>

#include "check.h"
#include "recent.h"

namespace race::product {
namespace {

using at::Tensor;

constexpr size_t kKept = 64;  // plans in memory: layers times dtypes of one or a few models

// One row of the path table, in the schema's order.
struct Path {
  int64_t order, l1, l2, l3;
  int64_t offset1, offset2, offset3;
  int64_t cg_offset;

  int64_t d1() const { return 2 * l1 + 1; }
  int64_t d2() const { return 2 * l2 + 1; }
  int64_t d3() const { return 2 * l3 + 1; }
};
static_assert(sizeof(Path) == kPathFields * sizeof(int64_t));

std::vector<Path> parse(int64_t n_components, c10::IntArrayRef paths, int64_t n_cg) {
  std::vector<Path> rows(paths.size() / kPathFields);
  for (size_t p = 0; p < rows.size(); ++p) {
    Path& r = rows[p];
    std::memcpy(&r, paths.data() + p * kPathFields, sizeof r);
    const auto where = [p](const char* field) { return c10::str("paths row ", p, ", ", field); };
    RACE_CHECK("product", r.order == 2 || r.order == 3, where("order"), "2 or 3", r.order);
    RACE_CHECK("product", std::min({r.l1, r.l2, r.l3}) >= 0 && std::max({r.l1, r.l2, r.l3}) <= 3,
               where("l1 l2 l3"), "0 to 3", r.l1, " ", r.l2, " ", r.l3);
    const std::tuple<const char*, int64_t, int64_t> blocks[] = {{"offset1", r.offset1, r.d1()},
                                                                {"offset2", r.offset2, r.d2()},
                                                                {"offset3", r.offset3, r.d3()}};
    for (const auto& [name, offset, dim] : blocks)
      RACE_CHECK("product", offset >= 0 && offset + dim <= n_components, where(name),
                 c10::str("0 to ", n_components - dim), offset);
    RACE_CHECK("product", r.cg_offset >= 0 && r.cg_offset + r.d1() * r.d2() * r.d3() <= n_cg,
               where("cg_offset"), c10::str("a table inside cg's ", n_cg), r.cg_offset);
  }
  return rows;
}

// out += weight_path value a b
struct Term {
  int32_t out, path, a, b;
  double value;

  auto key() const { return std::tie(out, path, a, b); }
};

using Terms = std::vector<Term>;

// The bilinear map of one order: out k from components i and j. The pair (i, j) of one irrep with
// itself is there once, as is (j, i).
Terms map_of(const std::vector<Path>& paths, int64_t order, const double* cg) {
  Terms terms;
  for (size_t p = 0; p < paths.size(); ++p) {
    const Path& r = paths[p];
    if (r.order != order) continue;
    const bool folded = order == 2 && r.offset1 == r.offset2 && r.l1 == r.l2;
    const auto coefficient = [&](int64_t i, int64_t j, int64_t k) {
      return cg[r.cg_offset + (i * r.d2() + j) * r.d3() + k];
    };
    for (int64_t i = 0; i < r.d1(); ++i)
      for (int64_t j = folded ? i : 0; j < r.d2(); ++j)
        for (int64_t k = 0; k < r.d3(); ++k) {
          double value = coefficient(i, j, k);
          if (folded && i != j) value += coefficient(j, i, k);
          if (value != 0)
            terms.push_back({static_cast<int32_t>(r.offset3 + k), static_cast<int32_t>(p),
                             static_cast<int32_t>(r.offset1 + i),
                             static_cast<int32_t>(r.offset2 + j), value});
        }
  }
  return terms;
}

// The adjoint of the first or of the second operand, from that of `out` and the other operand.
Terms adjoint_of(const Terms& map, bool of_first) {
  Terms terms;
  for (const Term& t : map)
    terms.push_back({of_first ? t.a : t.b, t.path, t.out, of_first ? t.b : t.a, t.value});
  return terms;
}

Terms joined(Terms terms, const Terms& others) {
  terms.insert(terms.end(), others.begin(), others.end());
  return terms;
}

template <class T>
void append(Plan<T>& plan, int list, Terms terms) {
  std::sort(terms.begin(), terms.end(),
            [](const Term& a, const Term& b) { return a.key() < b.key(); });
  plan.first_run[list] = plan.runs.size();
  plan.first_entry[list] = plan.entries.size();
  const auto n_entries = [&] {
    return static_cast<int32_t>(plan.entries.size() - plan.first_entry[list]);
  };
  size_t t = 0;
  plan.begins.push_back(0);
  for (int64_t out = 0; out < plan.n_components; ++out) {
    while (t < terms.size() && terms[t].out == out) {
      const int32_t path = terms[t].path;
      while (t < terms.size() && terms[t].out == out && terms[t].path == path) {
        Term merged = terms[t++];
        for (; t < terms.size() && terms[t].key() == merged.key(); ++t)
          merged.value += terms[t].value;
        plan.entries.push_back({merged.a, merged.b, static_cast<T>(merged.value)});
      }
      plan.runs.push_back({path, n_entries()});
    }
    plan.begins.push_back(static_cast<int32_t>(plan.runs.size() - plan.first_run[list]));
  }
}

template <class T>
std::shared_ptr<const Plan<T>> make_plan(int64_t n_components, c10::IntArrayRef rows,
                                         const Tensor& cg) {
  const std::vector<Path> paths = parse(n_components, rows, cg.numel());
  const double* coefficients = cg.const_data_ptr<double>();
  auto plan = std::make_shared<Plan<T>>();
  plan->n_components = n_components;
  const Terms second = map_of(paths, 2, coefficients), third = map_of(paths, 3, coefficients);
  plan->has_third = !third.empty();
  append(*plan, 0, second);
  append(*plan, 1, joined(adjoint_of(second, true), adjoint_of(second, false)));
  append(*plan, 2, third);
  append(*plan, 3, adjoint_of(third, true));
  append(*plan, 4, adjoint_of(third, false));
  return plan;
}

}  // namespace

template <class T>
BilinearMaps<T> Plan<T>::maps(const int32_t* begins, const Run* runs,
                              const Entry<T>* entries) const {
  const auto list = [&](int k) {
    return BilinearMap<T>{begins + k * (n_components + 1), runs + first_run[k],
                          entries + first_entry[k]};
  };
  return {.second = list(0),
          .second_back = list(1),
          .third = list(2),
          .third_first = list(3),
          .third_second = list(4),
          .has_third = has_third};
}

template <class T>
std::shared_ptr<const Plan<T>> plan_for(const Problem& n, const Tensor& cg) {
  struct Key {
    int64_t n_components;
    std::vector<int64_t> paths;
    std::vector<double> cg;
  };
  static auto& plans = *new Recent<Key, std::shared_ptr<const Plan<T>>>(kKept);
  const Tensor host = cg.contiguous();
  const double *first = host.const_data_ptr<double>(), *last = first + host.numel();
  return plans.get(
      [&](const Key& key) {
        return key.n_components == n.n_components && n.paths == c10::IntArrayRef(key.paths) &&
               std::equal(key.cg.begin(), key.cg.end(), first, last);
      },
      [&] {
        return std::pair{Key{n.n_components, n.paths.vec(), {first, last}},
                         make_plan<T>(n.n_components, n.paths, host)};
      });
}

template struct Plan<float>;
template struct Plan<double>;
template std::shared_ptr<const Plan<float>> plan_for(const Problem&, const Tensor&);
template std::shared_ptr<const Plan<double>> plan_for(const Problem&, const Tensor&);

}  // namespace race::product
