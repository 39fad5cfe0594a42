#pragma once
// race::periodic_fold: adds the values of periodic images to the atoms that they are images of.
//
//   race::periodic_fold(Tensor(a!) rows, Tensor owner) -> ()
//
//   rows   [n_owned + n_ghosts, width]  contiguous, float32 or float64: rows[owner[k]] +=
//                                       rows[n_owned + k], in the order of k
//   owner  int64 [n_ghosts]             in [0, n_owned); CUDA does not check this, and skips
//                                       owners outside
#include <ATen/core/Tensor.h>

#include "check.h"

namespace race::periodic_fold {

inline void check(const at::Tensor& rows, const at::Tensor& owner) {
  RACE_CHECK("periodic_fold",
             rows.dim() == 2 && rows.is_contiguous() &&
                 (rows.scalar_type() == at::kFloat || rows.scalar_type() == at::kDouble),
             "rows", "contiguous float32 or float64 [n_total, width]", rows.scalar_type(), " ",
             rows.sizes(), " with strides ", rows.strides());
  RACE_CHECK("periodic_fold",
             owner.dim() == 1 && owner.scalar_type() == at::kLong &&
                 owner.size(0) <= rows.size(0) && owner.device() == rows.device(),
             "owner",
             c10::str("int64 [n_ghosts], n_ghosts <= ", rows.size(0), ", on ", rows.device()),
             owner.scalar_type(), " ", owner.sizes(), " on ", owner.device());
}

}  // namespace race::periodic_fold
