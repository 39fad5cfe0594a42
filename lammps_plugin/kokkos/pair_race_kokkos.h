#pragma once

#include "../pair_race.h"
#include "kokkos_base.h"
#include "kokkos_graph.h"
#include "kokkos_halo.h"

namespace LAMMPS_NS {

class AtomKokkos;

/// `pair_style race/kk`: pair_style race on KOKKOS's data in DeviceType's memory. Neighbour list,
/// edges, features, halo and forces stay there. Per-atom energies, virials and uncertainties are
/// copied to host memory, where LAMMPS reads them, on the steps that request them.
template <class DeviceType>
class PairRaceKokkos final : public PairRace, public KokkosBase {
 public:
  explicit PairRaceKokkos(LAMMPS*);

  void init_style() override;
  void setup() override;
  void read_restart_settings(FILE*) override;
  double memory_usage() override;
  const LocalGraph& local() override;
  const std::vector<int>& atom_of_row() override {
    copy_rows();
    return local_.atom_of_row();
  }

  int pack_forward_comm_kokkos(int n, DAT::tdual_int_1d atoms, DAT::tdual_double_1d& buffer, int,
                               int*) override;
  void unpack_forward_comm_kokkos(int n, int first, DAT::tdual_double_1d& buffer) override;
  int pack_reverse_comm_kokkos(int n, int first, DAT::tdual_double_1d& buffer) override;
  void unpack_reverse_comm_kokkos(int n, DAT::tdual_int_1d atoms,
                                  DAT::tdual_double_1d& buffer) override;

 protected:
  std::string default_device() const override;
  bool on_device() const override { return true; }
  bool build_graph(const LocalGraph::Options& options) override;
  const race::Graph& built_graph() const override { return device_graph_.graph(); }
  at::Tensor moved_vectors(const race::Topology&) override {
    return device_graph_.graph().edge_vector;
  }
  race::HaloExchange& halo() override;
  void add_forces(const at::Tensor& forces) override;

 private:
  void copy_rows();
  bool exchanges_on_device() const;

  AtomKokkos* atomKK_;
  KokkosGraph<DeviceType> device_graph_;
  KokkosHalo<DeviceType> device_halo_;
  bool rows_copied_ = false, edges_copied_ = false;  ///< whether they are copied to local_
};

}  // namespace LAMMPS_NS
