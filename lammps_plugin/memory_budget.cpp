#include "memory_budget.h"

#include <algorithm>
#include <cmath>

#include "comm.h"
#include "race/error.h"
#include "update.h"

using namespace LAMMPS_NS;

namespace {

constexpr double MiB = 1048576;

}  // namespace

void MemoryBudget::estimate(const race::Model& plain, const race::Model& uncertain,
                            const race::Graph& graph, double neighbor_bytes, double cap) {
  const auto n_edges = static_cast<double>(graph.sender.size(0));
  double mine[3] = {static_cast<double>(graph.n_owned),
                    static_cast<double>(graph.n_total - graph.n_owned), n_edges},
         all[3];
  MPI_Allreduce(mine, all, 3, MPI_DOUBLE, MPI_SUM, world);
  const double n_atoms = std::max(all[0], 1.0);
  const bool in_parts = cap > 0;
  plain_.emplace(plain, all[1] / n_atoms, all[2] / n_atoms, race::Request{.atom_virial = true},
                 in_parts);
  uncertain_.emplace(
      uncertain, all[1] / n_atoms, all[2] / n_atoms,
      race::Request{
          .members = uncertain.metadata().n_members > 1, .uncertainty = true, .atom_virial = true},
      in_parts);

  double bytes[3] = {plain_->bytes(graph, 1), uncertain_->bytes(graph, 1), neighbor_bytes}, most[3];
  MPI_Allreduce(bytes, most, 3, MPI_DOUBLE, MPI_MAX, world);
  if (comm->me != 0) return;
  std::string limit;
  if (cap > 0) limit = fmt::format(", at most {:.6g} MiB by taking atoms in parts", cap / MiB);
  utils::logmesg(lmp,
                 "RACE memory per rank: {:.1f} MiB, {:.1f} MiB on steps with uncertainties{}; "
                 "neighbors {:.1f} MiB\n",
                 most[0] / MiB, most[1] / MiB, limit, most[2] / MiB);
}

int64_t MemoryBudget::parts(const race::Graph& graph, bool uncertainty, double cap) const {
  if (cap == 0) return 1;
  const race::MemoryEstimate& estimate = uncertainty ? *uncertain_ : *plain_;
  const int64_t n_parts = estimate.parts(graph, cap);
  if (n_parts == 0)
    throw race::Error(fmt::format(
        "pair_style race memory: expected at least {:.0f} MiB for the {} atoms and {} ghosts of rank {}, got {:.6g}; "
        "use more ranks, dtype float32, or a larger value",
        std::ceil(estimate.bytes(graph, std::max<int64_t>(graph.n_owned, 2)) / MiB), graph.n_owned,
        graph.n_total - graph.n_owned, comm->me, cap / MiB));
  return n_parts;
}

std::string MemoryBudget::out_of_memory(const race::Graph& graph, bool uncertainty,
                                        const std::string& what) const {
  std::string need;
  if (estimated())
    need = fmt::format("; in one part the model takes about {:.0f} MiB",
                       (uncertainty ? *uncertain_ : *plain_).bytes(graph, 1) / MiB);
  return fmt::format(
      "pair_style race: out of memory at step {} on rank {}, which has {} atoms, {} ghosts and {} edges{}; use more ranks, "
      "dtype float32, or the keyword memory ({})",
      update->ntimestep, comm->me, graph.n_owned, graph.n_total - graph.n_owned,
      graph.sender.defined() ? graph.sender.size(0) : 0, need, what);
}
