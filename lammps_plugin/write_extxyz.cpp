#include "write_extxyz.h"

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <functional>
#include <numeric>
#include <optional>
#include <utility>
#include <vector>

#include "atom.h"
#include "comm.h"
#include "domain.h"
#include "pair_race.h"
#include "update.h"

using namespace LAMMPS_NS;

namespace {

constexpr int n_columns = 8;  // tag, type, x, y, z, fx, fy, fz

// Collects all rows on rank 0, one rank after another. Messages have a limited length: MPI counts
// in int, which more than 268 million atoms would overflow.
std::vector<double> collect(std::vector<double> mine, LAMMPS* lmp) {
  constexpr int64_t chunk = int64_t{1} << 27;
  auto size = static_cast<bigint>(mine.size());
  const auto parts = [&](double* values, const auto& transfer) {
    for (int64_t at = 0; at < size; at += chunk)
      transfer(values + at, static_cast<int>(std::min(chunk, size - at)));
  };
  if (lmp->comm->me != 0) {
    MPI_Send(&size, 1, MPI_LMP_BIGINT, 0, 0, lmp->world);
    parts(mine.data(),
          [&](double* values, int n) { MPI_Send(values, n, MPI_DOUBLE, 0, 0, lmp->world); });
    return {};
  }
  for (int rank = 1; rank < lmp->comm->nprocs; ++rank) {
    MPI_Recv(&size, 1, MPI_LMP_BIGINT, rank, 0, lmp->world, MPI_STATUS_IGNORE);
    const std::size_t before = mine.size();
    mine.resize(before + size);
    parts(mine.data() + before, [&](double* values, int n) {
      MPI_Recv(values, n, MPI_DOUBLE, rank, 0, lmp->world, MPI_STATUS_IGNORE);
    });
  }
  return mine;
}

// Collects the rows of all ranks on rank 0, in the order of their tags.
std::vector<double> gather(LAMMPS* lmp) {
  const Atom& atom = *lmp->atom;
  std::vector<double> mine;
  for (int i = 0; i < atom.nlocal; ++i) {
    const double *x = atom.x[i], *f = atom.f[i];
    mine.insert(mine.end(), {static_cast<double>(atom.tag[i]), static_cast<double>(atom.type[i]),
                             x[0], x[1], x[2], f[0], f[1], f[2]});
  }
  const std::vector<double> all = collect(std::move(mine), lmp);

  std::vector<std::size_t> order(all.size() / n_columns);
  std::iota(order.begin(), order.end(), 0);
  std::sort(order.begin(), order.end(),
            [&](std::size_t a, std::size_t b) { return all[a * n_columns] < all[b * n_columns]; });
  std::vector<double> sorted;
  sorted.reserve(all.size());
  for (const std::size_t k : order)
    sorted.insert(sorted.end(), all.begin() + k * n_columns, all.begin() + (k + 1) * n_columns);
  return sorted;
}

// The content of a frame; lengths are in LAMMPS's units.
struct Frame {
  std::vector<double> rows;  ///< n_columns numbers per atom; positions relative to the cell's
                             ///< corner
  double cell[9];
  bool periodic[3];
  std::string more;             ///< addition to the comment line
  std::optional<int> weighted;  ///< so many first rows have weight 1 as labels, all others 0
};

Frame whole(const Domain& box, const std::vector<double>& all) {
  Frame frame{all,
              {box.xprd, 0, 0, box.xy, box.yprd, 0, box.xz, box.yz, box.zprd},
              {box.xperiodic != 0, box.yperiodic != 0, box.zperiodic != 0},
              "",
              std::nullopt};
  for (std::size_t k = 0; k < all.size(); k += n_columns)
    for (int a = 0; a < 3; ++a) frame.rows[k + 2 + a] -= box.boxlo[a];
  return frame;
}

// Cuts out the atoms of `box` within `radius` of row `center`, with each image that is. They are
// sorted by distance: the centre is row 0. Atoms whose surroundings within `cutoff` are cut have no
// weight as labels.
Frame cut_out(const Frame& box, std::size_t center, double radius, double cutoff) {
  const double edge = 2 * radius + cutoff;
  Frame frame{{},
              {edge, 0, 0, 0, edge, 0, 0, 0, edge},
              {false, false, false},
              fmt::format(" center=0 radius={:.16g}", radius),
              0};
  const double* h = box.cell;  // lower triangular
  const double volume = h[0] * h[4] * h[8];
  const double yx = h[3], zx = h[6], zy = h[7];
  const double height[3] = {volume / std::hypot(h[4] * h[8], yx * h[8], yx * zy - zx * h[4]),
                            volume / (h[0] * std::hypot(h[8], zy)), h[8]};
  const double* origin = box.rows.data() + center * n_columns + 2;
  std::vector<std::pair<double, std::vector<double>>> found;
  for (std::size_t k = 0; k < box.rows.size(); k += n_columns) {
    const double* row = box.rows.data() + k;
    const double d[3] = {row[2] - origin[0], row[3] - origin[1], row[4] - origin[2]};
    const double fz = d[2] / h[8], fy = (d[1] - fz * zy) / h[4],
                 fx = (d[0] - fy * yx - fz * zx) / h[0];
    const double fraction[3] = {fx, fy, fz};
    if (!(std::hypot(fx, fy, fz) < 1e6)) continue;  // lost, or without a finite position
    int low[3], high[3];
    for (int a = 0; a < 3; ++a) {
      low[a] = box.periodic[a] ? static_cast<int>(std::ceil(-radius / height[a] - fraction[a])) : 0;
      high[a] =
          box.periodic[a] ? static_cast<int>(std::floor(radius / height[a] - fraction[a])) : 0;
    }
    for (int x = low[0]; x <= high[0]; ++x)
      for (int y = low[1]; y <= high[1]; ++y)
        for (int z = low[2]; z <= high[2]; ++z) {
          const double at[3] = {d[0] + x * h[0] + y * yx + z * zx, d[1] + y * h[4] + z * zy,
                                d[2] + z * h[8]};
          const double r = std::hypot(at[0], at[1], at[2]);
          if (!(r <= radius)) continue;
          std::vector<double> copy(row, row + n_columns);
          for (int a = 0; a < 3; ++a) copy[2 + a] = at[a] + edge / 2;
          found.emplace_back(r, copy);
        }
  }
  std::stable_sort(found.begin(), found.end(),
                   [](const auto& a, const auto& b) { return a.first < b.first; });
  for (const auto& [r, row] : found) {
    frame.rows.insert(frame.rows.end(), row.begin(), row.end());
    if (r <= std::max(radius - cutoff, 0.0)) ++*frame.weighted;
  }
  return frame;
}

void write_frame(FILE* file, const Frame& frame, const PairRace& pair, bigint step,
                 std::string comment) {
  const double length = pair.units().length, force = pair.units().force();
  std::replace(comment.begin(), comment.end(), '"', '\'');
  fprintf(file, "%zu\nLattice=\"", frame.rows.size() / n_columns);
  for (int k = 0; k < 9; ++k) fprintf(file, "%s%.16g", k ? " " : "", frame.cell[k] / length);
  fprintf(
      file,
      "\" Properties=species:S:1:pos:R:3:id:I:1:lammps_forces:R:3%s pbc=\"%c %c %c\" step=%lld%s reason=\"%s\"\n",
      frame.weighted ? ":weight:R:1" : "", frame.periodic[0] ? 'T' : 'F',
      frame.periodic[1] ? 'T' : 'F', frame.periodic[2] ? 'T' : 'F', static_cast<long long>(step),
      frame.more.c_str(), comment.c_str());
  for (std::size_t k = 0; k < frame.rows.size(); k += n_columns) {
    const double* row = frame.rows.data() + k;
    const std::string element = pair.element(static_cast<int>(row[1]));
    fprintf(file, "%s", element == "NULL" ? "X" : element.c_str());
    for (int a = 0; a < 3; ++a) fprintf(file, " %.16g", row[2 + a] / length);
    fprintf(file, " %lld", static_cast<long long>(row[0]));
    for (int a = 0; a < 3; ++a) fprintf(file, " %.16g", row[5 + a] / force);
    if (frame.weighted)
      fprintf(file, " %d", static_cast<int>(k / n_columns) < *frame.weighted ? 1 : 0);
    fprintf(file, "\n");
  }
}

// Collective: rank 0 writes the frames that `frames` makes of all atoms.
std::string write(LAMMPS* lmp, const PairRace& pair, const std::string& path, bool append,
                  const std::string& comment,
                  const std::function<std::vector<Frame>(const Frame& box)>& frames) {
  const std::vector<double> all = gather(lmp);
  int failure = 0;
  if (lmp->comm->me == 0) {
    errno = 0;
    FILE* file = fopen(path.c_str(), append ? "a" : "w");
    if (file) {
      for (const Frame& frame : frames(whole(*lmp->domain, all)))
        write_frame(file, frame, pair, lmp->update->ntimestep, comment);
      if (fclose(file) != 0) failure = errno;
    } else {
      failure = errno;
    }
  }
  MPI_Bcast(&failure, 1, MPI_INT, 0, lmp->world);
  return failure ? "cannot write " + path + " (" + strerror(failure) + ")" : "";
}

}  // namespace

std::string LAMMPS_NS::write_extxyz(LAMMPS* lmp, const PairRace& pair, const std::string& path,
                                    bool append, const std::string& comment) {
  return write(lmp, pair, path, append, comment,
               [](const Frame& box) { return std::vector<Frame>{box}; });
}

std::string LAMMPS_NS::write_environments(LAMMPS* lmp, const PairRace& pair,
                                          const std::string& path, bool append,
                                          const std::string& comment,
                                          const std::vector<tagint>& atoms, double radius) {
  const double cutoff = pair.metadata()->r_max * pair.units().length;
  return write(lmp, pair, path, append, comment, [&](const Frame& box) {
    std::vector<Frame> frames;
    for (const tagint atom : atoms) {
      std::size_t row = 0;
      const std::size_t n_rows = box.rows.size() / n_columns;
      while (row < n_rows && box.rows[row * n_columns] != static_cast<double>(atom)) ++row;
      const double* x = box.rows.data() + row * n_columns + 2;
      const bool placed =
          row < n_rows && std::isfinite(x[0]) && std::isfinite(x[1]) && std::isfinite(x[2]);
      frames.push_back(placed ? cut_out(box, row, radius, cutoff) : box);
    }
    return frames;
  });
}
