// torch.ops.race_on_cpu.*: the functions of cpp/cuda, kernels included, on CPU tensors; and
// emulate(True), which makes them the kernels that race::* operators have for the CPU, so that
// everything above the dispatcher (autograd, TorchScript, the runtime) runs on them.
#include <ATen/ops/zeros.h>
#include <c10/cuda/CUDAException.h>
#include <torch/library.h>

#include <cuda_runtime.h>

#include <memory>

#include "../../../cpp/src/conv_dispatch.h"
#include "../../../cpp/src/product_dispatch.h"
#include "conv_cuda.h"
#include "covariance_cuda.h"
#include "edge_basis_cuda.h"
#include "edge_sums_cuda.h"
#include "matrices_cuda.h"
#include "planted.h"
#include "product_cuda.h"
#include "watch.h"

namespace {

using namespace race;

void emulate(bool on) {
  static std::unique_ptr<torch::Library> library;
  library.reset();  // the CPU's own kernels again
  if (!on) return;
  library = std::make_unique<torch::Library>(torch::Library::IMPL, "race", c10::DispatchKey::CPU,
                                             __FILE__, __LINE__);
  library->impl("conv", TORCH_FN(conv::forward<conv_cuda>));
  library->impl("conv_backward", TORCH_FN(conv::backward<conv_backward_cuda>));
  library->impl("conv_double_backward", TORCH_FN(conv::double_backward<conv_double_backward_cuda>));
  library->impl("product", TORCH_FN(product::forward<product_cuda>));
  library->impl("product_backward", TORCH_FN(product::backward<product_backward_cuda>));
  library->impl("product_double_backward",
                TORCH_FN(product::double_backward<product_double_backward_cuda>));
  library->impl("linear", TORCH_FN(linear_cuda));
  library->impl("linear_backward", TORCH_FN(linear_backward_cuda));
  library->impl("chain", TORCH_FN(chain_cuda));
  library->impl("edge_basis", TORCH_FN(edge_basis_cuda));
  library->impl("edge_basis_vjp", TORCH_FN(edge_basis_vjp_cuda));
  library->impl("edge_basis_jvp", TORCH_FN(edge_basis_jvp_cuda));
  library->impl("edge_sums", TORCH_FN(edge_sums_cuda));
  library->impl("periodic_fold", TORCH_FN(periodic_fold_cuda));
  library->impl("force_covariance", TORCH_FN(force_covariance_cuda));
  library->impl("member_covariance", TORCH_FN(member_covariance_cuda));
  library->impl("log_determinant", TORCH_FN(log_determinant_cuda));
}

// A kernel with an error, see planted.h.
at::Tensor planted(const std::string& error) {
  const at::Tensor out = at::zeros({error == "off by one" ? 31 : 32}, at::kInt);
  C10_CUDA_CHECK(cuda_on_cpu::launch_planted(error, out.mutable_data_ptr<int>(),
                                             static_cast<int>(out.size(0))));
  return out;
}

int64_t launches() { return cuda_on_cpu::launches; }

}  // namespace

TORCH_LIBRARY(race_on_cpu, m) {
  m.def(kConvSchemas[0], TORCH_FN(conv::forward<conv_cuda>));
  m.def(kConvSchemas[1], TORCH_FN(conv::backward<conv_backward_cuda>));
  m.def(kConvSchemas[2], TORCH_FN(conv::double_backward<conv_double_backward_cuda>));
  m.def(kProductSchemas[0], TORCH_FN(product::forward<product_cuda>));
  m.def(kProductSchemas[1], TORCH_FN(product::backward<product_backward_cuda>));
  m.def(kProductSchemas[2], TORCH_FN(product::double_backward<product_double_backward_cuda>));
  m.def("emulate(bool on) -> ()", TORCH_FN(emulate));
  m.def("launches() -> int", TORCH_FN(launches));
  m.def("watch(bool on) -> ()", TORCH_FN(cuda_on_cpu::watch));
  m.def("planted(str error) -> Tensor", TORCH_FN(planted));
}
