#pragma once

#include <string>

#include "race/model.h"

namespace race {

/// Runs the artifact's own configurations (selftest.json, written by
/// python/race/deploy/selftest.py) through predict(). Compares energies, forces, virials and
/// covariances of every member with those of the exported model.
/// @throws race::Error naming the case, the quantity, the difference and the tolerance.
void replay_selftest(const Model& model, const std::string& json, const std::string& name);

}  // namespace race
