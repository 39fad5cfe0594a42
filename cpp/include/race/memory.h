#pragma once

#include <c10/core/Device.h>
#include <c10/util/ThreadLocalDebugInfo.h>

#include <cstdint>
#include <memory>
#include <optional>

#include "race/predict.h"

namespace race {

/// The peak of tensor bytes on one device, over the tensors that this thread made since this object
/// exists. It counts what torch requested: allocators may hold more. The scope must not outlive its
/// thread's stack frame, nor overlap torch's profiler.
class PeakMemory {
 public:
  explicit PeakMemory(c10::Device device);
  int64_t bytes() const;

 private:
  class Watch;
  std::shared_ptr<Watch> watch_;
  c10::DebugInfoGuard guard_;
};

/// The peak memory of one evaluation, from small evaluations of the same model instead of a
/// formula: it holds for every architecture, dtype and device. Bytes are linear in the domain's
/// size at fixed neighbours per atom, and at most linear in 1 / n_parts from two parts on.
class MemoryEstimate {
 public:
  /// @param ghosts_per_atom, edges_per_atom  per owned atom, about as in the later domains.
  /// @param in_parts  whether more than one part will be asked for. Takes as long as an evaluation
  /// of 400 atoms, with parts of a thousand. Not collective.
  MemoryEstimate(const Model& model, double ghosts_per_atom, double edges_per_atom,
                 const Request& request, bool in_parts);

  /// Bytes of predict() with `n_parts` parts, Prediction included. A domain with other ratios
  /// counts by the largest of its atoms, ghosts and edges, relative to these ratios.
  /// @throws race::Error if `n_parts` exceeds 1 and parts were not measured.
  double bytes(const Graph& graph, int64_t n_parts) const;

  /// The fewest parts for which `cap` bytes are enough; 0 if no number of parts is.
  int64_t parts(const Graph& graph, double cap) const;

 private:
  struct Line {
    double intercept, slope;
  };
  double atoms(const Graph& graph) const;

  double ghosts_per_atom_, edges_per_atom_;
  /// Peak against the number of owned atoms: in one part, in two, and in parts of few atoms.
  Line one_part_{};
  std::optional<Line> two_parts_, small_parts_;
};

}  // namespace race
