#pragma once

#include <string>

namespace LAMMPS_NS {
class LAMMPS;
}

/// The reason why code compiled against these headers must not touch the objects of this LAMMPS. It
/// is one line with the LAMMPS it was built for, this one, and the way to rebuild it; empty if it
/// may.
///
/// LAMMPS's classes have no stable layout, and its version does not identify one: all updates of a
/// stable release report one number. So the layout itself is checked before any member is used.
/// Three things are compared with these headers. LAMMPS's C functions give addresses of members,
/// its constructors write members' values, and its virtual tables hold functions.
std::string incompatibility(LAMMPS_NS::LAMMPS* lmp);
