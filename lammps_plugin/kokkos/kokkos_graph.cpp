#include "kokkos_graph.h"

#include <limits>
#include <string>

#include "atom_kokkos.h"
#include "atom_masks.h"
#include "neigh_list_kokkos.h"
#include "race/error.h"
#include "torch_device.h"

using namespace LAMMPS_NS;

static_assert(
    std::is_same_v<KK_FLOAT, double> && std::is_same_v<KK_ACC_FLOAT, double>,
    "pair_style race/kk: expected a KOKKOS package in double precision: edge vectors are differences of float64 positions");

namespace race_kokkos {

// Allocates at least one element, to have an address for torch: its tensors on a device may not lie
// at nullptr.
template <class View>
void grow(View& view, const std::string& label, int64_t n) {
  if (view.data() && static_cast<int64_t>(view.extent(0)) >= n) return;
  view = View();  // frees before it allocates
  view = View(Kokkos::view_alloc(Kokkos::WithoutInitializing, label), n + n / 8 + 1);
}

template <class View>
double bytes(const View& view) {
  return static_cast<double>(view.span()) * sizeof(typename View::value_type);
}

template <class View>
std::vector<int> to_host(const View& view, int64_t n) {
  std::vector<int> values(n);
  Kokkos::View<int*, Kokkos::HostSpace, Kokkos::MemoryUnmanaged> host(values.data(), n);
  Kokkos::deep_copy(host, Kokkos::subview(view, std::make_pair(int64_t{0}, n)));
  return values;
}

// A pair of atoms as one number, of which kernels find the largest; below 0 if there is none.
KOKKOS_INLINE_FUNCTION int64_t pair_of(int i, int j) { return (int64_t{i} << 32) | j; }

void refuse_same_place(int64_t pair, AtomKokkos& atom) {
  if (pair < 0) return;
  atom.sync(Host, TAG_MASK);
  throw race::Error("pair_style race: atoms " + std::to_string(atom.tag[pair >> 32]) + " and " +
                    std::to_string(atom.tag[pair & 0xffffffff]) +
                    " are at the same place; expected a distance above 0");
}

template <class DeviceType, class View>
at::Tensor tensor_of(const View& view, at::IntArrayRef shape, at::ScalarType dtype) {
  return at::from_blob(view.data(), shape,
                       at::TensorOptions().dtype(dtype).device(torch_device<DeviceType>()));
}

}  // namespace race_kokkos

// Whether every atom has the row and the species that it had in the last build(), from the same
// list. Types and groups may change without a new list (fix atom/swap).
template <class DeviceType>
bool KokkosGraph<DeviceType>::same_rows(const NeighListKokkos<DeviceType>& list, AtomKokkos& atom,
                                        const LocalGraph::Options& options) const {
  const auto row_of_atom = row_of_atom_, species_of_type = species_of_type_;
  const auto species_of_row = species_;
  const auto type = atom.k_type.view<DeviceType>();
  const auto mask = atom.k_mask.view<DeviceType>();
  const auto ilist = list.d_ilist;
  const int excluded = options.excluded, nlocal = atom.nlocal, n_listed = list.inum;
  int n_changed = 0;
  Kokkos::parallel_reduce(
      "race: changed rows", Kokkos::RangePolicy<DeviceType>(0, n_listed + atom.nghost),
      KOKKOS_LAMBDA(const int k, int& changed) {
        const int i = k < n_listed ? ilist(k) : nlocal + k - n_listed, row = row_of_atom(i);
        const int species = mask(i) & excluded ? -1 : species_of_type(type(i));
        changed += row < 0 ? species >= 0 : species != species_of_row(row);
      },
      n_changed);
  return n_changed == 0;
}

