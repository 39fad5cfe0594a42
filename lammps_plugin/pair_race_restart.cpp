// pair_style race in restart files: what its commands said, and the sha256 of the model. The model
// itself stays in its own file.
#include <cstdint>
#include <cstdio>

#include "atom.h"
#include "comm.h"
#include "error.h"
#include "pair_race.h"

using namespace LAMMPS_NS;

namespace {

constexpr int32_t record_version = 3;

void write(FILE* file, int32_t number) { fwrite(&number, sizeof number, 1, file); }

void write(FILE* file, const std::string& text) {
  write(file, static_cast<int32_t>(text.size()));
  fwrite(text.data(), 1, text.size(), file);
}

// Rank 0 reads, and every rank gets it. Only rank 0 has the file.
struct Reader {
  FILE* file;
  MPI_Comm world;
  int me;
  Error* error;

  void bytes(void* to, int size) const {
    if (me == 0) utils::sfread(FLERR, to, 1, size, file, nullptr, error);
    MPI_Bcast(to, size, MPI_CHAR, 0, world);
  }
  int32_t number() const {
    int32_t value;
    bytes(&value, sizeof value);
    return value;
  }
  std::string text() const {
    const int32_t size = number();
    if (size < 0 || size > 65536)
      error->all(FLERR, "pair_style race: the restart file is damaged, or of another version");
    std::string value(size, ' ');
    if (size > 0) bytes(value.data(), size);
    return value;
  }
};

}  // namespace

void PairRace::write_restart_settings(FILE* file) {
  write(file, record_version);
  write(file, file_);
  write(file, model_ ? model_->sha256() : restart_sha256_);
  write(file, device_);
  write(file, dtype_ ? std::string(*dtype_ == at::kFloat ? "float32" : "float64") : std::string());
  write(file, uq_every_);
  write(file, fmt::format("{}", memory_cap_));
  write(file, static_cast<int32_t>(zbl_));
}

void PairRace::read_restart_settings(FILE* file) {
  const Reader read{file, world, comm->me, error};
  if (read.number() != record_version)
    error->all(FLERR, "pair_style race: the restart file is of another version of the plugin");
  file_ = read.text();
  restart_sha256_ = read.text();
  device_ = read.text();
  const std::string dtype = read.text();
  dtype_.reset();
  if (!dtype.empty()) dtype_ = dtype == "float32" ? at::kFloat : at::kDouble;
  uq_every_ = read.number();
  memory_cap_ = utils::numeric(FLERR, read.text(), false, lmp);
  zbl_ = read.number() != 0;
}

void PairRace::write_restart(FILE* file) {
  write_restart_settings(file);
  for (int type = 1; type <= atom->ntypes; ++type)
    write(file, elements_.empty() ? std::string("NULL") : elements_[type]);
}

// The model is read when it is first needed: until then pair_style may still name another file.
void PairRace::read_restart(FILE* file) {
  read_restart_settings(file);
  const Reader read{file, world, comm->me, error};
  elements_.assign(1, "");
  for (int type = 1; type <= atom->ntypes; ++type) elements_.push_back(read.text());
  set_flags();
}

void PairRace::refuse_other_than_restart() {
  if (restart_sha256_.empty() || model_->sha256() == restart_sha256_) return;
  error->all(
      FLERR,
      "pair_style race: model {}: expected sha256 {}, with which the restart file was written, got {}; put that model back, or "
      "give pair_style race and pair_coeff again to go on with this one",
      file_, restart_sha256_, model_->sha256());
}
