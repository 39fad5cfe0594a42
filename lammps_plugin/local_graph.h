#pragma once

#include <cstdint>
#include <vector>

#include "race/graph.h"

namespace LAMMPS_NS {
class Atom;
class NeighList;
}  // namespace LAMMPS_NS

/// One rank's atoms and edges as a race::Graph, built from LAMMPS's full neighbour list. Owned rows
/// follow the list, ghost rows follow LAMMPS's ghosts. Atoms whose type is mapped to no element, or
/// that are excluded from all pairs, have no row. Buffers are kept, so a steady state allocates
/// nothing.
class LocalGraph {
 public:
  struct Options {
    const int* species;      ///< by LAMMPS type (from 1); -1: takes no part
    double r_max;            ///< in LAMMPS's units of length
    double length;           ///< 1 Angstrom in LAMMPS's units
    int excluded = 0;        ///< bits of groups that take no part at all
    bool all_edges = false;  ///< edges of the whole list, its skin too: they stay as long as it
    bool new_list = true;    ///< the list is not that of the last build()
  };

  /// Returns whether rows, species or the list are others than at the last build(). With
  /// `all_edges` the edges stay if not, and their vectors are as old as they until find_vectors().
  /// @throws race::Error when two atoms of new edges are at the same place.
  bool build(const LAMMPS_NS::NeighList& list, const LAMMPS_NS::Atom& atom, const Options& options);

  /// Edge vectors at the atoms' positions, where build() has left them old.
  /// @throws race::Error when two atoms are at the same place.
  void find_vectors(const LAMMPS_NS::Atom& atom);

  /// Positions of the rows, [n_total, 3] in LAMMPS's units of length, in a tensor of that shape.
  void copy_positions(const LAMMPS_NS::Atom& atom, at::Tensor& positions) const;

  /// Takes a graph made elsewhere: rows first, then edges, of tensors on any device.
  void adopt_rows(std::vector<int> atom_of_row, std::vector<int> row_of_atom);
  void adopt_edges(const race::Graph& graph);

  /// Views of the buffers: valid until the next build().
  const race::Graph& graph() const { return graph_; }

  const std::vector<int>& atom_of_row() const {
    return atom_of_row_;
  }  ///< [n_total] local index in LAMMPS
  const std::vector<int>& row_of_atom() const {
    return row_of_atom_;
  }  ///< [nlocal + nghost], -1: no row

  double memory_usage() const;  ///< bytes

 private:
  void number_rows(const LAMMPS_NS::NeighList& list, const LAMMPS_NS::Atom& atom,
                   const Options& options);
  [[noreturn]] static void refuse_same_place(const LAMMPS_NS::Atom& atom, int i, int j);
  void find_edges(const LAMMPS_NS::NeighList& list, const LAMMPS_NS::Atom& atom,
                  const Options& options);

  std::vector<int> atom_of_row_, row_of_atom_;
  std::vector<int> last_atom_of_row_;  ///< those of the last build()
  std::vector<int64_t> last_species_;
  std::vector<int64_t> species_, sender_, row_ptr_;
  std::vector<double> edge_vector_;
  bool old_vectors_ = false;
  double to_angstrom_ = 1;
  race::Graph graph_;
};
