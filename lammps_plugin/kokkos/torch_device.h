#pragma once

#include <ATen/ATen.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include <type_traits>

#include "kokkos_type.h"

#if defined(KOKKOS_ENABLE_HIP) || defined(KOKKOS_ENABLE_SYCL) || defined(KOKKOS_ENABLE_OPENMPTARGET)
#error \
    "pair_style race/kk: expected a KOKKOS package with CUDA, or for the host alone; librace has no kernels for other devices"
#endif

namespace race_kokkos {

/// The torch device of a Kokkos execution space.
template <class DeviceType>
at::Device torch_device() {
#ifdef KOKKOS_ENABLE_CUDA
  if constexpr (std::is_same_v<DeviceType, Kokkos::Cuda>)
    return {at::kCUDA, static_cast<c10::DeviceIndex>(Kokkos::device_id())};
#endif
  return at::kCPU;
}

/// Waits for the work that torch has queued on its current stream, so that Kokkos may read and
/// write the same memory. The other way is DeviceType().fence(): the two libraries queue on streams
/// of their own.
inline void fence_torch(at::Device device) {
  if (device.is_cpu()) return;
  c10::impl::VirtualGuardImpl(device.type()).getStream(device).synchronize();
}

}  // namespace race_kokkos
