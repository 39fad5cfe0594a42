#pragma once
// Stands in for CUDA's own header where cpp/cuda is compiled for the CPU, to be tested without a
// GPU. Each lane of a warp is a coroutine with its own stack; all run until they meet at a shuffle
// or __syncwarp, exchange, and go on. What the hardware leaves undefined ends the process here:
// lanes that meet at different places, or that have left while others wait for them. Barriers of a
// whole block are not offered, since the kernels use none: warps run one after the other, in any
// order.
#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <cctype>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __shared__ static
#define __forceinline__ inline
#define __grid_constant__
#define __launch_bounds__(...)

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
  dim3(unsigned x = 1) : x(x) {}
};
using cudaStream_t = struct CUstream_st*;
enum cudaError_t {
  cudaSuccess = 0,
  cudaErrorInvalidConfiguration = 9,
  cudaErrorLaunchFailure = 719
};
enum cudaDeviceAttr { cudaDevAttrMultiProcessorCount = 16 };
struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  std::size_t dynamicSmemBytes = 0;
  cudaStream_t stream = nullptr;
};

inline cudaError_t cudaGetDevice(int* device) { return *device = 0, cudaSuccess; }

// As many multiprocessors as a test wants: the host code divides its work by their number.
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr, int) {
  const char* asked = std::getenv("RACE_EMULATED_MULTIPROCESSORS");
  return *value = asked ? std::atoi(asked) : 1, cudaSuccess;
}

namespace cuda_on_cpu {

inline std::int64_t launches = 0;  // of kernels, so far

// watch.cpp: what lanes do to memory in the launch that starts, and the first thing wrong with it.
void start_watch();
const std::string& found_by_watch();

// An error that the emulation makes in launches of one kernel, for the watch to find:
//   missing barrier   the __syncwarp of source line `line` is not there
//   second writer     another block does the work of the first warp, too
//   short tensor      the last number of every tensor belongs to nobody
//   missing write     the first lane's writes to shared memory are not seen
struct Fault {
  std::string error, kernel;  // kernel: the type of its arguments, without a namespace
  int line = 0;
  bool here = false;  // in the launch that runs

  bool is(const char* what) const { return here && error == what; }
  void start(const std::string& launch) {
    const std::size_t at = kernel.empty() ? launch.npos : launch.find("::" + kernel);
    here = at != launch.npos && !std::isalnum(launch[at + 2 + kernel.size()]);
  }
};
inline Fault fault;
bool is_missing(
    int line);  // the barrier there; watch.cpp: kernels must not be seen to read `fault`

// What the hardware leaves open is drawn anew each time: the order of blocks, of their warps, and
// of lanes between one meeting and the next. A missing __syncwarp and two writers of one number
// show.
inline std::mt19937& dice() {
  static std::mt19937 dice([] {
    const char* seed = std::getenv("RACE_EMULATED_SEED");
    return seed ? std::atoi(seed) : 1;
  }());
  return dice;
}

template <class T>
void shuffle(std::vector<T>& values) {
  std::shuffle(values.begin(), values.end(), dice());
}

inline std::vector<int> counted(std::int64_t n) {
  std::vector<int> values(n);
  std::iota(values.begin(), values.end(), 0);
  return values;
}

constexpr int kLanes = 32;
constexpr std::size_t kStack = 256 << 10;

class Warp {
 public:
  static Warp& get() {
    static Warp warp;
    return warp;
  }

  // seen_as: the block that the kernel takes this one for.
  void run(void (*body)(void*), void* argument, unsigned block, unsigned seen_as, unsigned warp,
           dim3 threads) {
    this->block = block, block_index.x = seen_as, block_dim = threads;
    first_thread = warp * kLanes, meetings = 0;
    for (lane = 0; lane < kLanes; ++lane) {
      getcontext(&contexts[lane]);
      contexts[lane].uc_stack.ss_sp = stacks.data() + lane * kStack;
      contexts[lane].uc_stack.ss_size = kStack;
      contexts[lane].uc_link = nullptr;
      makecontext(&contexts[lane], reinterpret_cast<void (*)()>(enter), 0);
    }
    this->body = body, this->argument = argument;
    for (started = false;; started = true) {
      waiting = 0;
      shuffle(order);
      for (turn = 0; turn < kLanes; ++turn) {
        lane = order[turn];
        place[lane] = nullptr;
        running = true;
        if (_setjmp(scheduler) == 0) {  // these, unlike swapcontext, make no system call
          if (started) _longjmp(resume[lane], 1);
          setcontext(&contexts[lane]);
        }
        running = false;
        waiting += place[lane] != nullptr;
      }
      if (waiting == 0) return;
      for (int other = 0; other < kLanes; ++other)
        if (!place[other] || std::strcmp(place[other], place[0]))
          fail("lanes do not meet at the same place");
      meetings += place[0][1] == 'y';  // of __syncwarp: a shuffle orders no memory
      round ^= 1;
    }
  }

