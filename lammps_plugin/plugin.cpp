// The entry point of `plugin load raceplugin.so`: registers the styles, and refuses a LAMMPS that
// it was not compiled for.
#include <dlfcn.h>

#include "compatible.h"
#include "compute_race.h"
#include "compute_race_atom.h"
#include "compute_race_heat_flux.h"
#include "error.h"
#include "fix_race_bias.h"
#include "fix_race_guard.h"
#include "fix_race_hold.h"
#include "force.h"
#include "lammpsplugin.h"
#include "library.h"
#include "modify.h"
#include "pair_race.h"
#ifdef RACE_KOKKOS
#include "kokkos/styles.h"
#endif

using namespace LAMMPS_NS;

namespace {

Pair* create_pair(LAMMPS* lmp) { return new PairRace(lmp); }
Compute* create_compute(LAMMPS* lmp, int narg, char** arg) {
  return new ComputeRace(lmp, narg, arg);
}
Compute* create_compute_atom(LAMMPS* lmp, int narg, char** arg) {
  return new ComputeRaceAtom(lmp, narg, arg);
}
Compute* create_compute_heat_flux(LAMMPS* lmp, int narg, char** arg) {
  return new ComputeRaceHeatFlux(lmp, narg, arg);
}

void refuse_another_lammps(LAMMPS* lmp) {
  const std::string difference = incompatibility(lmp);
  if (!difference.empty()) lmp->error->all(FLERR, difference);
#ifdef RACE_KOKKOS
  if (!lammps_config_accelerator("KOKKOS", "precision", "double"))
    lmp->error->all(
        FLERR,
        "raceplugin.so: expected a KOKKOS package in double precision, got another; build LAMMPS with KOKKOS_PREC=double");
#endif
}

Fix* create_bias(LAMMPS* lmp, int narg, char** arg) { return new FixRaceBias(lmp, narg, arg); }
Fix* create_guard(LAMMPS* lmp, int narg, char** arg) { return new FixRaceGuard(lmp, narg, arg); }
Fix* create_hold(LAMMPS* lmp, int narg, char** arg) { return new FixRaceHold(lmp, narg, arg); }

// LAMMPS counts plugins by process, but looks up styles by instance. A second LAMMPS beside a
// living first is told that the plugin is loaded, and does not find its styles. So they are entered
// here as well.
void enter_styles(LAMMPS& lmp) {
  (*lmp.force->pair_map)["race"] = &create_pair;
#ifdef RACE_KOKKOS
  for (const KokkosStyle& style : kokkos_styles) (*lmp.force->pair_map)[style.name] = style.create;
#endif
  (*lmp.modify->compute_map)["race"] = &create_compute;
  (*lmp.modify->compute_map)["race/atom"] = &create_compute_atom;
  (*lmp.modify->compute_map)["race/heat/flux"] = &create_compute_heat_flux;
  (*lmp.modify->fix_map)["race/bias"] = &create_bias;
  (*lmp.modify->fix_map)["race/guard"] = &create_guard;
  (*lmp.modify->fix_map)["RACE/HOLD"] = &create_hold;
}

// A LAMMPS that is closed also closes the library, while another may still be running its code.
void stay_loaded() {
  Dl_info here;
  if (dladdr(reinterpret_cast<void*>(&create_pair), &here) && here.dli_fname)
    dlopen(here.dli_fname, RTLD_NOW | RTLD_NODELETE);
}

}  // namespace

void lammpsplugin_init(void* lammps, void* handle, void* regfunc) {
  refuse_another_lammps(static_cast<LAMMPS*>(lammps));

  const auto add = [&](const char* style, const char* name, const char* info, void* creator) {
    lammpsplugin_t plugin{RACE_LAMMPS_DATE,       style,   name,  info,
                          "the RACE maintainers", creator, handle};
    reinterpret_cast<lammpsplugin_regfunc>(regfunc)(&plugin, lammps);
  };
  add("pair", "race", "pair style race", reinterpret_cast<void*>(&create_pair));
#ifdef RACE_KOKKOS
  for (const KokkosStyle& style : kokkos_styles)
    add("pair", style.name, "pair style race for KOKKOS", reinterpret_cast<void*>(style.create));
#endif
  add("compute", "race", "compute race", reinterpret_cast<void*>(&create_compute));
  add("fix", "race/bias", "fix race/bias", reinterpret_cast<void*>(&create_bias));
  add("fix", "race/guard", "fix race/guard", reinterpret_cast<void*>(&create_guard));
  add("fix", "RACE/HOLD", "internal to pair_style race", reinterpret_cast<void*>(&create_hold));
  add("compute", "race/atom", "compute race/atom", reinterpret_cast<void*>(&create_compute_atom));
  add("compute", "race/heat/flux", "compute race/heat/flux",
      reinterpret_cast<void*>(&create_compute_heat_flux));
  enter_styles(*static_cast<LAMMPS*>(lammps));
  stay_loaded();
}