// Owned rows follow the list, ghost rows LAMMPS's ghosts, as in LocalGraph.
template <class DeviceType>
void KokkosGraph<DeviceType>::number_rows(const NeighListKokkos<DeviceType>& list, AtomKokkos& atom,
                                          const LocalGraph::Options& options) {
  using Range = Kokkos::RangePolicy<DeviceType>;
  n_atoms_ = atom.nlocal + atom.nghost;
  race_kokkos::grow(species_of_type_, "race:species_of_type", atom.ntypes + 1);
  race_kokkos::grow(row_of_atom_, "race:row_of_atom", n_atoms_);
  race_kokkos::grow(atom_of_row_, "race:atom_of_row", n_atoms_);
  race_kokkos::grow(species_, "race:species", n_atoms_);
  const Kokkos::View<const int*, Kokkos::HostSpace, Kokkos::MemoryUnmanaged> given(options.species,
                                                                                   atom.ntypes + 1);
  Kokkos::deep_copy(Kokkos::subview(species_of_type_, std::make_pair(0, atom.ntypes + 1)), given);
  Kokkos::deep_copy(DeviceType(), row_of_atom_, -1);

  const auto species_of_type = species_of_type_, row_of_atom = row_of_atom_,
             atom_of_row = atom_of_row_;
  const auto species_of_row = species_;
  const auto type = atom.k_type.view<DeviceType>();
  const auto mask = atom.k_mask.view<DeviceType>();
  const auto ilist = list.d_ilist;
  const int excluded = options.excluded, nlocal = atom.nlocal;

  int n_owned = 0, n_ghosts = 0;
  Kokkos::parallel_scan(
      "race: owned rows", Range(0, list.inum),
      KOKKOS_LAMBDA(const int k, int& row, const bool final) {
        const int i = ilist(k), species = species_of_type(type(i));
        if (species < 0 || (mask(i) & excluded)) return;
        if (final) row_of_atom(i) = row, atom_of_row(row) = i, species_of_row(row) = species;
        ++row;
      },
      n_owned);
  Kokkos::parallel_scan(
      "race: ghost rows", Range(nlocal, n_atoms_),
      KOKKOS_LAMBDA(const int i, int& ghost, const bool final) {
        const int species = species_of_type(type(i)), row = n_owned + ghost;
        if (species < 0 || (mask(i) & excluded)) return;
        if (final) row_of_atom(i) = row, atom_of_row(row) = i, species_of_row(row) = species;
        ++ghost;
      },
      n_ghosts);
  graph_.n_owned = n_owned;
  graph_.n_total = n_owned + n_ghosts;
}

// Makes two passes over the list: sizes, then edges. One thread writes each row, so edges stay in
// the list's order without atomics.
template <class DeviceType>
void KokkosGraph<DeviceType>::find_edges(const NeighListKokkos<DeviceType>& list, AtomKokkos& atom,
                                         const LocalGraph::Options& options) {
  using Range = Kokkos::RangePolicy<DeviceType>;
  const auto n_owned = static_cast<int>(graph_.n_owned);
  race_kokkos::grow(row_ptr_, "race:row_ptr", n_owned + 1);
  const auto row_of_atom = row_of_atom_, atom_of_row = atom_of_row_;
  const auto row_ptr = row_ptr_;
  const auto x = atom.k_x.view<DeviceType>();
  const auto neighbors = list.d_neighbors;
  const auto n_neighbors = list.d_numneigh;
  const bool all_edges = options.all_edges;
  const double to_angstrom = 1 / options.length;
  const double r_max_squared =
      all_edges ? std::numeric_limits<double>::infinity() : options.r_max * options.r_max;

  int64_t same_place = -1;
  Kokkos::parallel_reduce(
      "race: count edges", Range(0, n_owned),
      KOKKOS_LAMBDA(const int row, int64_t& same) {
        const int i = atom_of_row(row);
        int64_t count = 0;
        for (int k = 0; k < n_neighbors(i); ++k) {
          const int j = neighbors(i, k) & NEIGHMASK;
          if (row_of_atom(j) < 0) continue;
          const double dx = x(j, 0) - x(i, 0), dy = x(j, 1) - x(i, 1), dz = x(j, 2) - x(i, 2);
          const double r_squared = dx * dx + dy * dy + dz * dz;
          if (r_squared >= r_max_squared) continue;  // NaN passes, and is found in the energy
          const int64_t pair = race_kokkos::pair_of(i, j);
          if (r_squared == 0 && pair > same) same = pair;
          ++count;
        }
        row_ptr(row + 1) = count;
      },
      Kokkos::Max<int64_t>(same_place));
  race_kokkos::refuse_same_place(same_place, atom);

  int64_t n_edges = 0;
  Kokkos::parallel_scan(
      "race: row_ptr", Range(0, n_owned),
      KOKKOS_LAMBDA(const int row, int64_t& sum, const bool final) {
        if (row == 0 && final) row_ptr(0) = 0;
        sum += row_ptr(row + 1);
        if (final) row_ptr(row + 1) = sum;
      },
      n_edges);
  if (n_owned == 0) Kokkos::deep_copy(DeviceType(), row_ptr_, int64_t{0});

  race_kokkos::grow(sender_, "race:sender", n_edges);
  race_kokkos::grow(edge_vector_, "race:edge_vector", n_edges);
  if (all_edges) race_kokkos::grow(receiver_, "race:receiver", n_edges);
  const auto sender = sender_;
  const auto receiver = receiver_;
  const auto edge_vector = edge_vector_;
  Kokkos::parallel_for(
      "race: edges", Range(0, n_owned), KOKKOS_LAMBDA(const int row) {
        const int i = atom_of_row(row);
        int64_t edge = row_ptr(row);
        for (int k = 0; k < n_neighbors(i); ++k) {
          const int j = neighbors(i, k) & NEIGHMASK;
          if (row_of_atom(j) < 0) continue;
          const double dx = x(j, 0) - x(i, 0), dy = x(j, 1) - x(i, 1), dz = x(j, 2) - x(i, 2);
          if (dx * dx + dy * dy + dz * dz >= r_max_squared) continue;
          sender(edge) = row_of_atom(j);
          if (all_edges) receiver(edge) = row;
          edge_vector(edge, 0) = dx * to_angstrom;
          edge_vector(edge, 1) = dy * to_angstrom;
          edge_vector(edge, 2) = dz * to_angstrom;
          ++edge;
        }
      });

  using race_kokkos::tensor_of;
  graph_.species = tensor_of<DeviceType>(species_, {graph_.n_total}, at::kLong);
  graph_.sender = tensor_of<DeviceType>(sender_, {n_edges}, at::kLong);
  graph_.row_ptr = tensor_of<DeviceType>(row_ptr_, {n_owned + 1}, at::kLong);
  graph_.edge_vector = tensor_of<DeviceType>(edge_vector_, {n_edges, 3}, at::kDouble);
}

