#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "pointers.h"
#include "race/memory.h"

namespace LAMMPS_NS {

/// How much memory an evaluation takes on this rank, known before it begins, and in how many parts
/// it stays below `memory N`.
class MemoryBudget : protected Pointers {
 public:
  explicit MemoryBudget(LAMMPS* lmp) : Pointers(lmp) {}

  void forget() { plain_.reset(), uncertain_.reset(); }  ///< Another model: estimate anew.
  bool estimated() const { return plain_.has_value(); }

  /// Collective, once for a model: from all ranks' atoms, ghosts and edges, so that every rank
  /// comes to the same function of them. Says what the fullest rank needs.
  /// @param plain the model that moves atoms; @param uncertain the one with all members.
  void estimate(const race::Model& plain, const race::Model& uncertain, const race::Graph& graph,
                double neighbor_bytes, double cap);

  /// In how many parts this rank's atoms are taken. Ranks need not agree.
  /// @throws race::Error where no number of parts is enough.
  int64_t parts(const race::Graph& graph, bool uncertainty, double cap) const;

  /// The error when it was not enough. @param what of the allocator.
  std::string out_of_memory(const race::Graph& graph, bool uncertainty,
                            const std::string& what) const;

 private:
  std::optional<race::MemoryEstimate> plain_, uncertain_;
};

}  // namespace LAMMPS_NS
