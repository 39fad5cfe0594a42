#pragma once

#include <string>
#include <vector>

#include "lmptype.h"

namespace LAMMPS_NS {

class LAMMPS;
class PairRace;

/// Collective: the whole configuration as one frame of extended xyz, in Angstrom and eV, for
/// `ase.io.read`: positions relative to the box's lower corner, id, and `lammps_forces` (not
/// `forces`: they are no label to train on). Types without an element are X.
/// @param append else the file is begun anew. @param comment why, into the frame's `reason`.
/// @return what went wrong with the file, the same in every rank; empty: nothing.
std::string write_extxyz(LAMMPS* lmp, const PairRace& pair, const std::string& path, bool append,
                         const std::string& comment);

/// Collective: a frame for each of `atoms` (IDs): the atoms and images of atoms within `radius`
/// (LAMMPS's units) of it, in the middle of a cube of 2 radius + cutoff, not periodic: the surface
/// is left bare. The frame's `center` is the row of that atom. An atom that is at no finite place,
/// or 0, gives the whole configuration instead. Else as write_extxyz().
std::string write_environments(LAMMPS* lmp, const PairRace& pair, const std::string& path,
                               bool append, const std::string& comment,
                               const std::vector<tagint>& atoms, double radius);

}  // namespace LAMMPS_NS
