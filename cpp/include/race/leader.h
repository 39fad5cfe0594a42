#pragma once

#include <string>

#include "race/artifact.h"

namespace race {

/// A model of one member, which an ensemble's artifact carries beside its members, ready for
/// Model::load(): "1" .. "M", or "distilled". It is verified with the artifact. @throws Error if
/// the artifact carries none of that name.
Artifact leader_of(const Artifact& artifact, const std::string& name);

}  // namespace race
