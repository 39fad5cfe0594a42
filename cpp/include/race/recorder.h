#pragma once

#include <ATen/core/Tensor.h>

#include <functional>
#include <memory>

namespace race {

/// Records what a device is asked to do, and asks the same again without the work of asking: a
/// CUDA graph. One recording in its life.
class Recorder {
 public:
  virtual ~Recorder() = default;

  /// Does `work` as record() will: a first time, in which everything is made that lasts.
  virtual void rehearse(const std::function<void()>& work) = 0;

  /// Records `work`, and may leave it undone. Tensors that it makes are those of every replay.
  /// @throws std::exception if the device cannot record it.
  virtual void record(const std::function<void()>& work) = 0;

  /// Does what was recorded: it reads tensors where record() read them, and writes likewise. Then
  /// does `read`, which copies the results: any later replay may overwrite them.
  virtual void replay(const std::function<void()>& read) = 0;
};

using MakeRecorder = std::function<std::unique_ptr<Recorder>(at::Device)>;

/// Sets who makes recorders; null where nothing is recorded, as before the first call. The CUDA
/// kernels set theirs when they are loaded.
void set_recorder(MakeRecorder make);

/// A new recorder, or null if steps on this device are not recorded: on a CPU, or with
/// RACE_CUDA_GRAPH=0 in the environment.
std::unique_ptr<Recorder> make_recorder(at::Device device);

}  // namespace race
