#pragma once

namespace race {

/// Lets glibc's malloc keep the memory of large tensors from one call to the next, where its
/// defaults give every block above 32 MiB back to the system and have it cleared again, page by
/// page, at the next step. For the whole process, once; later calls and other C libraries: nothing.
/// The process keeps its peak. RACE_KEEP_MEMORY=0 in the environment leaves glibc as it is, and so
/// does any of glibc's own variables MALLOC_MMAP_MAX_, MALLOC_MMAP_THRESHOLD_,
/// MALLOC_TRIM_THRESHOLD_.
void keep_memory();

}  // namespace race
