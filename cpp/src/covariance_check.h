#pragma once
// Arguments of the operators in covariance_ops.cpp, checked the same for every device.
#include <algorithm>
#include <iterator>
#include <string>

#include <ATen/core/Tensor.h>

#include "check.h"
#include "covariance.h"
#include "race/conventions.h"

namespace race::covariance {

inline bool is_floating(const at::Tensor& t) {
  return t.scalar_type() == at::kFloat || t.scalar_type() == at::kDouble;
}

inline Head check_raw(const at::Tensor& raw, const at::Tensor& basis, c10::string_view head) {
  const NamedHead* found = std::find_if(std::begin(kHeads), std::end(kHeads),
                                        [&](const NamedHead& h) { return head == h.name; });
  std::string names;
  for (const NamedHead& h : kHeads) names += (names.empty() ? "" : ", ") + std::string(h.name);
  RACE_CHECK("force_covariance", found != std::end(kHeads), "head", "one of " + names, head);
  const int64_t n_out = raw.dim() == 3 ? raw.size(2) : 0;
  RACE_CHECK("force_covariance", n_out >= found->n_out, "raw",
             c10::str("[n_atoms, n_members, ", found->n_out, " or more]"), raw.sizes());
  RACE_CHECK("force_covariance",
             basis.dim() == 2 && basis.size(0) == 5 && basis.size(1) == 9 &&
                 basis.device() == raw.device(),
             "basis", c10::str("[5, 9] on ", raw.device()), basis.sizes(), " on ", basis.device());
  return found->head;
}

inline void check_forces(const at::Tensor& forces) {
  RACE_CHECK("member_covariance",
             forces.dim() == 3 && forces.size(1) >= 1 && forces.size(2) == 3 && is_floating(forces),
             "forces", "float32 or float64 [n_atoms, n_members, 3]", forces.scalar_type(), " ",
             forces.sizes());
}

inline void check_columns(const at::Tensor& six) {
  RACE_CHECK("log_determinant", six.dim() >= 1 && six.size(-1) == 6 && is_floating(six), "six",
             "float32 or float64 [..., 6]", six.scalar_type(), " ", six.sizes());
}

}  // namespace race::covariance
