#pragma once

#include "../lammps_halo.h"
#include "kokkos_graph.h"
#include "race/halo.h"

namespace LAMMPS_NS {
class Comm;
class Pair;
}  // namespace LAMMPS_NS

/// The exchange of librace through CommKokkos, whose callbacks the pair style hands on to pack and
/// unpack here: rows do not leave the device but for the wire (and not even then where MPI reads
/// it). The wire is LammpsHalo's: two float32 to a double.
template <class DeviceType>
class KokkosHalo final : public race::HaloExchange {
 public:
  KokkosHalo(LAMMPS_NS::Comm*& comm, LAMMPS_NS::Pair& pair, const KokkosGraph<DeviceType>& graph,
             HaloTotals& totals)
      : comm_(comm), pair_(pair), graph_(graph), totals_(totals) {}

  void forward(at::Tensor& rows) override { exchange(rows, true); }
  void reverse(at::Tensor& rows) override { exchange(rows, false); }

  // Lists of atoms in LAMMPS's order of arguments. Return the doubles written.
  int pack(int n, const DAT::tdual_int_1d& atoms, DAT::tdual_double_1d& buffer);
  int pack(int n, int first, DAT::tdual_double_1d& buffer);
  void unpack(int n, int first, const DAT::tdual_double_1d& buffer) const;
  void unpack_add(int n, const DAT::tdual_int_1d& atoms, const DAT::tdual_double_1d& buffer) const;

 private:
  void exchange(at::Tensor& rows, bool forward);
  int counted(int n_doubles);  ///< of a message

  LAMMPS_NS::Comm*& comm_;  ///< LAMMPS's pointer itself: `comm_style` puts another object there
  LAMMPS_NS::Pair& pair_;
  const KokkosGraph<DeviceType>& graph_;
  HaloTotals& totals_;
  at::Tensor rows_;  ///< in exchange: [n_total, width], contiguous, in DeviceType's memory
};
