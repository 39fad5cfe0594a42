#pragma once
// Watches what the lanes of emulated kernels do to memory. The kernels are compiled with
// -fsanitize=thread, whose calls at every access end in watch.cpp instead of the sanitizer's
// runtime: that knows threads of the host, not lanes, warps and blocks.
//
//   a race         two lanes at one address, one of them writing, with no __syncwarp of one warp
//                  between them: so also every number of a launch has one writer that is not atomic
//   uninitialised  shared memory that is read and that its block has not written
//   out of bounds  just behind the memory of a tensor that was made since
namespace cuda_on_cpu {

void watch(bool on);

}  // namespace cuda_on_cpu
