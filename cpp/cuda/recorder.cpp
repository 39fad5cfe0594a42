// Steps as CUDA graphs.
#include "race/recorder.h"

#include <map>
#include <memory>
#include <mutex>

#include <ATen/core/CachingHostAllocator.h>
#include <ATen/cuda/CUDAGraph.h>
#include <ATen/cuda/MemPool.h>
#include <c10/cuda/CUDACachingAllocator.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAFunctions.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#include "register.h"

namespace race::cuda {
namespace {

using c10::cuda::CUDAStream;

// Graphs are recorded on a stream other than the default one. One serves all recorders of a device:
// what kernels remember of a topology, they remember for its stream. Graphs run one after another
// there, and so can have their memory in common: a replay overwrites results of any other.
struct Place {
  explicit Place(c10::DeviceIndex device)
      : stream(c10::cuda::getStreamFromPool(/*isHighPriority=*/false, device)) {}

  const CUDAStream stream;
  at::cuda::MemPool memory;
  std::mutex mutex;      // of all work there
  bool spoiled = false;  // a capture failed: torch's allocators may not have got over it
};

Place& place_on(c10::DeviceIndex device) {
  static std::mutex mutex;
  static auto& places = *new std::map<c10::DeviceIndex, Place>;
  const std::lock_guard lock(mutex);
  return places.try_emplace(device, device).first->second;
}

class Event {
 public:
  Event() { C10_CUDA_CHECK(cudaEventCreateWithFlags(&event_, cudaEventDisableTiming)); }
  ~Event() { C10_CUDA_CHECK_WARN(cudaEventDestroy(event_)); }
  Event(const Event&) = delete;
  Event& operator=(const Event&) = delete;

  /// What `later` is asked from now on waits for what `earlier` has been asked.
  void order(const CUDAStream& earlier, const CUDAStream& later) {
    C10_CUDA_CHECK(cudaEventRecord(event_, earlier));
    C10_CUDA_CHECK(cudaStreamWaitEvent(later, event_, 0));
  }

 private:
  cudaEvent_t event_ = nullptr;
};

template <class Work>
void quietly(const Work& work) noexcept {
  try {
    work();
  } catch (const std::exception&) {  // another error is the one to tell
  }
}

class Graph final : public Recorder {
 public:
  explicit Graph(Place& place) : place_(place) {}

  void rehearse(const std::function<void()>& work) override { beside(work); }

  void record(const std::function<void()>& work) override {
    beside([&] {
      bool ended = false;
      graph_ = std::make_unique<at::cuda::CUDAGraph>();
      try {
        // Other threads may go on allocating
        graph_->capture_begin(place_.memory.id(), cudaStreamCaptureModeThreadLocal);
        work();
        ended = true;
        graph_->capture_end();
      } catch (...) {
        abandon(ended);
        throw;
      }
    });
  }

  void replay(const std::function<void()>& read) override {
    beside([&] {
      graph_->replay();
      read();
    });
  }

 private:
  /// Does `work` on the stream of the recording, in the order of the caller's stream.
  template <class Work>
  void beside(const Work& work) {
    const std::lock_guard lock(place_.mutex);
    const c10::cuda::CUDAGuard device(place_.stream.device_index());
    const CUDAStream callers = c10::cuda::getCurrentCUDAStream();
    before_.order(callers, place_.stream);
    try {
      const c10::cuda::CUDAStreamGuard guard(place_.stream);
      work();
    } catch (...) {
      quietly([&] { after_.order(place_.stream, callers); });
      throw;
    }
    after_.order(place_.stream, callers);
  }

  /// Ends a capture that failed. Nothing is recorded on this device any more.
  void abandon(bool ended) noexcept {
    place_.spoiled = true;
    const at::cuda::MempoolId_t memory = place_.memory.id();
    if (!ended) quietly([&] { graph_->capture_end(); });
    cudaGetLastError();  // of the end of an invalid capture
    // Whichever of these the end of the capture did not reach
    quietly([&] {
      c10::cuda::CUDACachingAllocator::endAllocateToPool(place_.stream.device_index(), memory);
    });
    quietly([&] { end_on_host(at::getHostAllocator(at::kCUDA), memory); });
    graph_.release();  // never freed: the allocators may go on asking it
  }

  /// In later releases of torch the allocator of pinned memory takes part in captures.
  template <class Allocator>
  static void end_on_host(Allocator* allocator, at::cuda::MempoolId_t memory) {
    if constexpr (requires { allocator->end_allocate_to_pool(memory); })
      allocator->end_allocate_to_pool(memory);
  }

  Place& place_;
  Event before_, after_;
  std::unique_ptr<at::cuda::CUDAGraph> graph_;
};

std::unique_ptr<Recorder> make(at::Device device) {
  // A recording holds what this library's kernels remember, not another's
  if (!device.is_cuda() || !kernels_serve()) return nullptr;
  const c10::DeviceIndex index = device.has_index() ? device.index() : c10::cuda::current_device();
  const c10::cuda::CUDAGuard guard(index);
  Place& place = place_on(index);
  const std::lock_guard lock(place.mutex);
  return place.spoiled ? nullptr : std::make_unique<Graph>(place);
}

const bool registered = (set_recorder(make), true);

}  // namespace
}  // namespace race::cuda
