#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "pointers.h"
#include "race/memory.h"

namespace LAMMPS_NS {

/// The memory of an evaluation on this rank, estimated before it begins, and the number of parts
/// that keeps it below `memory N`.
class MemoryBudget : protected Pointers {
 public:
  explicit MemoryBudget(LAMMPS* lmp) : Pointers(lmp) {}

  /// Forgets the estimate, before that of another model.
  void forget() { plain_.reset(), uncertain_.reset(); }
  bool estimated() const { return plain_.has_value(); }

  /// Collective, once per model: estimates from all ranks' atoms, ghosts and edges, so that every
  /// rank gets the same function of them. Prints the need of the fullest rank.
  /// @param plain the model that moves atoms; @param uncertain the one with all members.
  void estimate(const race::Model& plain, const race::Model& uncertain, const race::Graph& graph,
                double neighbor_bytes, double cap);

  /// The number of parts in which this rank's atoms are evaluated. Ranks need not agree.
  /// @throws race::Error if no number of parts is enough.
  int64_t parts(const race::Graph& graph, bool uncertainty, double cap) const;

  /// The error for a failed allocation. @param what the allocator's message.
  std::string out_of_memory(const race::Graph& graph, bool uncertainty,
                            const std::string& what) const;

 private:
  std::optional<race::MemoryEstimate> plain_, uncertain_;
};

}  // namespace LAMMPS_NS
