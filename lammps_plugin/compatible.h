#pragma once

#include <string>

namespace LAMMPS_NS {
class LAMMPS;
}

/// Why code compiled against these headers must not touch the objects of this LAMMPS: one line that
/// says what it was built for, what this is and how to build it again. Empty: it may.
///
/// LAMMPS's classes have no stable layout, and its version does not tell: all updates of a stable
/// release report one number. So the layout itself is looked at, before any member is used: where
/// LAMMPS's C functions say that members are, what its constructors write where these headers have
/// a member, and which functions its virtual tables hold.
std::string incompatibility(LAMMPS_NS::LAMMPS* lmp);
