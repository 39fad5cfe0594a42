#pragma once

#include <string>

#include "race/artifact.h"

namespace race {

/// The model of one member alone that an artifact of several carries beside them, itself ready for
/// Model::load(): "1" .. "M", or "distilled". It is verified with the artifact.
/// @throws Error where it carries none of that name.
Artifact leader_of(const Artifact& artifact, const std::string& name);

}  // namespace race
