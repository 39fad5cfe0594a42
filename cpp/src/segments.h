#pragma once

#include <ATen/ATen.h>
#include <ATen/core/ivalue.h>

#include <memory>
#include <string>
#include <vector>

#include "race/artifact.h"

namespace race {

/// The line of an exception of torch that says what went wrong: the first, but the last below a
/// TorchScript traceback.
std::string reason_of(const std::exception& error);

/// What a verified archive holds: texts, and segments that are called by name. Which container that
/// is, and what runs the segments, is known in segments.cpp and in python/race/deploy/export.py
/// alone: another payload than TorchScript replaces these two.
class Segments {
 public:
  /// Reads the archive into host memory. @throws Error, naming the artifact.
  explicit Segments(const Artifact& artifact);

  /// metadata.json or selftest.json.
  const std::string& text(const std::string& name) const;

  /// Moves and casts every tensor, but for the dtype of those named, and has the model make what it
  /// makes once. Before the first call. Throws what torch throws.
  void prepare(at::Device device, at::ScalarType dtype,
               const std::vector<std::string>& keep_float64);

  /// False for what releases after that of the export have added.
  bool has(const std::string& segment) const;

  /// Tensors and integers -> tensors. May be called from several threads at once.
  std::vector<at::Tensor> call(const std::string& segment, std::vector<c10::IValue> inputs) const;

 private:
  struct State;
  std::shared_ptr<State> state_;
};

}  // namespace race
