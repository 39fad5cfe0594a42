#pragma once

#include "../lammps_halo.h"
#include "kokkos_graph.h"
#include "race/halo.h"

namespace LAMMPS_NS {
class Comm;
class Pair;
}  // namespace LAMMPS_NS

/// The exchange of librace through CommKokkos; the pair style forwards its callbacks to pack and
/// unpack here. Features leave the device only for messages, and not even then if MPI reads device
/// memory. Messages have LammpsHalo's format: two float32 in a double.
template <class DeviceType>
class KokkosHalo final : public race::HaloExchange {
 public:
  KokkosHalo(LAMMPS_NS::Comm*& comm, LAMMPS_NS::Pair& pair, const KokkosGraph<DeviceType>& graph,
             HaloTotals& totals)
      : comm_(comm), pair_(pair), graph_(graph), totals_(totals) {}

  void forward(at::Tensor& rows) override { exchange(rows, true); }
  void reverse(at::Tensor& rows) override { exchange(rows, false); }

  // Atoms are given in LAMMPS's order of arguments. pack() returns the number of doubles written.
  int pack(int n, const DAT::tdual_int_1d& atoms, DAT::tdual_double_1d& buffer);
  int pack(int n, int first, DAT::tdual_double_1d& buffer);
  void unpack(int n, int first, const DAT::tdual_double_1d& buffer) const;
  void unpack_add(int n, const DAT::tdual_int_1d& atoms, const DAT::tdual_double_1d& buffer) const;

 private:
  void exchange(at::Tensor& rows, bool forward);
  int counted(int n_doubles);  ///< counts a message's doubles, and returns them

  LAMMPS_NS::Comm*& comm_;  ///< LAMMPS's pointer itself: `comm_style` puts another object there
  LAMMPS_NS::Pair& pair_;
  const KokkosGraph<DeviceType>& graph_;
  HaloTotals& totals_;
  at::Tensor rows_;  ///< the exchanged rows: [n_total, width], contiguous, in DeviceType's memory
};
