#include "asked_quantities.h"

#include "error.h"
#include "pair_race.h"
#include "race/error.h"

using namespace LAMMPS_NS;

std::vector<AskedQuantity> LAMMPS_NS::read_quantities(LAMMPS* lmp, const std::string& where,
                                                      bool per_atom, int narg, char** arg) {
  std::vector<AskedQuantity> asked;
  for (int k = 0; k < narg; ++k) {
    const race::Quantity* quantity = race::find_quantity(arg[k], per_atom);
    if (!quantity)
      lmp->error->all(FLERR, "{}: expected {}, got {}", where, race::quantity_names(per_atom),
                      arg[k]);
    asked.push_back({quantity});
    if (quantity->interval_of.empty()) continue;
    if (++k >= narg)
      utils::missing_cmd_args(FLERR, fmt::format("{} {}", where, quantity->name), lmp->error);
    const double probability = utils::numeric(FLERR, arg[k], false, lmp);
    if (!(probability > 0 && probability < 1))
      lmp->error->all(FLERR, "{} {}: expected a probability between 0 and 1, got {}", where,
                      quantity->name, arg[k]);
    asked.back().probability = probability;
  }
  return asked;
}

void LAMMPS_NS::resolve_quantities(LAMMPS* lmp, const std::string& where, const PairRace& pair,
                                   std::vector<AskedQuantity>& asked) {
  const race::Metadata& metadata = *pair.metadata();
  for (AskedQuantity& each : asked) {
    pair.require(where, *each.quantity);
    if (each.quantity->interval_of.empty()) continue;
    try {
      each.factor =
          metadata.interval_factor(std::string(each.quantity->interval_of), each.probability);
    } catch (const race::Error& wrong) {
      lmp->error->all(FLERR, "{} {}: model {}: {}", where, each.quantity->name, pair.file(),
                      wrong.what());
    }
  }
}
