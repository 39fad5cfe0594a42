#pragma once
// Rows grouped by an index: atoms by their species, ghosts by their owner.
#include <memory>

#include <ATen/core/Tensor.h>

namespace race::cuda {

// The rows of group k are order[begin[k]] .. order[begin[k + 1]], in their own order. Rows whose
// index is of no group are before begin[0] and from begin[n_groups] on.
struct Groups {
  at::Tensor begin;  // int64 [n_groups + 1]
  at::Tensor order;  // int64 [n]
};

// index: int64 [n]. It is sorted on the device, without waiting. The result is remembered for this
// tensor (or a view of it), while the tensor lives and nobody writes to it. Thread safe.
std::shared_ptr<const Groups> groups_for(const at::Tensor& index, int64_t n_groups);

}  // namespace race::cuda
