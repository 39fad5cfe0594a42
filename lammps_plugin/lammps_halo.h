#pragma once

#include <unordered_map>
#include <vector>

#include "race/graph.h"
#include "race/halo.h"

namespace LAMMPS_NS {
class Comm;
class Pair;
}  // namespace LAMMPS_NS

/// Totals of one rank's exchanges since the start.
struct HaloTotals {
  double bytes = 0;    ///< bytes packed for other ranks and for periodic images of this rank's own
                       ///< atoms
  double seconds = 0;  ///< time of packing, messages and waiting for later ranks; on a GPU without
                       ///< KOKKOS for its kernels too
};

/// The exchange of librace through LAMMPS's own pattern, brick or tiled: Comm::forward_comm(pair)
/// and reverse_comm(pair). The pair style forwards their callbacks to pack and unpack here.
/// Messages copy a row bit for bit: two float32 in a double.
class LammpsHalo final : public race::HaloExchange {
 public:
  /// @param comm LAMMPS's pointer itself: `comm_style` puts another object there.
  /// @param row_of_atom row of each local and ghost atom, -1 for none: such atoms send and receive
  /// zeros.
  LammpsHalo(LAMMPS_NS::Comm*& comm, LAMMPS_NS::Pair& pair, const std::vector<int>& row_of_atom,
             HaloTotals& totals)
      : comm_(comm), pair_(pair), row_of_atom_(row_of_atom), totals_(totals) {}

  /// Until the next call, messages carry only those rows that an edge reads, here or on a rank that
  /// receives them from here: LAMMPS's ghosts reach further than the cutoff by the skin. Other
  /// ghost rows become 0. Without a call, messages carry all rows. Collective.
  void find_readers(const race::Graph& graph);

  void forward(at::Tensor& rows) override;
  void reverse(at::Tensor& rows) override;

  int pack_forward(int n, const int* atoms, double* buffer);
  void unpack_forward(int n, int first, const double* buffer);
  int pack_reverse(int n, int first, double* buffer);
  void unpack_reverse(int n, const int* atoms, const double* buffer);

  /// Doubles in a message for a row of `width` scalars of `dtype`.
  static int wire_doubles(int64_t width, at::ScalarType dtype);

 private:
  void exchange(at::Tensor& rows, bool forward);
  void put(int atom, double* buffer) const;
  bool is_read(int row) const { return !knows_readers_ || (row >= 0 && n_readers_[row] > 0); }
  int counted(int64_t n_doubles);  ///< counts a message's doubles, and returns them

  LAMMPS_NS::Comm*& comm_;
  LAMMPS_NS::Pair& pair_;
  const std::vector<int>& row_of_atom_;
  HaloTotals& totals_;
  at::Tensor host_;  ///< the rows in exchange: [n_total, width], contiguous, in host memory
  char* data_ = nullptr;
  int64_t width_ = 0;  ///< scalars per row
  int64_t row_bytes_ = 0;
  int doubles_ = 0;

  bool knows_readers_ = false, finds_readers_ = false;
  std::vector<double> n_readers_;  ///< of each row, on this rank and beyond
  /// Of each list of atoms that LAMMPS sends: which of them their receiver reads. LAMMPS keeps a
  /// list in its place until it makes new ghosts.
  std::unordered_map<const int*, std::vector<char>> read_by_receiver_;
};
