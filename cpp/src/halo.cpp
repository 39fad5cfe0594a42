#include "race/halo.h"

#include <ATen/core/grad_mode.h>

#include "operators.h"
#include "race/error.h"

namespace race {

PeriodicFoldHalo::PeriodicFoldHalo(at::Tensor owner) : owner_(std::move(owner)) {}

void PeriodicFoldHalo::forward(at::Tensor& rows) {
  const at::NoGradGuard no_grad;
  const int64_t n_ghosts = owner_.size(0), n_owned = rows.size(0) - n_ghosts;
  if (n_ghosts == 0) return;
  owner_ = owner_.to(rows.device());
  at::Tensor ghosts = rows.narrow(0, n_owned, n_ghosts);
  at::index_select_out(ghosts, rows.narrow(0, 0, n_owned), 0, owner_);
}

void PeriodicFoldHalo::reverse(at::Tensor& rows) {
  if (owner_.size(0) == 0) return;
  owner_ = owner_.to(rows.device());
  static const auto handle =
      find_operator<void(const at::Tensor&, const at::Tensor&)>("race::periodic_fold");
  handle.call(rows, owner_);
}

DomainsHalo::DomainsHalo(std::vector<Ghosts> ghosts)
    : ghosts_(std::move(ghosts)), rows_(ghosts_.size(), nullptr) {}

void DomainsHalo::wait() {
  std::unique_lock lock(mutex_);
  const int64_t turn = turn_;
  if (++waiting_ == static_cast<int64_t>(ghosts_.size())) {
    waiting_ = 0;
    ++turn_;
    turned_.notify_all();
  } else {
    turned_.wait(lock, [&] { return turn_ != turn || abandoned_; });
  }
  if (abandoned_) throw Error("another domain failed");
}

void DomainsHalo::abandon() {
  const std::lock_guard lock(mutex_);
  abandoned_ = true;
  turned_.notify_all();
}

void DomainsHalo::Port::forward(at::Tensor& rows) {
  const at::NoGradGuard no_grad;
  shared_.rows_[rank_] = &rows;
  shared_.wait();
  const Ghosts& mine = shared_.ghosts_[rank_];
  for (std::size_t domain = 0; domain < shared_.ghosts_.size(); ++domain) {
    const at::Tensor ghosts = (mine.domain == static_cast<int64_t>(domain)).nonzero().squeeze(1);
    rows.index_copy_(0, ghosts + mine.n_owned,
                     shared_.rows_[domain]->index_select(0, mine.row.index_select(0, ghosts)));
  }
  shared_.wait();
}

void DomainsHalo::Port::reverse(at::Tensor& rows) {
  const at::NoGradGuard no_grad;
  shared_.rows_[rank_] = &rows;
  shared_.wait();
  // Each domain writes its owned rows and reads the others' ghost rows, which nobody writes; in
  // domain order, so the sum is reproducible.
  for (std::size_t domain = 0; domain < shared_.ghosts_.size(); ++domain) {
    const Ghosts& theirs = shared_.ghosts_[domain];
    const at::Tensor ghosts = (theirs.domain == rank_).nonzero().squeeze(1);
    rows.index_add_(0, theirs.row.index_select(0, ghosts),
                    shared_.rows_[domain]->index_select(0, ghosts + theirs.n_owned));
  }
  shared_.wait();
}

}  // namespace race
