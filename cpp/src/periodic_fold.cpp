#include "periodic_fold.h"

#include "operators.h"

namespace race {
namespace {

using at::Tensor;

// On the CPU index_add_ adds in order.
void fold_aten(const Tensor& rows, const Tensor& owner) {
  periodic_fold::check(rows, owner);
  const int64_t n_ghosts = owner.size(0), n_owned = rows.size(0) - n_ghosts;
  rows.narrow(0, 0, n_owned).index_add_(0, owner, rows.narrow(0, n_owned, n_ghosts));
}

const bool registered =
    register_operators("race::periodic_fold", __FILE__, __LINE__, [](torch::Library* library) {
      Operator(library, "periodic_fold(Tensor(a!) rows, Tensor owner) -> ()")
          .portable(TORCH_FN(fold_aten))
          .meta(TORCH_FN(periodic_fold::check));
    });

}  // namespace
}  // namespace race
