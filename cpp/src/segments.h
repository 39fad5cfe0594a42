#pragma once

#include <ATen/ATen.h>
#include <ATen/core/ivalue.h>

#include <memory>
#include <string>
#include <vector>

#include "race/artifact.h"

namespace race {

/// The line of a torch exception that names the cause: the first line, but the last one below a
/// TorchScript traceback.
std::string reason_of(const std::exception& error);

/// The content of a verified archive: texts, and segments that are called by name. Only
/// segments.cpp and python/race/deploy/export.py know the container and the interpreter of the
/// segments: a payload other than TorchScript replaces these two.
class Segments {
 public:
  /// Reads the archive into host memory. @throws Error, naming the artifact.
  explicit Segments(const Artifact& artifact);

  /// metadata.json or selftest.json.
  const std::string& text(const std::string& name) const;

  /// Moves and casts every tensor (those named keep their dtype), and lets the model compute its
  /// constants. To be called before the first segment. Throws torch's exceptions.
  void prepare(at::Device device, at::ScalarType dtype,
               const std::vector<std::string>& keep_float64);

  /// False for a segment that a release after that of the export has added.
  bool has(const std::string& segment) const;

  /// Tensors and integers -> tensors. May be called from several threads at once.
  std::vector<at::Tensor> call(const std::string& segment, std::vector<c10::IValue> inputs) const;

 private:
  struct State;
  std::shared_ptr<State> state_;
};

}  // namespace race
