#pragma once
// Kernels are compiled once per instruction set, and the best build that this processor runs is
// chosen when the first is called. Not to be included by the kernels themselves: an inline function
// of theirs could be emitted with AVX-512 and be linked into code that runs everywhere.

namespace race {

enum class Isa { baseline, avx2, avx512 };

// What this processor has, lowered by RACE_ISA in the environment ("avx2" or "baseline").
Isa allowed_isa();

template <class Kernels>
struct IsaChoice {
  const Kernels* kernels;
  const char* name;
};

// Arguments: where to get each build; those for avx2 and avx512 return null where they are not
// compiled in.
template <class Kernels>
IsaChoice<Kernels> choose_isa(const Kernels* (*baseline)(), const Kernels* (*avx2)(),
                              const Kernels* (*avx512)()) {
  const Isa isa = allowed_isa();
  if (isa == Isa::avx512)
    if (const Kernels* kernels = avx512()) return {kernels, "avx512"};
  if (isa != Isa::baseline)
    if (const Kernels* kernels = avx2()) return {kernels, "avx2"};
  return {baseline(), "baseline"};
}

}  // namespace race
