#include "race/allocator.h"

#include <cstdlib>
#include <initializer_list>
#include <limits>
#include <string_view>

#if defined(__GLIBC__)
#include <malloc.h>
#endif

namespace race {

void keep_memory() {
#if defined(__GLIBC__)
  static const bool done = [] {
    const char* wanted = std::getenv("RACE_KEEP_MEMORY");
    if (wanted && std::string_view(wanted) == "0") return false;
    for (const char* name :
         {"MALLOC_MMAP_MAX_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_"})
      if (std::getenv(name)) return false;
    // No mappings for single blocks: glibc before 2.36 accepts no threshold above 32 MiB.
    return mallopt(M_MMAP_MAX, 0) == 1 &&
           mallopt(M_TRIM_THRESHOLD, std::numeric_limits<int>::max()) == 1;
  }();
  static_cast<void>(done);
#endif
}

}  // namespace race
