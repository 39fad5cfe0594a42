#include "race/zbl.h"

#include <ATen/core/grad_mode.h>

#include <algorithm>
#include <cmath>
#include <sstream>

#include "edge_forces.h"
#include "race/error.h"
#include "race/predict.h"

namespace race {
namespace {

constexpr double coulomb = 14.399645;  // e^2 / (4 pi epsilon_0), eV Angstrom
constexpr double weight[] = {0.18175, 0.50986, 0.28022, 0.02817},
                 rate[] = {3.1998, 0.94229, 0.4029, 0.20162};

int atomic_number(const std::string& symbol, const std::string& name) {
  std::istringstream symbols(
      "H He Li Be B C N O F Ne Na Mg Al Si P S Cl Ar K Ca Sc Ti V Cr Mn Fe Co Ni Cu Zn Ga Ge As Se Br Kr Rb Sr Y Zr Nb Mo Tc Ru Rh Pd Ag "
      "Cd In Sn Sb Te I Xe Cs Ba La Ce Pr Nd Pm Sm Eu Gd Tb Dy Ho Er Tm Yb Lu Hf Ta W Re Os Ir Pt Au Hg Tl Pb Bi Po At Rn Fr Ra Ac Th Pa U "
      "Np Pu Am Cm Bk Cf Es Fm Md No Lr Rf Db Sg Bh Hs Mt Ds Rg Cn Nh Fl Mc Lv Ts Og");
  std::string known;
  for (int z = 1; symbols >> known; ++z)
    if (known == symbol) return z;
  throw Error(name + ": zbl: expected chemical symbols as elements of the model, got " + symbol +
              "; use it without zbl");
}

/// Edges shorter than `reach`. On the CPU nothing is allocated per edge.
at::Tensor shorter(const at::Tensor& edge_vector, double reach) {
  if (!edge_vector.is_cpu())
    return (edge_vector.square().sum(1) < reach * reach).nonzero().squeeze(1);
  const at::Tensor vector = edge_vector.contiguous();
  const double* d = vector.const_data_ptr<double>();
  std::vector<int64_t> found;
  for (int64_t e = 0; e < vector.size(0); ++e, d += 3)
    if (d[0] * d[0] + d[1] * d[1] + d[2] * d[2] < reach * reach) found.push_back(e);
  return at::tensor(found, at::kLong);
}

}  // namespace

Zbl::Zbl(const Metadata& metadata, const std::string& name)
    : n_(static_cast<int64_t>(metadata.elements.size())), pairs_(n_ * n_) {
  if (metadata.min_distance.empty())
    throw Error(
        name +
        ": zbl: the model does not say how close atoms of its training set come; expected an artifact of race train and race "
        "export, or no zbl");
  std::vector<int> number;
  for (const std::string& symbol : metadata.elements) number.push_back(atomic_number(symbol, name));
  for (int64_t a = 0; a < n_; ++a)
    for (int64_t b = 0; b < n_; ++b) {
      const bool ordered = number[a] <= number[b];
      const auto found = metadata.min_distance.find(metadata.elements[ordered ? a : b] + "-" +
                                                    metadata.elements[ordered ? b : a]);
      if (found == metadata.min_distance.end()) continue;
      Pair& pair = pairs_[a * n_ + b];
      pair.outer = std::min(found->second, metadata.r_max);  // no edge is longer
      pair.charges = coulomb * number[a] * number[b];
      pair.length = 0.4685 / (std::pow(number[a], 0.23) + std::pow(number[b], 0.23));
      reach_ = std::max(reach_, pair.outer);
    }
}

double Zbl::Pair::operator()(double r, double& derivative) const {
  double phi = 0, dphi = 0;
  for (int k = 0; k < 4; ++k) {
    const double term = weight[k] * std::exp(-rate[k] * r / length);
    phi += term, dphi -= rate[k] / length * term;
  }
  const double energy = charges * phi / r, slope = charges * (dphi - phi / r) / r;
  const double t = std::clamp((r / outer - full) / (1 - full), 0.0, 1.0), u = 1 - t;
  const double s = u * u * u * (1 + 3 * t + 6 * t * t),
               ds = -30 * t * t * u * u / (outer * (1 - full));
  derivative = s * slope + ds * energy;
  return s * energy;
}

void Zbl::add(const Graph& graph, Prediction& prediction, const at::Tensor& velocity,
              double to_sender) const {
  const at::NoGradGuard no_grad;
  const at::Tensor edges = shorter(graph.edge_vector, reach_);
  const int64_t n_edges = edges.size(0);
  if (n_edges == 0) return;
  // Few edges are left: the host computes them, wherever the graph is.
  const auto to_host = [](const at::Tensor& rows) { return rows.to(at::kCPU).contiguous(); };
  const at::Tensor receiver =
      to_host(at::searchsorted(graph.row_ptr, edges, /*out_int32=*/false, /*right=*/true)) - 1;
  const at::Tensor from = graph.sender.index_select(0, edges), sender = to_host(from);
  const at::Tensor kinds = to_host(graph.species.index_select(0, from)),
                   vector = to_host(graph.edge_vector.index_select(0, edges));
  const at::Tensor here =
      to_host(graph.species.narrow(0, 0, graph.n_owned)).index_select(0, receiver);
  const at::Tensor energy = at::zeros({n_edges, 1}, at::kDouble),
                   grad = at::zeros({n_edges, 1, 3}, at::kDouble);
  const double* d = vector.const_data_ptr<double>();
  double *e = energy.mutable_data_ptr<double>(), *g = grad.mutable_data_ptr<double>();
  for (int64_t k = 0; k < n_edges; ++k, d += 3, ++e, g += 3) {
    const Pair& pair =
        pairs_[kinds.const_data_ptr<int64_t>()[k] * n_ + here.const_data_ptr<int64_t>()[k]];
    const double r = std::sqrt(d[0] * d[0] + d[1] * d[1] + d[2] * d[2]);
    if (r >= pair.outer) continue;
    double derivative;
    *e = 0.5 * pair(r, derivative);  // the other half is the opposite edge's
    for (int a = 0; a < 3; ++a) g[a] = 0.5 * derivative * d[a] / r;
  }
  const at::Device device = prediction.node_energy.device();
  const at::Tensor of_atoms = at::zeros({graph.n_owned, 1}, at::kDouble);
  of_atoms.index_add_(0, receiver, energy);
  prediction.node_energy.add_(of_atoms.to(device));
  if (!prediction.forces.defined()) return;
  const at::Tensor row_ptr = at::searchsorted(receiver, at::arange(graph.n_owned + 1, at::kLong));
  const Receivers receivers{
      0, graph.n_owned, vector.to(device), sender.to(device), row_ptr.to(device), to_sender};
  const at::Tensor edge_grad = grad.expand({-1, prediction.forces.size(1), -1}).to(device);
  accumulate_edges(receivers, edge_grad, prediction);
  if (velocity.defined())
    accumulate_flux(receivers, edge_grad, {}, velocity.to(device), prediction.heat_flux);
}

}  // namespace race
