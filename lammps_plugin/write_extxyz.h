#pragma once

#include <string>
#include <vector>

#include "lmptype.h"

namespace LAMMPS_NS {

class LAMMPS;
class PairRace;

/// Collective: writes the whole configuration as one frame of extended xyz, in Angstrom and eV, for
/// `ase.io.read`. The frame has positions relative to the box's lower corner, id, and
/// `lammps_forces` (not `forces`: they are no label to train on). Types without an element are X.
/// @param append add to the file, else begin it anew. @param comment the frame's `reason`.
/// @return the error of the file, the same in every rank; empty if there is none.
std::string write_extxyz(LAMMPS* lmp, const PairRace& pair, const std::string& path, bool append,
                         const std::string& comment);

/// Collective: writes a frame for each of `atoms` (IDs). It has the atoms and images within
/// `radius` (LAMMPS's units) of that atom, in the middle of a cube of 2 radius + cutoff. The cube
/// is not periodic: the surface is left bare. The frame's `center` is the row of that atom. An ID
/// of 0, or an atom whose position is not finite, gives the whole configuration instead. Other
/// details are those of write_extxyz().
std::string write_environments(LAMMPS* lmp, const PairRace& pair, const std::string& path,
                               bool append, const std::string& comment,
                               const std::vector<tagint>& atoms, double radius);

}  // namespace LAMMPS_NS
