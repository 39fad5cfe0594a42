#pragma once
// Common parts of the CPU's linear maps: the kernels of this machine, and atoms grouped by species.
#include <vector>

#include "../simd/linear_kernel.h"
#include "isa.h"
#include "linear_problem.h"

namespace race::linear {

constexpr int64_t kGrain =
    1 << 18;  // fewest multiply-adds that pay for waking a thread: some microseconds

const IsaChoice<KernelSet>& choice();

template <class T>
const Kernels<T>& kernels() {
  return choice().of<T>();
}

// A counting sort: order[p] for positions begin[s] .. begin[s + 1]. Empty if all atoms are one
// group, in their own order. A species outside is an error of operator `op`.
struct Groups {
  std::vector<int64_t> order, begin;

  Groups(const char* op, int64_t n_atoms, int64_t n_species, const OptionalTensor& species);

  int64_t count(int64_t s) const { return begin[s + 1] - begin[s]; }
};

}  // namespace race::linear
