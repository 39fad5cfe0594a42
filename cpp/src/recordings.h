#pragma once

#include <any>
#include <cstdint>
#include <functional>
#include <list>
#include <memory>
#include <mutex>
#include <vector>

#include "race/predict.h"
#include "race/recorder.h"
#include "recent.h"

namespace race {

/// The steps on one topology, recorded by a device: a step whose like was recorded is replayed at
/// its own edge vectors.
class Recordings {
 public:
  /// What makes two steps alike: their launches differ in edge vectors alone.
  struct Kind {
    Model model;
    at::Tensor owner;  ///< HaloExchange::fixed()
    bool forces, members, uncertainty, atom_virial;
    bool operator==(const Kind& other) const;
  };
  using Step = std::function<Prediction(const at::Tensor& edge_vector)>;

  /// Prediction of `step` at these edge vectors, on the model's device or, if it is replayed, on
  /// `to`. The second step of a kind is recorded. Later ones are replayed if the replay gave what
  /// the step itself gave; otherwise, or if the device records nothing, each is made.
  Prediction predict(const Kind& kind, const at::Tensor& edge_vector, at::Device to,
                     const Step& step);

 private:
  struct Recording {
    Kind kind;
    std::unique_ptr<Recorder> recorder;  ///< null if steps of this kind are not recorded
    at::Tensor edge_vector = {};         ///< where the recorded step reads them
    Prediction prediction = {};          ///< where it writes
    std::vector<std::any> held = {};     ///< what others would drop, and it reads
    enum { fresh, rehearsed, recorded } stage = fresh;
  };
  Recording& of(const Kind& kind);
  static Prediction record(Recording& recording, const Step& step);

  std::mutex mutex_;
  std::list<Recording> recordings_;
};

}  // namespace race
