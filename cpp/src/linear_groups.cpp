#include "linear_groups.h"

namespace race::linear {

const IsaChoice<KernelSet>& choice() {
  static const auto chosen = RACE_CHOOSE_ISA(linear);
  return chosen;
}

Groups::Groups(const char* op, int64_t n_atoms, int64_t n_species, const OptionalTensor& species)
    : begin(n_species + 1, 0) {
  begin.back() = n_atoms;
  if (!species.has_value()) return;
  const at::Tensor dense = species->contiguous();
  const int64_t* z = dense.const_data_ptr<int64_t>();
  std::vector<int64_t> next(n_species + 1, 0);
  for (int64_t i = 0; i < n_atoms; ++i) {
    if (z[i] < 0 || z[i] >= n_species) refuse_species(op, z[i], n_species);
    next[z[i] + 1] += 1;
  }
  for (int64_t s = 0; s < n_species; ++s) next[s + 1] += next[s];
  begin = next;
  if (n_species == 1) return;
  order.resize(n_atoms);
  for (int64_t i = 0; i < n_atoms; ++i) order[next[z[i]]++] = i;
}

}  // namespace race::linear
