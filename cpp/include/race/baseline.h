#pragma once

#include <string>

namespace race {

struct Metadata;

/// The potential that a model adds to, as its LAMMPS commands or the import path of its ASE
/// calculator; empty if there is none. Without its baseline, such a model's energies are wrong.
std::string baseline_of(const Metadata& metadata);

}  // namespace race
