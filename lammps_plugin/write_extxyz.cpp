#include "write_extxyz.h"

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <numeric>
#include <vector>

#include "atom.h"
#include "comm.h"
#include "domain.h"
#include "pair_race.h"
#include "update.h"

using namespace LAMMPS_NS;

namespace {

constexpr int n_columns = 8; // tag, type, x, y, z, fx, fy, fz

// Rows of all ranks on rank 0, in the order of their tags.
std::vector<double> gather(LAMMPS* lmp) {
  const Atom& atom = *lmp->atom;
  std::vector<double> mine;
  for (int i = 0; i < atom.nlocal; ++i) {
    const double *x = atom.x[i], *f = atom.f[i];
    mine.insert(mine.end(), {static_cast<double>(atom.tag[i]), static_cast<double>(atom.type[i]), x[0], x[1], x[2], f[0], f[1], f[2]});
  }
  int count = static_cast<int>(mine.size());
  std::vector<int> counts(lmp->comm->nprocs), starts(lmp->comm->nprocs, 0);
  MPI_Gather(&count, 1, MPI_INT, counts.data(), 1, MPI_INT, 0, lmp->world);
  std::partial_sum(counts.begin(), counts.end() - 1, starts.begin() + 1);
  std::vector<double> all(lmp->comm->me == 0 ? starts.back() + counts.back() : 0);
  MPI_Gatherv(mine.data(), count, MPI_DOUBLE, all.data(), counts.data(), starts.data(), MPI_DOUBLE, 0, lmp->world);
  return all;
}

void write_frame(FILE* file, const LAMMPS& lmp, const PairRace& pair, const std::vector<double>& all, std::string comment) {
  const Domain& box = *lmp.domain;
  const double length = pair.units().length, force = pair.units().force();
  std::replace(comment.begin(), comment.end(), '"', '\'');
  const auto n_atoms = all.size() / n_columns;
  fprintf(file, "%zu\nLattice=\"%.16g 0 0 %.16g %.16g 0 %.16g %.16g %.16g\" ", n_atoms, box.xprd / length, box.xy / length,
          box.yprd / length, box.xz / length, box.yz / length, box.zprd / length);
  fprintf(file, "Properties=species:S:1:pos:R:3:id:I:1:lammps_forces:R:3 pbc=\"%c %c %c\" step=%lld reason=\"%s\"\n",
          box.xperiodic ? 'T' : 'F', box.yperiodic ? 'T' : 'F', box.zperiodic ? 'T' : 'F', static_cast<long long>(lmp.update->ntimestep),
          comment.c_str());

  std::vector<std::size_t> order(n_atoms);
  std::iota(order.begin(), order.end(), 0);
  std::sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) { return all[a * n_columns] < all[b * n_columns]; });
  for (const std::size_t k : order) {
    const double* row = all.data() + k * n_columns;
    const std::string element = pair.element(static_cast<int>(row[1]));
    fprintf(file, "%s", element == "NULL" ? "X" : element.c_str());
    for (int a = 0; a < 3; ++a) fprintf(file, " %.16g", (row[2 + a] - box.boxlo[a]) / length);
    fprintf(file, " %lld", static_cast<long long>(row[0]));
    for (int a = 0; a < 3; ++a) fprintf(file, " %.16g", row[5 + a] / force);
    fprintf(file, "\n");
  }
}

} // namespace

std::string LAMMPS_NS::write_extxyz(LAMMPS* lmp, const PairRace& pair, const std::string& path, bool append, const std::string& comment) {
  const std::vector<double> all = gather(lmp);
  int failure = 0;
  if (lmp->comm->me == 0) {
    errno = 0;
    FILE* file = fopen(path.c_str(), append ? "a" : "w");
    if (file) {
      write_frame(file, *lmp, pair, all, comment);
      if (fclose(file) != 0) failure = errno;
    } else {
      failure = errno;
    }
  }
  MPI_Bcast(&failure, 1, MPI_INT, 0, lmp->world);
  return failure ? "cannot write " + path + " (" + strerror(failure) + ")" : "";
}
