#pragma once
// The tables of a product: its path table and coefficients in the form of the kernels.
#include <memory>
#include <vector>

#include "bilinear_map.h"
#include "product_problem.h"

namespace race::product {

// The numbers of BilinearMaps, one list behind the other, and the start of each list.
template <class T>
struct Plan {
  std::vector<int32_t> begins;  // [5, n_components + 1]
  std::vector<Run> runs;
  std::vector<Entry<T>> entries;
  int64_t first_run[5], first_entry[5];
  int64_t n_components;
  bool has_third;

  // Views of copies of the three arrays, on whatever device.
  BilinearMaps<T> maps(const int32_t* begins, const Run* runs, const Entry<T>* entries) const;
  BilinearMaps<T> maps() const { return maps(begins.data(), runs.data(), entries.data()); }
};

// A plan depends on the model alone, so it is made once and kept. Thread safe; plans are never
// changed.
template <class T>
std::shared_ptr<const Plan<T>> plan_for(const Problem& n, const at::Tensor& cg);

}  // namespace race::product
