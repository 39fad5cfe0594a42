#include "product_problem.h"

#include <utility>

#include "check.h"

namespace race::product {

using at::Tensor;

Problem::Problem(const ProductOperands& operands) : paths(operands.paths) {
  const auto& [x, weight, species, _, cg] = operands;
  RACE_CHECK("product", x.dim() == 2, "x", "[n, n_components * n_members * n_channels]", x.sizes());
  RACE_CHECK("product", x.scalar_type() == at::kFloat || x.scalar_type() == at::kDouble, "x",
             "float32 or float64", x.scalar_type());
  RACE_CHECK("product", paths.size() % kPathFields == 0, "paths",
             c10::str("rows of ", kPathFields, " integers"), paths.size(), " integers");
  n_paths = static_cast<int64_t>(paths.size() / kPathFields);
  RACE_CHECK("product",
             weight.dim() == 4 && weight.size(0) >= 1 && weight.size(1) >= 1 &&
                 weight.size(2) == n_paths && weight.size(3) >= 1,
             "weight", c10::str("[n_members, n_species, ", n_paths, ", n_channels]"),
             weight.sizes());
  RACE_CHECK("product", weight.scalar_type() == x.scalar_type(), "weight", x.scalar_type(),
             weight.scalar_type());
  n_atoms = x.size(0);
  n_members = weight.size(0);
  n_species = weight.size(1);
  n_channels = weight.size(3);
  const int64_t width = n_members * n_channels;
  n_components = x.size(1) / width;
  RACE_CHECK("product", x.size(1) % width == 0 && n_components <= kMaxComponents, "x",
             c10::str("[n, up to ", kMaxComponents, " times ", width, "]"), x.sizes());
  RACE_CHECK("product",
             species.dim() == 1 && species.size(0) == n_atoms && species.scalar_type() == at::kLong,
             "species", c10::str("int64 [", n_atoms, "]"), species.scalar_type(), " ",
             species.sizes());
  RACE_CHECK("product", cg.scalar_type() == at::kDouble && cg.dim() == 1, "cg",
             "float64, one dimension", cg.scalar_type(), " ", cg.sizes());
  const std::pair<const char*, const Tensor&> others[] = {
      {"weight", weight}, {"species", species}, {"cg", cg}};
  for (const auto& [name, tensor] : others)
    RACE_CHECK("product", tensor.device() == x.device(), name, x.device(), tensor.device());
}

Problem::Problem(const Tensor& grad, const ProductOperands& operands) : Problem(operands) {
  check_like("product", "grad", grad, operands.x);
}

Problem::Problem(const ProductBars& bars, const Tensor& grad, const ProductOperands& operands)
    : Problem(grad, operands) {
  check_like("product", "bar_x", bars.x, operands.x);
  check_like("product", "bar_weight", bars.weight, operands.weight);
}

}  // namespace race::product
