#include "race/predict.h"

#include <ATen/core/grad_mode.h>

#include <cmath>
#include <vector>

#include "edge_forces.h"
#include "race/error.h"

namespace race {
namespace {

/// E(edge_vector) and its transpose, cut where domains exchange rows. Every adjoint is written bar_x = dE/dx.
class Chain {
 public:
  Chain(const Model& model, const Graph& graph, HaloExchange& halo, int64_t n_groups)
      : model_(model), halo_(halo), graph_(graph), n_owned_(graph.n_owned), n_total_(graph.n_total), n_groups_(n_groups) {
    for (at::Tensor* tensor : {&graph_.species, &graph_.sender, &graph_.row_ptr, &graph_.edge_vector}) *tensor = tensor->to(model.device());
    edge_vector_ = graph_.edge_vector.to(model.dtype());  // cast only now: the caller formed the difference of positions in float64
  }

  /// Readout channels summed over layers, [n_owned, M, K]; keeps what the transpose needs.
  at::Tensor forward() {
    edges_ = model_.edges(edge_vector_);
    // One group per trunk: a single transpose of the sum of their energies leaves each trunk's own adjoint in its own group.
    const auto grouped = [this](const at::Tensor& rows) { return rows.unsqueeze(1).expand({-1, n_groups_, -1}); };
    neighbors_ = {grouped(edges_.radial), grouped(edges_.sh), graph_.sender, graph_.row_ptr, graph_.species.narrow(0, 0, n_owned_)};

    at::Tensor g = model_.embed(graph_.species), h = g.new_empty({n_owned_, 0}), out;
    for (int64_t t = 0; t < model_.metadata().n_layers; ++t) {
      if (t > 0) g = with_ghosts(g);
      const Model::Layer layer = model_.layer(t, h, g, neighbors_);
      kept_.push_back({g, layer.z});
      h = layer.h, g = layer.g;
      out = out.defined() ? out + layer.out : layer.out;
    }
    last_h_ = h, last_g_ = g;
    return out;
  }

  /// dE/d edge_vector [E, G, 3], E = sum_m seed_m E_m, float64 [M]. The last call frees each layer's memory when done with it.
  at::Tensor backward(const at::Tensor& seed, bool last) {
    const at::Tensor bar_energy = model_.readout_vjp(owned_species(), seed);  // [n_owned, M], the same for every layer
    at::Tensor bar_radial, bar_sh;                                            // summed over layers
    at::Tensor bar_h = at::zeros_like(last_h_), bar_g = at::zeros_like(last_g_);
    for (int64_t t = model_.metadata().n_layers - 1; t >= 0; --t) {
      Model::LayerVjp bars = model_.layer_vjp(t, kept_[t].g, neighbors_, kept_[t].z, bar_energy, bar_h, bar_g);
      if (last) kept_.pop_back();
      bar_radial = bar_radial.defined() ? bar_radial.add_(bars.radial) : bars.radial;
      bar_sh = bar_sh.defined() ? bar_sh.add_(bars.sh) : bars.sh;
      if (t == 0) break;
      bar_h = bars.h;
      halo_.reverse(bars.g);
      bar_g = bars.g.narrow(0, 0, n_owned_);
    }
    return model_.edges_vjp(edge_vector_, edges_, bar_radial, bar_sh);
  }

  const at::Tensor& owned_species() const { return neighbors_.species; }
  const Graph& graph() const { return graph_; }  ///< on the model's device

 private:
  at::Tensor with_ghosts(const at::Tensor& owned) {
    at::Tensor rows = owned;
    if (n_total_ > n_owned_) {
      rows = at::empty({n_total_, owned.size(1)}, owned.options());
      rows.narrow(0, 0, n_owned_).copy_(owned);
    }
    halo_.forward(rows);
    return rows;
  }

  struct Kept {
    at::Tensor g, z;
  };

