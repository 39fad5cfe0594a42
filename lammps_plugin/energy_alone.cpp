#include "energy_alone.h"

#include "compute.h"
#include "fix.h"
#include "force.h"
#include "modify.h"
#include "update.h"

using namespace LAMMPS_NS;

namespace {

// They read compute pe after a call of their own, and no force. Another style that calls gets
// forces, whatever it wants.
constexpr const char* fixes[] = {"atom/swap", "charge/regulation", "gcmc", "mol/swap", "widom"};
constexpr const char* computes[] = {"fep", "fep/ta"};

}  // namespace

void EnergyAlone::init() {
  some_style_asks_ = false;
  for (const char* style : fixes) some_style_asks_ |= !modify->get_fix_by_style(style).empty();
  for (const char* style : computes)
    some_style_asks_ |= !modify->get_compute_by_style(style).empty();
  setup();
}

void EnergyAlone::setup() { step_ = -1; }

bool EnergyAlone::asked(int eflag, int vflag) {
  if (!some_style_asks_ || eflag != ENERGY_GLOBAL || vflag != 0) return false;
  const bigint step = update->ntimestep;
  if (update->eflag_global != step) step_ = step;
  return step_ == step || update->vflag_global == step;
}
