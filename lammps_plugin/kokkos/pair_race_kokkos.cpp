#include "pair_race_kokkos.h"

#include "../load_model.h"
#include "atom_kokkos.h"
#include "atom_masks.h"
#include "comm.h"
#include "error.h"
#include "kokkos.h"
#include "neigh_list_kokkos.h"
#include "neigh_request.h"
#include "neighbor.h"
#include "styles.h"
#include "torch_device.h"

using namespace LAMMPS_NS;

namespace race_kokkos {

// Adds to f for each atom that has a row. Each atom has one row at most, so nothing is atomic.
template <class DeviceType, class Forces, class Rows>
void add(const Forces& f, const Rows& atom_of_row, const double* rows, int64_t n) {
  Kokkos::parallel_for(
      "race: forces", Kokkos::RangePolicy<DeviceType>(0, n), KOKKOS_LAMBDA(const int row) {
        const int i = atom_of_row(row);
        for (int a = 0; a < 3; ++a) f(i, a) += rows[3 * static_cast<int64_t>(row) + a];
      });
}

}  // namespace race_kokkos

// The flags are set even if the host is the only device. Then "device" is LAMMPS's name for
// Kokkos's own views, and messages take the device's path.
template <class DeviceType>
PairRaceKokkos<DeviceType>::PairRaceKokkos(LAMMPS* lmp)
    : PairRace(lmp),
      atomKK_(static_cast<AtomKokkos*>(atom)),
      device_halo_(comm, *this, device_graph_, exchanged_) {
  kokkosable = 1;
  reverse_comm_device = 1;
  execution_space = std::is_same_v<DeviceType, LMPDeviceType> ? Device : HostKK;
  datamask_read = X_MASK | F_MASK | TYPE_MASK | MASK_MASK;
  datamask_modify = F_MASK;
}

template <class DeviceType>
std::string PairRaceKokkos<DeviceType>::default_device() const {
  return race_kokkos::torch_device<DeviceType>().str();
}

// The device in a restart file is that of the run that wrote it.
template <class DeviceType>
void PairRaceKokkos<DeviceType>::read_restart_settings(FILE* file) {
  PairRace::read_restart_settings(file);
  settings_.device = default_device();
}

template <class DeviceType>
void PairRaceKokkos<DeviceType>::init_style() {
  atomKK_->sync(Host, ALL_MASK);  // for bonds, types and masses
  PairRace::init_style();
  std::string message;  // with `cuda:0` only ranks with another GPU of KOKKOS's have a message
  if (model_->device() != race_kokkos::torch_device<DeviceType>())
    message = fmt::format(
        "pair_style race/kk device: expected {}, where KOKKOS keeps the atoms, got {}; leave the keyword out",
        default_device(), model_->device().str());
  message = agree(world, message);
  if (!message.empty()) error->all(FLERR, message);
  auto* request = neighbor->find_request(this);
  request->set_kokkos_host(execution_space == HostKK);
  request->set_kokkos_device(execution_space == Device);
}

template <class DeviceType>
void PairRaceKokkos<DeviceType>::setup() {
  atomKK_->sync(Host, ALL_MASK);
  PairRace::setup();
}

template <class DeviceType>
bool PairRaceKokkos<DeviceType>::build_graph(const LocalGraph::Options& options) {
  atomKK_->sync(execution_space, X_MASK | TYPE_MASK | MASK_MASK);
  const bool changed =
      device_graph_.build(*static_cast<NeighListKokkos<DeviceType>*>(list), *atomKK_, options);
  if (changed) rows_copied_ = false;
  edges_copied_ = false;
  return changed;
}

template <class DeviceType>
void PairRaceKokkos<DeviceType>::copy_rows() {
  if (!rows_copied_)
    local_.adopt_rows(device_graph_.host_atom_of_row(), device_graph_.host_row_of_atom());
  rows_copied_ = true;
}

// Data for code that works in host memory: per-atom tallies, the uncertainty's columns, fixes.
// Copied on request, once per step.
template <class DeviceType>
const LocalGraph& PairRaceKokkos<DeviceType>::local() {
  copy_rows();
  if (!edges_copied_) local_.adopt_edges(graph());
  edges_copied_ = true;
  return local_;
}

// CommTiled and `package kokkos comm/pair/forward no` call back for host memory.
template <class DeviceType>
bool PairRaceKokkos<DeviceType>::exchanges_on_device() const {
  return execution_space == Device && comm->style == Comm::BRICK &&
         !lmp->kokkos->forward_pair_comm_legacy && !lmp->kokkos->reverse_pair_comm_legacy;
}

template <class DeviceType>
race::HaloExchange& PairRaceKokkos<DeviceType>::halo() {
  if (exchanges_on_device()) return device_halo_;
  copy_rows();
  return PairRace::halo();
}

template <class DeviceType>
void PairRaceKokkos<DeviceType>::add_forces(const at::Tensor& forces) {
  const at::Tensor mean = forces.mean(1).mul_(scaled_units().force()).contiguous();
  race_kokkos::fence_torch(mean.device());
  atomKK_->sync(execution_space, F_MASK);
  race_kokkos::add<DeviceType>(atomKK_->k_f.view<DeviceType>(), device_graph_.atom_of_row(),
                               mean.data_ptr<double>(), mean.size(0));
  DeviceType().fence();  // before torch reuses the memory of `mean`
  atomKK_->modified(execution_space, F_MASK);
}

template <class DeviceType>
int PairRaceKokkos<DeviceType>::pack_forward_comm_kokkos(int n, DAT::tdual_int_1d atoms,
                                                         DAT::tdual_double_1d& buffer, int, int*) {
  return device_halo_.pack(n, atoms, buffer);
}

template <class DeviceType>
void PairRaceKokkos<DeviceType>::unpack_forward_comm_kokkos(int n, int first,
                                                            DAT::tdual_double_1d& buffer) {
  device_halo_.unpack(n, first, buffer);
}

template <class DeviceType>
int PairRaceKokkos<DeviceType>::pack_reverse_comm_kokkos(int n, int first,
                                                         DAT::tdual_double_1d& buffer) {
  return device_halo_.pack(n, first, buffer);
}

template <class DeviceType>
void PairRaceKokkos<DeviceType>::unpack_reverse_comm_kokkos(int n, DAT::tdual_int_1d atoms,
                                                            DAT::tdual_double_1d& buffer) {
  device_halo_.unpack_add(n, atoms, buffer);
}

template <class DeviceType>
double PairRaceKokkos<DeviceType>::memory_usage() {
  return PairRace::memory_usage() + device_graph_.memory_usage();
}

namespace LAMMPS_NS {
template class PairRaceKokkos<LMPDeviceType>;
#ifdef LMP_KOKKOS_GPU
template class PairRaceKokkos<LMPHostType>;
#endif
}  // namespace LAMMPS_NS

namespace {

template <class DeviceType>
Pair* create(LAMMPS* lmp) {
  if (!lmp->kokkos)
    lmp->error->all(FLERR,
                    "pair_style race/kk: expected LAMMPS started with -kokkos on, got KOKKOS off");
  return new PairRaceKokkos<DeviceType>(lmp);
}

}  // namespace

const std::array<KokkosStyle, 3> kokkos_styles = {{{"race/kk", &create<LMPDeviceType>},
                                                   {"race/kk/device", &create<LMPDeviceType>},
                                                   {"race/kk/host", &create<LMPHostType>}}};
