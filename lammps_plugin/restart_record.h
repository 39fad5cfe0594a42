#pragma once

#include <mpi.h>

#include <cstdint>
#include <cstdio>
#include <string>

#include "error.h"
#include "utils.h"

namespace LAMMPS_NS {

/// Numbers and texts in a restart file. Only rank 0 has the file.
class RestartWriter {
 public:
  explicit RestartWriter(FILE* file) : file_(file) {}
  void put(int32_t number) const { fwrite(&number, sizeof number, 1, file_); }
  void put(const std::string& text) const {
    put(static_cast<int32_t>(text.size()));
    fwrite(text.data(), 1, text.size(), file_);
  }

 private:
  FILE* file_;
};

/// Collective: rank 0 reads, and every rank gets the values.
class RestartReader {
 public:
  RestartReader(FILE* file, MPI_Comm world, Error* error)
      : file_(file), world_(world), error_(error) {
    MPI_Comm_rank(world, &me_);
  }
  int32_t number() const {
    int32_t value;
    bytes(&value, sizeof value);
    return value;
  }
  std::string text() const {
    const int32_t size = number();
    if (size < 0 || size > 65536)
      error_->all(FLERR, "pair_style race: the restart file is damaged, or of another version");
    std::string value(size, ' ');
    if (size > 0) bytes(value.data(), size);
    return value;
  }

 private:
  void bytes(void* to, int size) const {
    if (me_ == 0) utils::sfread(FLERR, to, 1, size, file_, nullptr, error_);
    MPI_Bcast(to, size, MPI_CHAR, 0, world_);
  }

  FILE* file_;
  MPI_Comm world_;
  Error* error_;
  int me_;
};

}  // namespace LAMMPS_NS
