#pragma once

#include "lmptype.h"
#include "pointers.h"

namespace LAMMPS_NS {

/// Whether a call of Pair::compute() is for the energy alone, as those of fix atom/swap and gcmc:
/// then no forces need be evaluated. LAMMPS does not say so. But an integrator notes in `update` on
/// which step it wants energies and virials, and a call that wants something else than was noted
/// is not the integrator's. Where the two cannot be told apart, it is taken for the integrator's.
class EnergyAlone : protected Pointers {
 public:
  using Pointers::Pointers;

  void init();   ///< Before a run: looks whether there is a style that asks for energies alone.
  void setup();  ///< Before the first forces of a run: the integrator notes anew.
  bool asked(int eflag, int vflag);

 private:
  bool some_style_asks_ = false;
  bigint step_ = -1;  ///< on which the integrator wants no energy, as it had noted before such a
                      ///< style wrote there too
};

}  // namespace LAMMPS_NS
