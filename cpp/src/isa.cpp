#include "isa.h"

#include <cstdlib>
#include <string_view>

namespace race {

Isa allowed_isa() {
#if defined(__x86_64__)
  const char* value = std::getenv("RACE_ISA");
  const std::string_view wanted = value ? value : "";
  __builtin_cpu_init();
  if (wanted == "baseline" || !__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma"))
    return Isa::baseline;
  const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
                      __builtin_cpu_supports("avx512vl");
  return avx512 && wanted != "avx2" ? Isa::avx512 : Isa::avx2;
#else
  return Isa::baseline;
#endif
}

}  // namespace race