  const Model& model_;
  HaloExchange& halo_;
  Graph graph_;
  const int64_t n_owned_, n_total_, n_groups_;
  at::Tensor edge_vector_, last_h_, last_g_;
  Model::Edges edges_;
  Model::Neighbors neighbors_;
  std::vector<Kept> kept_;
};

at::Tensor to_host(const at::Tensor& tensor) { return tensor.to(at::kCPU, at::kDouble).contiguous(); }

}  // namespace

Prediction predict(const Model& model, const Graph& graph, HaloExchange& halo, const Request& request) {
  const at::NoGradGuard no_grad;
  const int64_t M = model.metadata().n_members, T = model.metadata().n_trunks;

  Chain chain(model, graph, halo, request.members ? T : 1);
  const at::Tensor out = chain.forward();
  const at::Tensor& species = chain.owned_species();
  const auto options = out.options().dtype(at::kDouble);
  at::Tensor edge_grad;
  if (request.members) {
    // One transpose for members 0 .. T-1, whose groups are their trunks, one for the next T, and so on.
    std::vector<at::Tensor> of_members;
    for (int64_t first = 0; first < M; first += T) {
      at::Tensor seed = at::zeros({M}, options);
      seed.narrow(0, first, T).fill_(1.0);
      of_members.push_back(chain.backward(seed, first + T == M));
    }
    edge_grad = of_members.size() == 1 ? of_members[0] : at::cat(of_members, 1);
  } else {
    edge_grad = chain.backward(at::full({M}, 1.0 / static_cast<double>(M), options), true);  // one group collects the mean
  }

  Prediction prediction;
  prediction.node_energy = to_host(model.readout(out, species));
  accumulate_edges(chain.graph(), edge_grad, request.atom_virial, prediction);
  if (request.uncertainty) {
    const Model::Uncertainty spread = model.uncertainty(out, species);
    prediction.node_energy_var = to_host(spread.node_energy_var);
    const at::Tensor cov_aleatoric = to_host(spread.cov_aleatoric);  // [n_owned, M, 6]
    prediction.cov_aleatoric = cov_aleatoric.mean(1);
    if (model.metadata().has_force_cov()) prediction.logdet_aleatoric = log_determinant(cov_aleatoric).mean(1);
    prediction.cov_epistemic = to_host(spread.cov_epistemic).mean(1);
    prediction.virial_cov = model.metadata().has_stress_cov() ? to_host(model.virial_cov(out)) : at::zeros({6, 6}, at::kDouble);
  }
  return prediction;
}

at::Tensor member_covariance(const at::Tensor& forces) {
  const at::NoGradGuard no_grad;
  const at::Tensor deviation = forces.to(at::kDouble) - forces.to(at::kDouble).mean(1, /*keepdim=*/true);  // [n, M, 3]
  std::vector<at::Tensor> columns;
  for (int k = 0; k < 6; ++k)
    columns.push_back((deviation.select(2, six_rows[k]) * deviation.select(2, six_columns[k])).mean(1));
  return at::stack(columns, 1);
}

at::Tensor log_determinant(const at::Tensor& six) {
  const at::Tensor rows = six.to(at::kCPU, at::kDouble).contiguous(), result = at::empty(six.sizes().slice(0, six.dim() - 1), rows.options());
  const double* c = rows.const_data_ptr<double>();  // xx, yy, zz, xy, xz, yz
  double* to = result.mutable_data_ptr<double>();
  for (int64_t k = 0; k < result.numel(); ++k, c += 6) {
    // Pivots of L D L^T: no determinant of six products, whose terms cancel.
    const double d0 = c[0], d1 = c[1] - c[3] * c[3] / d0, yz = c[5] - c[3] * c[4] / d0;
    to[k] = std::log(d0) + std::log(d1) + std::log(c[2] - c[4] * c[4] / d0 - yz * yz / d1);
  }
  return result;
}

}  // namespace race
