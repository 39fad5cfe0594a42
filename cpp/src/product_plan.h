#pragma once
// The checked and unpacked product: the one object that every device starts with.
#include <memory>
#include <vector>

#include "product_list.h"
#include "race/product.h"

namespace race::product {

constexpr int64_t kMaxComponents = 32;  // both parities of l = 0 to 3

struct Sizes {
  int64_t n_atoms, n_components, n_members, n_species, n_paths, n_channels;
};

// An error names the argument, the expected and the received value. The device that reads the
// species checks their values.
Sizes check(const ProductOperands& operands);

// `rows` must be undefined, or like x (weight: like weight).
void check_like(const char* name, const at::Tensor& rows, const at::Tensor& like);

// The numbers of Lists, one list behind the other, and the start of each list.
template <class T>
struct Plan {
  std::vector<int32_t> begins;  // [5, n_components + 1]
  std::vector<Run> runs;
  std::vector<Entry<T>> entries;
  int64_t first_run[5], first_entry[5];
  int64_t n_components;
  bool has_third;

  // Views of copies of the three arrays, on whatever device.
  Lists<T> lists(const int32_t* begins, const Run* runs, const Entry<T>* entries) const;
  Lists<T> lists() const { return lists(begins.data(), runs.data(), entries.data()); }
};

// A plan depends on the model alone, so it is made once and kept. Thread safe; plans are never
// changed.
template <class T>
std::shared_ptr<const Plan<T>> plan_for(const Sizes& n, c10::IntArrayRef paths,
                                        const at::Tensor& cg);

}  // namespace race::product
