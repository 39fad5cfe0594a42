// pair_style race: how much memory an evaluation takes, known before it begins; and what is said
// when there is not enough.
#include <algorithm>
#include <cmath>

#include "comm.h"
#include "error.h"
#include "pair_race.h"
#include "race/error.h"
#include "update.h"

using namespace LAMMPS_NS;

namespace {

constexpr double MiB = 1048576;

}  // namespace

// Collective, once for a model: of all ranks' atoms, ghosts and edges, so that every rank comes to
// the same function of them.
void PairRace::estimate_memory() {
  const race::Graph& graph = this->graph();
  const auto n_edges = static_cast<double>(graph.sender.size(0));
  double mine[3] = {static_cast<double>(graph.n_owned),
                    static_cast<double>(graph.n_total - graph.n_owned), n_edges},
         all[3];
  MPI_Allreduce(mine, all, 3, MPI_DOUBLE, MPI_SUM, world);
  const double n_atoms = std::max(all[0], 1.0);
  memory_.emplace(*model_, all[1] / n_atoms, all[2] / n_atoms, race::Request{.atom_virial = true});
  const race::Request uncertain{
      .members = model_->metadata().n_members > 1, .uncertainty = true, .atom_virial = true};
  memory_uncertain_.emplace(*model_, all[1] / n_atoms, all[2] / n_atoms, uncertain);

  double bytes[3] = {memory_->bytes(graph, 1), memory_uncertain_->bytes(graph, 1),
                     local_.memory_usage()},
         most[3];
  MPI_Allreduce(bytes, most, 3, MPI_DOUBLE, MPI_MAX, world);
  if (comm->me != 0) return;
  std::string cap;
  if (memory_cap_ > 0)
    cap = fmt::format(", at most {:.6g} MiB by taking atoms in parts", memory_cap_ / MiB);
  utils::logmesg(
      lmp,
      "RACE memory per rank: {:.1f} MiB, {:.1f} MiB on steps with uncertainties{}; neighbors {:.1f} MiB\n",
      most[0] / MiB, most[1] / MiB, cap, most[2] / MiB);
}

// In how many parts this rank's atoms are taken. Ranks need not agree.
int64_t PairRace::parts(const race::Request& request) const {
  if (memory_cap_ == 0) return 1;
  const race::MemoryEstimate& estimate = request.uncertainty ? *memory_uncertain_ : *memory_;
  const race::Graph& graph = this->graph();
  const int64_t n_parts = estimate.parts(graph, memory_cap_);
  if (n_parts == 0)
    throw race::Error(fmt::format(
        "pair_style race memory: expected at least {:.0f} MiB for the {} atoms and {} ghosts of rank {}, got {:.6g}; "
        "use more ranks, dtype float32, or a larger value",
        std::ceil(estimate.bytes(graph, std::max<int64_t>(graph.n_owned, 2)) / MiB), graph.n_owned,
        graph.n_total - graph.n_owned, comm->me, memory_cap_ / MiB));
  return n_parts;
}

std::string PairRace::out_of_memory(const std::string& what) const {
  std::string need;
  if (memory_)
    need =
        fmt::format("; in one part the model takes about {:.0f} MiB",
                    (uncertainty_wanted() ? *memory_uncertain_ : *memory_).bytes(graph(), 1) / MiB);
  return fmt::format(
      "pair_style race: out of memory at step {} on rank {}, which has {} atoms, {} ghosts and {} edges{}; use more ranks, "
      "dtype float32, or the keyword memory ({})",
      update->ntimestep, comm->me, graph().n_owned, graph().n_total - graph().n_owned,
      graph().sender.defined() ? graph().sender.size(0) : 0, need, what);
}
