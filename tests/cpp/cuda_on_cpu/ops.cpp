// The kernels of cpp/cuda on CPU tensors: emulate(True) makes them the kernels that race::*
// operators have for the CPU, so that everything above the dispatcher (autograd, TorchScript, the
// runtime) runs on them.
#include <ATen/ops/zeros.h>
#include <c10/cuda/CUDAException.h>
#include <torch/library.h>

#include <cuda_runtime.h>

#include <any>
#include <memory>
#include <optional>
#include <vector>

#include "../../../cpp/src/recent.h"
#include "crossings.h"
#include "planted.h"
#include "register.h"
#include "watch.h"

namespace {

std::vector<race::cuda::DefineKernels>& registered() {
  static std::vector<race::cuda::DefineKernels> kernels;
  return kernels;
}

void emulate(bool on) {
  static std::unique_ptr<torch::Library> library;
  library.reset();  // the CPU's own kernels again
  if (!on) return;
  library = std::make_unique<torch::Library>(torch::Library::IMPL, "race", c10::DispatchKey::CPU,
                                             __FILE__, __LINE__);
  for (const auto define : registered()) define(*library);
}

// A kernel with an error, see planted.h.
at::Tensor planted(const std::string& error) {
  const at::Tensor out = at::zeros({error == "off by one" ? 31 : 32}, at::kInt);
  C10_CUDA_CHECK(cuda_on_cpu::launch_planted(error, out.mutable_data_ptr<int>(),
                                             static_cast<int>(out.size(0))));
  return out;
}

// An error in one of the kernels from now on, see cuda_runtime.h; "": none.
void plant(const std::string& error, const std::string& kernel, int64_t line) {
  cuda_on_cpu::fault = {.error = error, .kernel = kernel, .line = static_cast<int>(line)};
}

// Holds what the kernels remember from now on, as a recording does; false: how many that were.
int64_t hold(bool on) {
  static thread_local std::vector<std::any> values;
  static thread_local std::optional<race::Holding> holding;
  holding.reset();
  const auto n = static_cast<int64_t>(values.size());
  values.clear();
  if (on) holding.emplace(values);
  return n;
}

int64_t launches() { return cuda_on_cpu::launches; }
int64_t uploads() { return race::cuda::crossings.uploads; }
int64_t reads() { return race::cuda::crossings.reads; }

}  // namespace

// Takes the place of cpp/cuda/register.cpp: the kernels wait for emulate().
bool race::cuda::register_kernels(const char*, DefineKernels define) {
  registered().push_back(define);
  return true;
}

TORCH_LIBRARY(race_on_cpu, m) {
  m.def("emulate(bool on) -> ()", TORCH_FN(emulate));
  m.def("hold(bool on) -> int", TORCH_FN(hold));
  m.def("launches() -> int", TORCH_FN(launches));
  m.def("uploads() -> int", TORCH_FN(uploads));
  m.def("reads() -> int", TORCH_FN(reads));
  m.def("watch(bool on) -> ()", TORCH_FN(cuda_on_cpu::watch));
  m.def("plant(str error, str kernel, int line) -> ()", TORCH_FN(plant));
  m.def("planted(str error) -> Tensor", TORCH_FN(planted));
}
