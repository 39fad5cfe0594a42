#include "kokkos_halo.h"

#include "comm.h"
#include "pair.h"
#include "platform.h"
#include "torch_device.h"

using namespace LAMMPS_NS;

namespace race_kokkos {

// A buffer of doubles, used as `stride` scalars T per atom. It is raw memory, which nothing reads
// as doubles on the way.
template <class DeviceType, typename T>
struct Wire {
  T* rows;
  T* buffer;
  int width, stride;
  Kokkos::View<int*, Kokkos::LayoutRight, DeviceType> row_of_atom;

  Wire(const at::Tensor& tensor, const DAT::tdual_double_1d& doubles,
       const Kokkos::View<int*, Kokkos::LayoutRight, DeviceType>& rows_of)
      : rows(tensor.data_ptr<T>()),
        buffer(reinterpret_cast<T*>(doubles.template view<DeviceType>().data())),
        width(static_cast<int>(tensor.size(1))),
        stride(LammpsHalo::wire_doubles(tensor.size(1), tensor.scalar_type()) *
               static_cast<int>(sizeof(double) / sizeof(T))),
        row_of_atom(rows_of) {}
};

// Packs 0 for atoms without a row, and for the unused half of the last double.
template <class DeviceType, typename T>
struct Pack {
  Wire<DeviceType, T> wire;
  typename ArrayTypes<DeviceType>::t_int_1d atoms;  ///< listed atoms; or none: those from `first`
                                                    ///< on
  int first;
  KOKKOS_INLINE_FUNCTION void operator()(const int64_t at) const {
    const int k = static_cast<int>(at / wire.stride), column = static_cast<int>(at % wire.stride);
    const int row = wire.row_of_atom(first < 0 ? atoms(k) : first + k);
    wire.buffer[at] = row < 0 || column >= wire.width
                          ? T(0)
                          : wire.rows[static_cast<int64_t>(row) * wire.width + column];
  }
};

template <class DeviceType, typename T>
struct Unpack {
  Wire<DeviceType, T> wire;
  typename ArrayTypes<DeviceType>::t_int_1d
      atoms;  ///< rows are added to these atoms, each once in a list; or none: rows are put to
              ///< those from `first` on
  int first;
  KOKKOS_INLINE_FUNCTION void operator()(const int64_t at) const {
    const int k = static_cast<int>(at / wire.width), column = static_cast<int>(at % wire.width);
    const int row = wire.row_of_atom(first < 0 ? atoms(k) : first + k);
    if (row < 0) return;
    T& to = wire.rows[static_cast<int64_t>(row) * wire.width + column];
    const T value = wire.buffer[static_cast<int64_t>(k) * wire.stride + column];
    if (first < 0) {
      to += value;
    } else {
      to = value;
    }
  }
};

template <template <class, typename> class Kernel, class DeviceType, typename T>
void launch(const char* label, const Wire<DeviceType, T>& wire,
            const typename ArrayTypes<DeviceType>::t_int_1d& atoms, int first, int64_t n) {
  using Range = Kokkos::RangePolicy<DeviceType, Kokkos::IndexType<int64_t>>;
  Kokkos::parallel_for(label, Range(0, n), Kernel<DeviceType, T>{wire, atoms, first});
}

template <class DeviceType>
int pack(const KokkosGraph<DeviceType>& graph, const at::Tensor& rows,
         const typename ArrayTypes<DeviceType>::t_int_1d& atoms, int first, int n,
         const DAT::tdual_double_1d& buffer) {
  const auto work = [&](auto scalar) {
    const Wire<DeviceType, decltype(scalar)> wire(rows, buffer, graph.row_of_atom());
    launch<Pack>("race: pack", wire, atoms, first, static_cast<int64_t>(n) * wire.stride);
  };
  rows.scalar_type() == at::kFloat ? work(float()) : work(double());
  return n * LammpsHalo::wire_doubles(rows.size(1), rows.scalar_type());
}

template <class DeviceType>
void unpack(const KokkosGraph<DeviceType>& graph, const at::Tensor& rows,
            const typename ArrayTypes<DeviceType>::t_int_1d& atoms, int first, int n,
            const DAT::tdual_double_1d& buffer) {
  const auto work = [&](auto scalar) {
    const Wire<DeviceType, decltype(scalar)> wire(rows, buffer, graph.row_of_atom());
    launch<Unpack>("race: unpack", wire, atoms, first, static_cast<int64_t>(n) * wire.width);
  };
  rows.scalar_type() == at::kFloat ? work(float()) : work(double());
}

}  // namespace race_kokkos

template <class DeviceType>
void KokkosHalo<DeviceType>::exchange(at::Tensor& rows, bool forward) {
  const int64_t width = rows.size(1);
  if (width == 0) return;  // in every rank: LAMMPS takes a size of 0 for its default
  const at::Device device = race_kokkos::torch_device<DeviceType>();
  rows_ = rows.to(device).contiguous();
  race_kokkos::fence_torch(device);
  const double start = platform::walltime();
  const int doubles = LammpsHalo::wire_doubles(width, rows_.scalar_type());
  if (forward) {
    comm_->forward_comm(&pair_, doubles);
  } else {
    comm_->reverse_comm(&pair_, doubles);
  }
  DeviceType().fence();
  totals_.seconds += platform::walltime() - start;
  if (!rows_.is_same(rows)) rows.copy_(rows_);
  rows_.reset();
}

template <class DeviceType>
int KokkosHalo<DeviceType>::counted(int n_doubles) {
  totals_.bytes += static_cast<double>(sizeof(double)) * n_doubles;
  return n_doubles;
}

template <class DeviceType>
int KokkosHalo<DeviceType>::pack(int n, const DAT::tdual_int_1d& atoms,
                                 DAT::tdual_double_1d& buffer) {
  return counted(race_kokkos::pack<DeviceType>(graph_, rows_, atoms.template view<DeviceType>(), -1,
                                               n, buffer));
}

template <class DeviceType>
int KokkosHalo<DeviceType>::pack(int n, int first, DAT::tdual_double_1d& buffer) {
  return counted(race_kokkos::pack<DeviceType>(graph_, rows_, {}, first, n, buffer));
}

template <class DeviceType>
void KokkosHalo<DeviceType>::unpack(int n, int first, const DAT::tdual_double_1d& buffer) const {
  race_kokkos::unpack<DeviceType>(graph_, rows_, {}, first, n, buffer);
}

template <class DeviceType>
void KokkosHalo<DeviceType>::unpack_add(int n, const DAT::tdual_int_1d& atoms,
                                        const DAT::tdual_double_1d& buffer) const {
  race_kokkos::unpack<DeviceType>(graph_, rows_, atoms.template view<DeviceType>(), -1, n, buffer);
}

template class KokkosHalo<LMPDeviceType>;
#ifdef LMP_KOKKOS_GPU
template class KokkosHalo<LMPHostType>;
#endif