// One thread for each of the edges that find_edges() has found.
template <class DeviceType>
void KokkosGraph<DeviceType>::find_vectors(AtomKokkos& atom, const LocalGraph::Options& options) {
  const int64_t n_edges = graph_.sender.size(0);
  const auto atom_of_row = atom_of_row_, receiver = receiver_;
  const auto sender = sender_;
  const auto edge_vector = edge_vector_;
  const auto x = atom.k_x.view<DeviceType>();
  const double to_angstrom = 1 / options.length;
  int64_t same_place = -1;
  Kokkos::parallel_reduce(
      "race: edge vectors", Kokkos::RangePolicy<DeviceType, Kokkos::IndexType<int64_t>>(0, n_edges),
      KOKKOS_LAMBDA(const int64_t edge, int64_t& same) {
        const int i = atom_of_row(receiver(edge)), j = atom_of_row(sender(edge));
        bool apart = false;
        for (int a = 0; a < 3; ++a) {
          const double d = x(j, a) - x(i, a);
          apart = apart || d != 0;
          edge_vector(edge, a) = d * to_angstrom;
        }
        const int64_t pair = race_kokkos::pair_of(i, j);
        if (!apart && pair > same) same = pair;
      },
      Kokkos::Max<int64_t>(same_place));
  race_kokkos::refuse_same_place(same_place, atom);
  // Another object: operators recognise tensors that did not change
  graph_.edge_vector = race_kokkos::tensor_of<DeviceType>(edge_vector_, {n_edges, 3}, at::kDouble);
}

template <class DeviceType>
bool KokkosGraph<DeviceType>::build(const NeighListKokkos<DeviceType>& list, AtomKokkos& atom,
                                    const LocalGraph::Options& options) {
  const bool changed = options.new_list || !same_rows(list, atom, options);
  if (changed) number_rows(list, atom, options);
  if (changed || !options.all_edges) {
    find_edges(list, atom, options);
  } else {
    find_vectors(atom, options);
  }
  DeviceType().fence();
  return changed;
}

template <class DeviceType>
std::vector<int> KokkosGraph<DeviceType>::host_atom_of_row() const {
  return race_kokkos::to_host(atom_of_row_, graph_.n_total);
}

template <class DeviceType>
std::vector<int> KokkosGraph<DeviceType>::host_row_of_atom() const {
  return race_kokkos::to_host(row_of_atom_, n_atoms_);
}

template <class DeviceType>
double KokkosGraph<DeviceType>::memory_usage() const {
  using race_kokkos::bytes;
  return bytes(atom_of_row_) + bytes(row_of_atom_) + bytes(species_) + bytes(sender_) +
         bytes(row_ptr_) + bytes(receiver_) + bytes(edge_vector_);
}

template class KokkosGraph<LMPDeviceType>;
#ifdef LMP_KOKKOS_GPU
template class KokkosGraph<LMPHostType>;
#endif
