#pragma once

#include <string>

namespace LAMMPS_NS {

class LAMMPS;
class PairRace;

/// Collective: the whole configuration as one frame of extended xyz, in Angstrom and eV, for `ase.io.read`: positions relative to the
/// box's lower corner, id, and `lammps_forces` (not `forces`: they are no label to train on). Types without an element are X.
/// @param append else the file is begun anew. @param comment why, into the frame's `reason`.
/// @return what went wrong with the file, the same in every rank; empty: nothing.
std::string write_extxyz(LAMMPS* lmp, const PairRace& pair, const std::string& path, bool append, const std::string& comment);

} // namespace LAMMPS_NS
