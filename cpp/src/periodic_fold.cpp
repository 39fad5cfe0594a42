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
#include "operators.h"
#ifdef RACE_CUDA
#include "../cuda/edge_sums_cuda.h"
#endif

namespace race {
namespace {

using at::Tensor;

void check(const Tensor& rows, const Tensor& owner) {
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

// On the CPU index_add_ adds in order.
void fold_aten(const Tensor& rows, const Tensor& owner) {
  check(rows, owner);
  const int64_t n_ghosts = owner.size(0), n_owned = rows.size(0) - n_ghosts;
  rows.narrow(0, 0, n_owned).index_add_(0, owner, rows.narrow(0, n_owned, n_ghosts));
}

#ifdef RACE_CUDA
void fold_cuda(const Tensor& rows, const Tensor& owner) {
  check(rows, owner);
  periodic_fold_cuda(rows, owner);
}
#endif

const bool registered =
    register_operators("race::periodic_fold", __FILE__, __LINE__, [](torch::Library* library) {
      Operator(library, "periodic_fold(Tensor(a!) rows, Tensor owner) -> ()")
          .portable(TORCH_FN(fold_aten)) RACE_ON_CUDA(fold_cuda)
          .meta(TORCH_FN(check));
    });

}  // namespace
}  // namespace race
