#pragma once

#include <ATen/ATen.h>

#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <vector>

namespace race {

/// The exchange of atoms' features with their ghosts, and of adjoints back. predict() calls
///   forward   once before each layer but the first (n_layers - 1 times), then
///   reverse   once after the transpose of each layer but the first (n_layers - 1 times; M / T
///             times as often if M members with T trunks have their own forces),
/// in the same order and with the same width in every domain, also in domains with no atoms or no
/// edges.
///
/// rows: [n_total, width], contiguous, in the model's dtype and on its device (an implementation
/// that needs host memory copies). width <= Model::comm_width_max(). Rows are changed in place.
class HaloExchange {
 public:
  virtual ~HaloExchange() = default;

  /// Fills rows[n_owned:] from the rows of their owners.
  virtual void forward(at::Tensor& rows) = 0;

  /// Adds rows[n_owned:] into the rows of their owners: the transpose of forward(). Ghost rows may
  /// be left as they are.
  virtual void reverse(at::Tensor& rows) = 0;

  /// A tensor that says what this exchange does, if it does the same at every call, and nothing
  /// but launch work on the device of that tensor: two exchanges with one tensor are alike.
  /// Undefined for all others.
  virtual at::Tensor fixed() const { return {}; }
};

/// One domain that is its own neighbour: ghost n_owned + k is a periodic image of the owned row
/// owner[k].
class PeriodicFoldHalo final : public HaloExchange {
 public:
  /// owner: int64 [n_total - n_owned], each in [0, n_owned).
  explicit PeriodicFoldHalo(at::Tensor owner);
  void forward(at::Tensor& rows) override;
  void reverse(at::Tensor& rows) override;
  at::Tensor fixed() const override { return owner_; }

 private:
  at::Tensor owner_;
};

/// N domains in one process, each on its own thread, as MPI ranks are but without MPI. For tests.
class DomainsHalo {
 public:
  /// The owner of each ghost of a domain: its domain and its row there.
  struct Ghosts {
    int64_t n_owned = 0;
    at::Tensor domain;  ///< int64 [n_ghosts]
    at::Tensor row;     ///< int64 [n_ghosts]
  };
  explicit DomainsHalo(std::vector<Ghosts> ghosts);

  /// The exchange of domain `rank`; its calls block until every domain has entered the same
  /// exchange.
  class Port final : public HaloExchange {
   public:
    Port(DomainsHalo& shared, int64_t rank) : shared_(shared), rank_(rank) {}
    void forward(at::Tensor& rows) override;
    void reverse(at::Tensor& rows) override;

   private:
    DomainsHalo& shared_;
    int64_t rank_;
  };
  Port port(int64_t rank) { return Port(*this, rank); }

  /// A domain that failed calls this: the others then leave their exchange with race::Error instead
  /// of hanging.
  void abandon();

 private:
  void wait();

  std::vector<Ghosts> ghosts_;
  std::vector<at::Tensor*> rows_;
  std::mutex mutex_;
  std::condition_variable turned_;
  int64_t waiting_ = 0;
  int64_t turn_ = 0;
  bool abandoned_ = false;
};

}  // namespace race
