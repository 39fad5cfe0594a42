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

std::vector<at::Tensor> parts(const Prediction& p) {
  std::vector<at::Tensor> all{
      p.node_energy,   p.forces,        p.virial,           p.atom_virial, p.node_energy_var,
      p.cov_aleatoric, p.cov_epistemic, p.logdet_aleatoric, p.grade,       p.virial_cov};
  std::erase_if(all, [](const at::Tensor& part) { return !part.defined(); });
  return all;
}

bool agree(const Prediction& a, const Prediction& b) {
  const std::vector<at::Tensor> first = parts(a), second = parts(b);
  return std::equal(first.begin(), first.end(), second.begin(), second.end(),
                    [](const at::Tensor& x, const at::Tensor& y) {
                      if (x.sizes() != y.sizes()) return false;
                      if (x.numel() == 0) return true;
                      const double scale = x.abs().max().item<double>();
                      return (x - y).abs().max().item<double>() <= kAgree * scale;  // no NaN is
                    });
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
  if (found != recordings_.end()) return *found;
  if (recordings_.size() == kMostKinds) recordings_.pop_back();
  return recordings_.emplace_front(
      Recording{.kind = kind, .recorder = make_recorder(kind.model.device())});
}

Prediction Recordings::predict(const Kind& kind, const at::Tensor& edge_vector, const Step& step) {
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
    recording.recorder->replay();
    Prediction prediction = recording.prediction;
    prediction.replayed = true;
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
    recording.recorder->replay();
    if (agree(expected, recording.prediction)) {
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
