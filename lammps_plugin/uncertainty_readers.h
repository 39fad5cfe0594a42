#pragma once

#include <algorithm>
#include <functional>
#include <memory>
#include <utility>
#include <vector>

#include "lmptype.h"

namespace LAMMPS_NS {

/// The values that a compute or fix reads from the pair style. Each answer is the same on every
/// rank.
struct UncertaintyReader {
  /// Whether the reader needs uncertainties on this step.
  std::function<bool(bigint step)> wants;
  /// Whether the reader rejects values that `uq every N` holds from an earlier step.
  bool insists = false;
  /// Whether the reader itself looks for an energy that is not finite on this step; empty: never.
  std::function<bool(bigint step)> watches;
};

/// The readers of one pair style. A reader enters itself when LAMMPS initialises it, again in each
/// run, and leaves when it is destroyed: neither side needs to outlive the other.
class UncertaintyReaders {
 public:
  void add(const std::shared_ptr<const UncertaintyReader>& reader) {
    std::erase_if(readers_, [&](const auto& known) {
      const auto here = known.lock();
      return !here || here == reader;
    });
    readers_.push_back(reader);
  }

  bool want(bigint step) const {
    return any([&](const UncertaintyReader& reader) { return reader.wants(step); });
  }
  bool insist(bigint step) const {
    return any(
        [&](const UncertaintyReader& reader) { return reader.insists && reader.wants(step); });
  }
  bool watch(bigint step) const {
    return any(
        [&](const UncertaintyReader& reader) { return reader.watches && reader.watches(step); });
  }

 private:
  bool any(const std::function<bool(const UncertaintyReader&)>& says) const {
    return std::any_of(readers_.begin(), readers_.end(), [&](const auto& known) {
      const auto reader = known.lock();
      return reader && says(*reader);
    });
  }

  std::vector<std::weak_ptr<const UncertaintyReader>> readers_;
};

}  // namespace LAMMPS_NS
