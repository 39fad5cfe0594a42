#include "local_graph.h"

#include <limits>
#include <string>
#include <utility>

#include "atom.h"
#include "neigh_list.h"
#include "race/error.h"

using namespace LAMMPS_NS;

namespace {

template <typename T>
double bytes(const std::vector<T>& v) {
  return static_cast<double>(v.capacity()) * sizeof(T);
}

}  // namespace

void LocalGraph::number_rows(const NeighList& list, const Atom& atom, const Options& options) {
  const int n_atoms = atom.nlocal + atom.nghost;
  row_of_atom_.assign(n_atoms, -1);
  atom_of_row_.clear();
  species_.clear();
  const auto add = [&](int i) {
    const int species = options.species[atom.type[i]];
    if (species < 0 || (atom.mask[i] & options.excluded)) return;
    row_of_atom_[i] = static_cast<int>(atom_of_row_.size());
    atom_of_row_.push_back(i);
    species_.push_back(species);
  };
  for (int k = 0; k < list.inum; ++k) add(list.ilist[k]);
  graph_.n_owned = static_cast<int64_t>(atom_of_row_.size());
  for (int i = atom.nlocal; i < n_atoms; ++i) add(i);
  graph_.n_total = static_cast<int64_t>(atom_of_row_.size());
}

// Receivers are owned atoms, senders their neighbours: edge_vector = r_sender - r_receiver. Ghosts
// stand at their images already.
void LocalGraph::find_edges(const NeighList& list, const Atom& atom, const Options& options) {
  const double r_max_squared =
      options.all_edges ? std::numeric_limits<double>::infinity() : options.r_max * options.r_max;
  sender_.clear();
  edge_vector_.clear();
  row_ptr_.assign(1, 0);
  for (int64_t row = 0; row < graph_.n_owned; ++row) {
    const int i = atom_of_row_[row];
    const double* x = atom.x[i];
    const int* neighbors = list.firstneigh[i];
    for (int k = 0; k < list.numneigh[i]; ++k) {
      const int j = neighbors[k] & NEIGHMASK;
      if (row_of_atom_[j] < 0) continue;
      const double d[3] = {atom.x[j][0] - x[0], atom.x[j][1] - x[1], atom.x[j][2] - x[2]};
      const double r_squared = d[0] * d[0] + d[1] * d[1] + d[2] * d[2];
      if (r_squared >= r_max_squared) continue;  // NaN passes, and is found in the energy
      if (r_squared == 0) refuse_same_place(atom, i, j);
      sender_.push_back(row_of_atom_[j]);
      for (const double component : d) edge_vector_.push_back(component * to_angstrom_);
    }
    row_ptr_.push_back(static_cast<int64_t>(sender_.size()));
  }
}

void LocalGraph::find_vectors(const Atom& atom) {
  if (!old_vectors_) return;
  double* vector = edge_vector_.data();
  for (int64_t row = 0; row < graph_.n_owned; ++row) {
    const int i = atom_of_row_[row];
    for (int64_t e = row_ptr_[row]; e < row_ptr_[row + 1]; ++e, vector += 3) {
      const int j = atom_of_row_[sender_[e]];
      bool apart = false;
      for (int a = 0; a < 3; ++a) {
        vector[a] = (atom.x[j][a] - atom.x[i][a]) * to_angstrom_;
        apart = apart || vector[a] != 0;
      }
      if (!apart) refuse_same_place(atom, i, j);
    }
  }
  old_vectors_ = false;
}

void LocalGraph::copy_positions(const Atom& atom, at::Tensor& positions) const {
  auto* to = positions.mutable_data_ptr<double>();
  for (const int i : atom_of_row_)
    for (int a = 0; a < 3; ++a) *to++ = atom.x[i][a];
}

void LocalGraph::refuse_same_place(const Atom& atom, int i, int j) {
  throw race::Error("pair_style race: atoms " + std::to_string(atom.tag[i]) + " and " +
                    std::to_string(atom.tag[j]) +
                    " are at the same place; expected a distance above 0");
}

// Types and groups may change without a new list (fix atom/swap): rows are numbered at every step.
bool LocalGraph::build(const NeighList& list, const Atom& atom, const Options& options) {
  last_atom_of_row_.swap(atom_of_row_);
  last_species_.swap(species_);
  number_rows(list, atom, options);
  const bool changed =
      options.new_list || atom_of_row_ != last_atom_of_row_ || species_ != last_species_;
  to_angstrom_ = 1 / options.length;
  old_vectors_ = options.all_edges && !changed;
  if (!old_vectors_) find_edges(list, atom, options);
  const auto n_edges = static_cast<int64_t>(sender_.size());
  graph_.species = at::from_blob(species_.data(), {graph_.n_total}, at::kLong);
  graph_.sender = at::from_blob(sender_.data(), {n_edges}, at::kLong);
  graph_.row_ptr = at::from_blob(row_ptr_.data(), {graph_.n_owned + 1}, at::kLong);
  graph_.edge_vector = at::from_blob(edge_vector_.data(), {n_edges, 3}, at::kDouble);
  return changed;
}

void LocalGraph::adopt_rows(std::vector<int> atom_of_row, std::vector<int> row_of_atom) {
  atom_of_row_ = std::move(atom_of_row);
  row_of_atom_ = std::move(row_of_atom);
}

void LocalGraph::adopt_edges(const race::Graph& graph) {
  graph_ = graph;
  for (at::Tensor* tensor : {&graph_.species, &graph_.sender, &graph_.row_ptr, &graph_.edge_vector})
    *tensor = tensor->cpu();
}

double LocalGraph::memory_usage() const {
  return bytes(atom_of_row_) + bytes(row_of_atom_) + bytes(last_atom_of_row_) + bytes(species_) +
         bytes(last_species_) + bytes(sender_) + bytes(row_ptr_) + bytes(edge_vector_);
}
