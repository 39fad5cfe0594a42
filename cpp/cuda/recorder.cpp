// Steps as CUDA graphs.
#include "race/recorder.h"

#include <map>

#include <ATen/cuda/CUDAGraph.h>
#include <ATen/cuda/MemPool.h>
#include <c10/cuda/CUDACachingAllocator.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

namespace race::cuda {
namespace {

using c10::cuda::CUDAStream;

// Graphs are recorded on a stream other than the default one. One serves all recorders of a thread:
// what kernels remember of a topology, they remember for its stream. The graphs run one after
// another there, and so can have their temporary memory in common.
struct Place {
  explicit Place(c10::DeviceIndex device)
      : stream(c10::cuda::getStreamFromPool(/*isHighPriority=*/false, device)) {}

  const CUDAStream stream;
  at::cuda::MemPool memory;
};

Place& place_on(c10::DeviceIndex device) {
  static thread_local auto& places = *new std::map<c10::DeviceIndex, Place>;
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

class Graph final : public Recorder {
 public:
  explicit Graph(Place& place) : stream_(place.stream), memory_(place.memory.id()) {}

  void rehearse(const std::function<void()>& work) override {
    beside([&] { work(); });
  }

  void record(const std::function<void()>& work) override {
    beside([&] {
      // Other threads may go on allocating
      graph_.capture_begin(memory_, cudaStreamCaptureModeThreadLocal);
      try {
        work();
        graph_.capture_end();
      } catch (...) {
        abandon();
        throw;
      }
    });
  }

  void replay() override {
    beside([&] { graph_.replay(); });
  }

 private:
  /// Does `work` on the stream of the recording, in the order of the caller's stream.
  template <class Work>
  void beside(const Work& work) {
    const c10::cuda::CUDAGuard device(stream_.device_index());
    const CUDAStream callers = c10::cuda::getCurrentCUDAStream();
    before_.order(callers, stream_);
    {
      const c10::cuda::CUDAStreamGuard guard(stream_);
      work();
    }
    after_.order(stream_, callers);
  }

  /// Ends a capture that failed, so that the stream and its memory serve again.
  void abandon() noexcept {
    try {
      cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
      C10_CUDA_CHECK(cudaStreamIsCapturing(stream_, &status));
      if (status == cudaStreamCaptureStatusNone) return;
      cudaGraph_t unfinished = nullptr;
      cudaStreamEndCapture(stream_, &unfinished);
      if (unfinished) cudaGraphDestroy(unfinished);
      cudaGetLastError();  // of the end of an invalid capture
      c10::cuda::CUDACachingAllocator::endAllocateToPool(stream_.device_index(), memory_);
    } catch (const std::exception&) {  // the error of the capture itself is the one to tell
    }
  }

  const CUDAStream stream_;
  const at::cuda::MempoolId_t memory_;
  Event before_, after_;
  at::cuda::CUDAGraph graph_;
};

const bool registered = (set_recorder([](at::Device device) -> std::unique_ptr<Recorder> {
                           if (!device.is_cuda()) return nullptr;
                           const c10::cuda::CUDAGuard guard(device);
                           return std::make_unique<Graph>(place_on(device.index()));
                         }),
                         true);

}  // namespace
}  // namespace race::cuda
