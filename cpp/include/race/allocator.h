#pragma once

namespace race {

/// Makes glibc's malloc keep the memory of large tensors from one call to the next. By default it
/// returns every block above 32 MiB to the system, which clears it again, page by page, at the next
/// step. One call acts for the whole process, which then keeps its peak; later calls do nothing,
/// nor does any call with other C libraries. RACE_KEEP_MEMORY=0 in the environment leaves glibc as
/// it is, as does any of glibc's own variables MALLOC_MMAP_MAX_, MALLOC_MMAP_THRESHOLD_,
/// MALLOC_TRIM_THRESHOLD_.
void keep_memory();

}  // namespace race
