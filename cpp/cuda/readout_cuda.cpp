// The operators of ../src/readout.h on CUDA tensors.
#include <ATen/Dispatch.h>
#include <ATen/ops/empty.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#include "../src/readout.h"
#include "readout_kernels.h"
#include "register.h"

namespace race::cuda {
namespace {

using at::Tensor;
using readout::Sizes;

// The tensor, or a copy if the columns of its rows lie apart.
Tensor rows_of(const Tensor& t) { return t.size(1) <= 1 || t.stride(1) == 1 ? t : t.contiguous(); }

Tensor forward(const Tensor& z_in, const Tensor& tensor_in, const Tensor& weight_in,
               int64_t n_scalars) {
  const Sizes n = readout::check(z_in, tensor_in, weight_in, n_scalars);
  const c10::cuda::OptionalCUDAGuard guard(z_in.device());
  const Tensor z = rows_of(z_in), tensor = rows_of(tensor_in), weight = weight_in.contiguous();
  const Tensor out = at::empty({n.n_atoms, n.n_members(), n.n_out()}, z.options());
  AT_DISPATCH_FLOATING_TYPES(z.scalar_type(), "race::readout", [&] {
    const ReadoutArguments<scalar_t> args{.n_atoms = n.n_atoms,
                                          .n_trunks = n.n_trunks,
                                          .n_hidden = n.n_hidden,
                                          .n_readouts = n.n_readouts,
                                          .n_scalars = n.n_scalars,
                                          .n_quadrupoles = n.n_quadrupoles,
                                          .z = z.const_data_ptr<scalar_t>(),
                                          .tensor = tensor.const_data_ptr<scalar_t>(),
                                          .weight = weight.const_data_ptr<scalar_t>(),
                                          .z_stride = z.stride(0),
                                          .tensor_stride = tensor.stride(0),
                                          .out = out.mutable_data_ptr<scalar_t>()};
    C10_CUDA_CHECK(launch_readout(args, c10::cuda::getCurrentCUDAStream()));
  });
  return out;
}

Tensor vjp(const Tensor& bar_energy_in, const Tensor& weight_in, const Tensor& z_in) {
  const Sizes n = readout::check_vjp(bar_energy_in, weight_in, z_in);
  const c10::cuda::OptionalCUDAGuard guard(z_in.device());
  const Tensor bar_energy = bar_energy_in.contiguous(), weight = weight_in.contiguous(),
               z = rows_of(z_in);
  const Tensor bar_z = at::empty(z.sizes(), z.options());
  AT_DISPATCH_FLOATING_TYPES(z.scalar_type(), "race::readout_vjp", [&] {
    const ReadoutVjpArguments<scalar_t> args{.n_atoms = n.n_atoms,
                                             .n_trunks = n.n_trunks,
                                             .n_hidden = n.n_hidden,
                                             .n_readouts = n.n_readouts,
                                             .bar_energy = bar_energy.const_data_ptr<scalar_t>(),
                                             .weight = weight.const_data_ptr<scalar_t>(),
                                             .z = z.const_data_ptr<scalar_t>(),
                                             .z_stride = z.stride(0),
                                             .bar_z = bar_z.mutable_data_ptr<scalar_t>()};
    C10_CUDA_CHECK(launch_readout_vjp(args, c10::cuda::getCurrentCUDAStream()));
  });
  return bar_z;
}

Tensor node_energy(const Tensor& out_in, const Tensor& species_in, const Tensor& scale_in,
                   const Tensor& shift_in) {
  readout::check_energy(out_in, species_in, scale_in, shift_in);
  const c10::cuda::OptionalCUDAGuard guard(out_in.device());
  const Tensor out = out_in.contiguous(), species = species_in.contiguous(),
               scale = scale_in.contiguous(), shift = shift_in.contiguous();
  const Tensor energy = at::empty({out.size(0), out.size(1)}, scale.options());
  AT_DISPATCH_FLOATING_TYPES(out.scalar_type(), "race::node_energy", [&] {
    const NodeEnergyArguments<scalar_t> args{.n_atoms = out.size(0),
                                             .n_members = out.size(1),
                                             .n_out = out.size(2),
                                             .n_species = scale.size(0),
                                             .species = species.const_data_ptr<int64_t>(),
                                             .scale = scale.const_data_ptr<double>(),
                                             .shift = shift.const_data_ptr<double>(),
                                             .out = out.const_data_ptr<scalar_t>(),
                                             .energy = energy.mutable_data_ptr<double>()};
    C10_CUDA_CHECK(launch_node_energy(args, c10::cuda::getCurrentCUDAStream()));
  });
  return energy;
}

Tensor node_energy_vjp(const Tensor& species_in, const Tensor& scale_in,
                       const Tensor& bar_energy_in, const Tensor& like) {
  readout::check_energy_vjp(species_in, scale_in, bar_energy_in);
  const c10::cuda::OptionalCUDAGuard guard(species_in.device());
  const Tensor species = species_in.contiguous(), scale = scale_in.contiguous(),
               bar_energy = bar_energy_in.contiguous();
  const Tensor bar = at::empty({species.size(0), bar_energy.size(0)}, like.options());
  AT_DISPATCH_FLOATING_TYPES(like.scalar_type(), "race::node_energy_vjp", [&] {
    const NodeEnergyVjpArguments<scalar_t> args{.n_atoms = bar.size(0),
                                                .n_members = bar.size(1),
                                                .n_species = scale.size(0),
                                                .species = species.const_data_ptr<int64_t>(),
                                                .scale = scale.const_data_ptr<double>(),
                                                .bar_energy = bar_energy.const_data_ptr<double>(),
                                                .bar = bar.mutable_data_ptr<scalar_t>()};
    C10_CUDA_CHECK(launch_node_energy_vjp(args, c10::cuda::getCurrentCUDAStream()));
  });
  return bar;
}

const bool registered = register_kernels("race::readout", [](torch::Library& library) {
  library.impl("readout", TORCH_FN(forward));
  library.impl("readout_vjp", TORCH_FN(vjp));
  library.impl("node_energy", TORCH_FN(node_energy));
  library.impl("node_energy_vjp", TORCH_FN(node_energy_vjp));
});

}  // namespace
}  // namespace race::cuda
