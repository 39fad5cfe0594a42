// race::gate and its derivatives on CUDA tensors.
#include <algorithm>

#include <ATen/Dispatch.h>
#include <ATen/ops/empty.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#include "../src/gate_dispatch.h"
#include "../src/gate_problem.h"
#include "gate_kernels.h"
#include "register.h"

namespace race::cuda {
namespace {

using at::Tensor;
using gate::Problem;

struct Results {
  Tensor out, du, dgates;
};

Results run(GateMap map, const Problem& n, const GateOperands& o, const Tensor& grad_in,
            const GateBars& bars) {
  const c10::cuda::OptionalCUDAGuard guard(o.u.device());
  const auto rows = [](const Tensor& t) { return t.defined() ? gate::rows_of(t) : t; };
  const Tensor u = rows(o.u), gates = rows(o.gates), grad = rows(grad_in), bar_u = rows(bars.u),
               bar_gates = rows(bars.gates);
  Results results;
  const auto like_u = [&] { return at::empty({n.n_atoms, n.dim}, u.options()); };
  if (map != GateMap::backward) results.out = like_u();
  if (map != GateMap::value) {
    results.du = like_u();
    results.dgates = at::empty({n.n_atoms, n.n_members * n.n_gates}, u.options());
  }
  AT_DISPATCH_FLOATING_TYPES(u.scalar_type(), "race::gate", [&] {
    const auto read = [](const Tensor& t) {
      return t.defined() ? GateRows<scalar_t>{t.const_data_ptr<scalar_t>(), t.stride(0)}
                         : GateRows<scalar_t>{};
    };
    const auto write = [](const Tensor& t) {
      return t.defined() ? t.mutable_data_ptr<scalar_t>() : nullptr;
    };
    GateArguments<scalar_t> args{};
    std::copy(n.blocks.begin(), n.blocks.end(), args.blocks);
    args.n_blocks = static_cast<int64_t>(n.blocks.size());
    args.n_atoms = n.n_atoms;
    args.n_members = n.n_members;
    args.n_gates = n.n_gates;
    args.dim = n.dim;
    for (const gate::Block& b : n.blocks) args.n_channels += n.n_members * b.mul;
    args.silu_norm = static_cast<scalar_t>(o.silu_norm);
    args.sigmoid_norm = static_cast<scalar_t>(o.sigmoid_norm);
    args.u = read(u);
    args.gates = read(gates);
    args.grad = read(grad);
    args.bar_u = read(bar_u);
    args.bar_gates = read(bar_gates);
    args.out = write(results.out);
    args.du = write(results.du);
    args.dgates = write(results.dgates);
    if (n.n_atoms > 0 && args.n_channels > 0)
      C10_CUDA_CHECK(launch_gate(map, args, c10::cuda::getCurrentCUDAStream()));
  });
  return results;
}

Tensor forward(const GateOperands& operands) {
  return run(GateMap::value, Problem(operands), operands, {}, {}).out;
}

std::array<Tensor, 2> backward(const Tensor& grad, const GateOperands& operands) {
  const Results r = run(GateMap::backward, Problem(grad, operands), operands, grad, {});
  return {r.du, r.dgates};
}

std::array<Tensor, 3> double_backward(const GateBars& bars, const Tensor& grad,
                                      const GateOperands& operands) {
  const Results r =
      run(GateMap::double_backward, Problem(bars, grad, operands), operands, grad, bars);
  return {r.out, r.du, r.dgates};
}

const bool registered = register_kernels("race::gate", [](torch::Library& library) {
  library.impl("gate", TORCH_FN(gate::forward<forward>));
  library.impl("gate_backward", TORCH_FN(gate::backward<backward>));
  library.impl("gate_double_backward", TORCH_FN(gate::double_backward<double_backward>));
});

}  // namespace
}  // namespace race::cuda
