#pragma once

#include <array>

namespace LAMMPS_NS {
class LAMMPS;
class Pair;
}  // namespace LAMMPS_NS

/// The styles that plugin.cpp enters for KOKKOS, without Kokkos's headers: race/kk, race/kk/device,
/// race/kk/host.
struct KokkosStyle {
  const char* name;
  LAMMPS_NS::Pair* (*create)(LAMMPS_NS::LAMMPS*);
};
extern const std::array<KokkosStyle, 3> kokkos_styles;
