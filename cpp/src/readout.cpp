#include "readout.h"

#include <ATen/ATen.h>

#include "operators.h"
#include "race/linear.h"

namespace race {
namespace {

using at::Tensor;
using readout::Sizes;

Tensor activated(const Tensor& active, const Tensor& weight, const Sizes& n) {
  const int64_t width = n.n_readouts * n.n_scalars;
  const std::vector<int64_t> block = {1, n.n_hidden, width, 0, 0, 0};
  const Tensor matrices = weight.reshape({n.n_trunks, 1, n.n_hidden * width});
  return active.is_cpu() ? linear_cpu(active, matrices, {}, block, n.n_trunks * width)
                         : linear_aten(active, matrices, {}, block, n.n_trunks * width);
}

Tensor readout_aten(const Tensor& z, const Tensor& tensor, const Tensor& weight,
                    int64_t n_scalars) {
  const Sizes n = readout::check(z, tensor, weight, n_scalars);
  const int64_t T = n.n_trunks, R = n.n_readouts, Q = n.n_quadrupoles;
  Tensor out = activated(at::silu(z), weight, n).view({n.n_atoms, T, R, n_scalars}).transpose(1, 2);
  if (Q > 0)
    out = at::cat(
        {out, tensor.reshape({n.n_atoms, 5, T, R, Q}).permute({0, 3, 2, 4, 1}).flatten(3)}, 3);
  return out.reshape({n.n_atoms, R * T, n.n_out()});
}

Tensor readout_vjp_aten(const Tensor& bar_energy, const Tensor& weight, const Tensor& z) {
  const Sizes n = readout::check_vjp(bar_energy, weight, z);
  Tensor bar;
  if (n.n_readouts == 1) {
    bar = bar_energy.unsqueeze(2) * weight.select(0, 0);
  } else {
    const Tensor by_trunk =
        bar_energy.reshape({n.n_atoms, n.n_readouts, n.n_trunks}).permute({2, 0, 1});
    bar = at::bmm(by_trunk, weight.transpose(0, 1)).transpose(0, 1);
  }
  return at::silu_backward(bar.flatten(1), z);
}

Tensor node_energy_aten(const Tensor& out, const Tensor& species, const Tensor& scale,
                        const Tensor& shift) {
  readout::check_energy(out, species, scale, shift);
  return at::addcmul(shift.index_select(0, species).unsqueeze(1), out.select(2, 0).to(at::kDouble),
                     scale.index_select(0, species).unsqueeze(1));
}

Tensor node_energy_vjp_aten(const Tensor& species, const Tensor& scale, const Tensor& bar_energy,
                            const Tensor& like) {
  readout::check_energy_vjp(species, scale, bar_energy);
  return (scale.index_select(0, species).unsqueeze(1) * bar_energy).to(like.scalar_type());
}

Tensor readout_meta(const Tensor& z, const Tensor& tensor, const Tensor& weight,
                    int64_t n_scalars) {
  const Sizes n = readout::check(z, tensor, weight, n_scalars);
  return z.new_empty({n.n_atoms, n.n_members(), n.n_out()});
}

Tensor readout_vjp_meta(const Tensor& bar_energy, const Tensor& weight, const Tensor& z) {
  readout::check_vjp(bar_energy, weight, z);
  return z.new_empty(z.sizes());
}

Tensor node_energy_meta(const Tensor& out, const Tensor& species, const Tensor& scale,
                        const Tensor& shift) {
  readout::check_energy(out, species, scale, shift);
  return scale.new_empty({out.size(0), out.size(1)});
}

Tensor node_energy_vjp_meta(const Tensor& species, const Tensor& scale, const Tensor& bar_energy,
                            const Tensor& like) {
  readout::check_energy_vjp(species, scale, bar_energy);
  return like.new_empty({species.size(0), bar_energy.size(0)});
}

const bool registered =
    register_operators("race::readout", __FILE__, __LINE__, [](torch::Library* library) {
      Operator(library, readout::kSchemas[0])
          .portable(TORCH_FN(readout_aten))
          .meta(TORCH_FN(readout_meta));
      Operator(library, readout::kSchemas[1])
          .portable(TORCH_FN(readout_vjp_aten))
          .meta(TORCH_FN(readout_vjp_meta));
      Operator(library, readout::kSchemas[2])
          .portable(TORCH_FN(node_energy_aten))
          .meta(TORCH_FN(node_energy_meta));
      Operator(library, readout::kSchemas[3])
          .portable(TORCH_FN(node_energy_vjp_aten))
          .meta(TORCH_FN(node_energy_vjp_meta));
    });

}  // namespace
}  // namespace race
