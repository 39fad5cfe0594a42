// pair_style race in restart files: the settings of its commands, and the sha256 of the model. The
// model itself stays in its own file.
#include "atom.h"
#include "error.h"
#include "pair_race.h"
#include "restart_record.h"

using namespace LAMMPS_NS;

void PairRace::write_restart_settings(FILE* file) {
  const RestartWriter restart(file);
  restart.put(PairSettings::record_version);
  restart.put(model_ ? model_->sha256() : restart_sha256_);
  settings_.write(restart);
}

void PairRace::read_restart_settings(FILE* file) {
  const RestartReader restart(file, world, error);
  if (restart.number() != PairSettings::record_version)
    error->all(FLERR, "pair_style race: the restart file is of another version of the plugin");
  restart_sha256_ = restart.text();
  settings_.read(restart, lmp);
}

void PairRace::write_restart(FILE* file) {
  write_restart_settings(file);
  const RestartWriter restart(file);
  for (int type = 1; type <= atom->ntypes; ++type)
    restart.put(elements_.empty() ? std::string("NULL") : elements_[type]);
}

// The model is read at its first use: before that, pair_style may still name another file.
void PairRace::read_restart(FILE* file) {
  read_restart_settings(file);
  const RestartReader restart(file, world, error);
  elements_.assign(1, "");
  for (int type = 1; type <= atom->ntypes; ++type) elements_.push_back(restart.text());
  set_flags();
}
