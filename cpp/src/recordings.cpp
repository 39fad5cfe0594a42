#include "recordings.h"

#include <algorithm>
#include <cstdlib>
#include <utility>

#include "segments.h"

namespace race {
namespace {

// More edges keep a device busy for longer than their launches take, and a recording would keep
// all the memory of a step.
constexpr int64_t kMostEdges = 1'000'000;
// Recordings of a topology: a leader's and its ensemble's, with and without virials
constexpr std::size_t kMostKinds = 6;
// Difference of a replay from the step, of its largest value. Kernels add in a fixed order.
constexpr double kAgree = 1e-4;

MakeRecorder& maker() {
  static auto& make = *new MakeRecorder;
  return make;
}

// NaN agrees with NaN, and an infinity with its like: a grade may be one.
bool agree(const Prediction& a, const Prediction& b) {
  const std::vector<at::Tensor> first = a.tensors(), second = b.tensors();
  return std::equal(first.begin(), first.end(), second.begin(), second.end(),
                    [](const at::Tensor& x, const at::Tensor& y) {
                      if (x.defined() != y.defined()) return false;
                      if (!x.defined() || x.numel() == 0) return true;
                      if (x.sizes() != y.sizes()) return false;
                      const at::Tensor scale = at::nan_to_num(x, 0.0, 0.0, 0.0).abs().max();
                      const at::Tensor near = (x - y).abs() <= kAgree * scale;
                      return (near | (x == y) | (x.isnan() & y.isnan())).all().item<bool>();
                    });
}

Prediction copied(const Prediction& prediction, at::Device to) {
  Prediction copy;
  std::vector<at::Tensor> tensors = prediction.tensors();
  for (at::Tensor& tensor : tensors)
    if (tensor.defined())
      tensor = tensor.to(to, tensor.scalar_type(), /*non_blocking=*/false, /*copy=*/true);
  copy.set(tensors);
  return copy;
}

}  // namespace

void set_recorder(MakeRecorder make) { maker() = std::move(make); }

std::unique_ptr<Recorder> make_recorder(at::Device device) {
  const char* asked = std::getenv("RACE_CUDA_GRAPH");
  return maker() && !(asked && *asked == '0') ? maker()(device) : nullptr;
}

bool Recordings::Kind::operator==(const Kind& other) const {
  return model.is(other.model) && owner.is_same(other.owner) && forces == other.forces &&
         members == other.members && uncertainty == other.uncertainty &&
         atom_virial == other.atom_virial;
}

Recordings::Recording& Recordings::of(const Kind& kind) {
  const auto found =
      std::find_if(recordings_.begin(), recordings_.end(),
                   [&](const Recording& recording) { return recording.kind == kind; });
  if (found != recordings_.end()) {
    recordings_.splice(recordings_.begin(), recordings_, found);
    return *found;
  }
  if (recordings_.size() == kMostKinds) recordings_.pop_back();
  Recording& made = recordings_.emplace_front(Recording{.kind = kind});
  try {
    made.recorder = make_recorder(kind.model.device());
  } catch (const std::exception& error) {
    TORCH_WARN_ONCE("race: steps are not recorded: ", reason_of(error));
  }
  return made;
}

Prediction Recordings::predict(const Kind& kind, const at::Tensor& edge_vector, at::Device to,
                               const Step& step) {
  const std::lock_guard lock(mutex_);
  if (edge_vector.size(0) > kMostEdges) return step(edge_vector);
  Recording& recording = of(kind);
  if (!recording.recorder) return step(edge_vector);
  if (recording.stage == Recording::fresh)
    recording.edge_vector =
        at::empty(edge_vector.sizes(), edge_vector.options().device(kind.model.device()));
  recording.edge_vector.copy_(edge_vector);
  if (recording.stage == Recording::rehearsed) return record(recording, step);
  if (recording.stage == Recording::recorded) {
    Prediction prediction;
    recording.recorder->replay([&] { prediction = copied(recording.prediction, to); });
    return prediction;
  }
  Prediction prediction;
  recording.recorder->rehearse([&] { prediction = step(recording.edge_vector); });
  recording.stage = Recording::rehearsed;
  return prediction;
}

Prediction Recordings::record(Recording& recording, const Step& step) {
  Prediction expected;
  recording.recorder->rehearse([&] { expected = step(recording.edge_vector); });
  try {
    const Holding holding(recording.held);
    recording.recorder->record([&] { recording.prediction = step(recording.edge_vector); });
    bool right = false;
    recording.recorder->replay([&] { right = agree(expected, recording.prediction); });
    if (right) {
      recording.stage = Recording::recorded;
      return expected;
    }
    TORCH_WARN_ONCE("race: a recorded step gave other numbers than the step: not used");
  } catch (const std::exception& error) {
    TORCH_WARN_ONCE("race: steps are not recorded: ", reason_of(error));
  }
  recording.recorder.reset();
  recording.prediction = {};
  recording.held.clear();
  return expected;
}

}  // namespace race
