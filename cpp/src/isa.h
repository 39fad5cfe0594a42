#pragma once
// The kernels of cpp/simd are compiled once per instruction set, and the best build that this
// processor runs is chosen when the first is called. The kernels themselves must not include this
// file: an inline function of theirs could be emitted with AVX-512, then linked into code that runs
// everywhere.
#include <type_traits>

namespace race {

enum class Isa { baseline, avx2, avx512 };

// The instruction set of this processor, lowered by RACE_ISA in the environment ("avx2" or
// "baseline").
Isa allowed_isa();

template <class KernelSet>
struct IsaChoice {
  const KernelSet* kernels;
  const char* name;

  // The kernels for float or for double.
  template <class T>
  const auto& of() const {
    if constexpr (std::is_same_v<T, float>)
      return kernels->f32;
    else
      return kernels->f64;
  }
};

template <class KernelSet>
IsaChoice<KernelSet> choose_isa(const KernelSet* (*baseline)(), const KernelSet* (*avx2)(),
                                const KernelSet* (*avx512)()) {
  switch (allowed_isa()) {
    case Isa::avx512: return {avx512(), "avx512"};
    case Isa::avx2: return {avx2(), "avx2"};
    default: return {baseline(), "baseline"};
  }
}

// The choice among the builds that a header of cpp/simd declares in `space`.
#if defined(__x86_64__)
#define RACE_CHOOSE_ISA(space) \
  race::choose_isa(space::kernels_baseline, space::kernels_avx2, space::kernels_avx512)
#else
#define RACE_CHOOSE_ISA(space) \
  race::choose_isa<space::KernelSet>(space::kernels_baseline, nullptr, nullptr)
#endif

}  // namespace race