  template <class T>
  T exchange(T value, int from, const char* name) {
    const int mine = lane, now = round;
    std::memcpy(slots[now][mine], &value, sizeof(T));
    place[mine] = name;
    if (_setjmp(resume[mine]) == 0) _longjmp(scheduler, 1);
    std::memcpy(&value, slots[now][from],
                sizeof(T));  // the lanes that run before this one write to the other half
    return value;
  }

  static void fail(const char* what) {
    std::fprintf(stderr, "CUDA on the CPU: %s (block %u)\n", what, get().block);
    std::abort();
  }

  int lane = 0;
  unsigned block = 0;
  dim3 block_index{0}, block_dim{0};
  unsigned first_thread = 0;
  bool running = false;  // a lane is
  unsigned meetings = 0;
  std::vector<char> stacks = std::vector<char>(kLanes * kStack);

 private:
  static void enter() {
    get().body(get().argument);
    _longjmp(get().scheduler, 1);
  }

  ucontext_t contexts[kLanes];
  jmp_buf scheduler, resume[kLanes];
  const char* place[kLanes];  // where a lane waits, null once it has returned
  std::vector<int> order = counted(kLanes);
  char slots[2][kLanes][8];
  int round = 0, waiting = 0, turn = 0;
  bool started = false;
  void (*body)(void*) = nullptr;
  void* argument = nullptr;
};

struct Indices {
  struct {
    operator unsigned() const {
      return Warp::get().first_thread + static_cast<unsigned>(Warp::get().lane);
    }
  } x;
};
struct BlockIndices {
  struct {
    operator unsigned() const { return Warp::get().block_index.x; }
  } x;
};
struct BlockSizes {
  struct {
    operator unsigned() const { return Warp::get().block_dim.x; }
  } x;
};

}  // namespace cuda_on_cpu

inline constexpr cuda_on_cpu::BlockIndices blockIdx{};
inline constexpr cuda_on_cpu::BlockSizes blockDim{};
inline constexpr cuda_on_cpu::Indices threadIdx{};

template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lanes) {
  if (mask != 0xffffffffu) cuda_on_cpu::Warp::fail("a shuffle of part of a warp");
  return cuda_on_cpu::Warp::get().exchange(value, cuda_on_cpu::Warp::get().lane ^ lanes, "shuffle");
}

inline void __syncwarp(int line = __builtin_LINE()) {
  if (!cuda_on_cpu::is_missing(line)) cuda_on_cpu::Warp::get().exchange(0, 0, "syncwarp");
}

template <class T>
__attribute__((no_sanitize("thread"))) void atomicAdd(T* address, T value) {
  *address += value;
}

template <class Job>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Job),
                               const Job& job) {
  cuda_on_cpu::launches += 1;
  struct Launch {
    void (*kernel)(Job);
    const Job* job;
  } launch{kernel, &job};
  const auto body = [](void* argument) {
    const auto* launch = static_cast<Launch*>(argument);
    launch->kernel(*launch->job);
  };
  cuda_on_cpu::start_watch();
  cuda_on_cpu::fault.start(__PRETTY_FUNCTION__);
  const int per_block = static_cast<int>(config->blockDim.x) / cuda_on_cpu::kLanes;
  auto warps = cuda_on_cpu::counted(std::int64_t{config->gridDim.x} * per_block);
  cuda_on_cpu::shuffle(warps);
  for (const int warp : warps)
    cuda_on_cpu::Warp::get().run(body, &launch, warp / per_block, warp / per_block,
                                 warp % per_block, config->blockDim);
  if (cuda_on_cpu::fault.is("second writer"))
    cuda_on_cpu::Warp::get().run(body, &launch, config->gridDim.x, 0, 0, config->blockDim);
  return cuda_on_cpu::found_by_watch().empty() ? cudaSuccess : cudaErrorLaunchFailure;
}
