#pragma once

#include <string>

namespace race {

struct Metadata;

/// The potential that a model adds to, as its LAMMPS commands or the import path of its ASE
/// calculator; empty where the model is all there is. Its energies alone would be wrong.
std::string baseline_of(const Metadata& metadata);

}  // namespace race
