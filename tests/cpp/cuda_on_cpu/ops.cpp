// torch.ops.race_on_cpu.*: the functions of cpp/cuda, kernels included, on CPU tensors.
#include <torch/library.h>

#include "../../../cpp/src/conv_dispatch.h"
#include "../../../cpp/src/product_dispatch.h"
#include "conv_cuda.h"
#include "product_cuda.h"

TORCH_LIBRARY(race_on_cpu, m) {
  using namespace race;
  m.def(kConvSchemas[0], TORCH_FN(conv::forward<conv_cuda>));
  m.def(kConvSchemas[1], TORCH_FN(conv::backward<conv_backward_cuda>));
  m.def(kConvSchemas[2], TORCH_FN(conv::double_backward<conv_double_backward_cuda>));
  m.def(kProductSchemas[0], TORCH_FN(product::forward<product_cuda>));
  m.def(kProductSchemas[1], TORCH_FN(product::backward<product_backward_cuda>));
  m.def(kProductSchemas[2], TORCH_FN(product::double_backward<product_double_backward_cuda>));
}
