#pragma once

#include <vector>

#include "../local_graph.h"
#include "kokkos_type.h"
#include "race/graph.h"

namespace LAMMPS_NS {
class AtomKokkos;
template <class DeviceType>
class NeighListKokkos;
}  // namespace LAMMPS_NS

/// One rank's atoms and edges as a race::Graph, built from Kokkos's full neighbour list in that
/// list's memory. Its rows are those of LocalGraph; its edges are in the order of the list. Buffers
/// only grow, so a steady state allocates nothing.
template <class DeviceType>
class KokkosGraph {
 public:
  template <typename T>
  using Array = Kokkos::View<T, Kokkos::LayoutRight, DeviceType>;

  /// Positions, types and masks must be current in DeviceType's memory; all work there is done when
  /// this returns. Returns, as LocalGraph does, whether rows, species or the list are others than
  /// at the last build(): with `all_edges`, edge vectors alone are new if not.
  /// @throws race::Error when two atoms are at the same place.
  bool build(const LAMMPS_NS::NeighListKokkos<DeviceType>& list, LAMMPS_NS::AtomKokkos& atom,
             const LocalGraph::Options& options);

  /// Tensors over the buffers, without a copy: valid until the next build().
  const race::Graph& graph() const { return graph_; }

  const Array<int*>& atom_of_row() const {
    return atom_of_row_;
  }  ///< [>= n_total] local index in LAMMPS
  const Array<int*>& row_of_atom() const {
    return row_of_atom_;
  }  ///< [>= nlocal + nghost], -1: no row

  std::vector<int> host_atom_of_row() const;
  std::vector<int> host_row_of_atom() const;

  double memory_usage() const;  ///< bytes

  // These are public because nvcc requires it of functions around its kernels.
  bool same_rows(const LAMMPS_NS::NeighListKokkos<DeviceType>& list, LAMMPS_NS::AtomKokkos& atom,
                 const LocalGraph::Options& options) const;
  void number_rows(const LAMMPS_NS::NeighListKokkos<DeviceType>& list, LAMMPS_NS::AtomKokkos& atom,
                   const LocalGraph::Options& options);
  void find_edges(const LAMMPS_NS::NeighListKokkos<DeviceType>& list, LAMMPS_NS::AtomKokkos& atom,
                  const LocalGraph::Options& options);
  void find_vectors(LAMMPS_NS::AtomKokkos& atom, const LocalGraph::Options& options);

 private:
  int n_atoms_ = 0;  ///< owned and ghosts
  Array<int*> atom_of_row_, row_of_atom_, species_of_type_;
  Array<int*> receiver_;  ///< of every edge, with `all_edges`
  Array<int64_t*> species_, sender_, row_ptr_;
  Array<double* [3]> edge_vector_;
  race::Graph graph_;
};
