#include "race/predict.h"

#include <ATen/core/grad_mode.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "edge_forces.h"
#include "race/error.h"

namespace race {
namespace {

/// Consecutive receivers, as a layer takes them, and what their edges accumulate.
struct Part : Receivers {
  Model::Edges edges;                ///< kept only where there is one part: of several, each has its own made again for each layer
  at::Tensor bar_radial, bar_sh;     ///< summed over layers, or of the last one
};

/// [n_owned, ...] that comes part by part: one part is taken as it is.
class Gathered {
 public:
  Gathered(int64_t n_owned, int64_t n_parts) : n_owned_(n_owned), n_parts_(n_parts) {}
  void put(const Part& part, const at::Tensor& rows) {
    if (n_parts_ == 1) {
      all_ = rows;
      return;
    }
    if (!all_.defined()) {
      std::vector<int64_t> sizes = rows.sizes().vec();
      sizes[0] = n_owned_;
      all_ = at::empty(sizes, rows.options());
    }
    all_.narrow(0, part.begin, part.n).copy_(rows);
  }
  const at::Tensor& rows() const { return all_; }

 private:
  int64_t n_owned_, n_parts_;
  at::Tensor all_;
};

/// E(edge_vector) and its transpose, cut where domains exchange rows. Every adjoint is written bar_x = dE/dx.
class Chain {
 public:
  Chain(const Model& model, const Graph& graph, HaloExchange& halo, int64_t n_groups, int64_t n_parts)
      : model_(model), halo_(halo), graph_(graph), n_owned_(graph.n_owned), n_total_(graph.n_total), n_groups_(n_groups) {
    for (at::Tensor* tensor : {&graph_.species, &graph_.sender, &graph_.row_ptr, &graph_.edge_vector}) *tensor = tensor->to(model.device());
    cut(std::clamp<int64_t>(n_parts, 1, std::max<int64_t>(n_owned_, 1)));
  }

  /// Readout channels summed over layers, [n_owned, M, K]; keeps what the transpose needs.
  at::Tensor forward() {
    if (whole()) parts_[0].edges = edges_of(parts_[0]);
    at::Tensor g = model_.embed(graph_.species), h = g.new_empty({n_owned_, 0}), out;
    for (int64_t t = 0; t < model_.metadata().n_layers; ++t) {
      if (t > 0) g = with_ghosts(g);
      kept_.push_back({g, {}});
      Gathered next_h = gathered(), next_g = gathered(), here = gathered();
      for (Part& part : parts_) {
        const Model::Layer layer = model_.layer(t, rows_of(h, part), g, neighbors(part, whole() ? part.edges : edges_of(part)));
        kept_.back().z.push_back(layer.z);
        next_h.put(part, layer.h), next_g.put(part, layer.g), here.put(part, layer.out);
      }
      h = next_h.rows(), g = next_g.rows();
      out = out.defined() ? out + here.rows() : here.rows();
    }
    bar_h_ = at::zeros_like(h), bar_g_ = g;  // of width 0
    return out;
  }

  /// Forces and virials of `prediction`, from bar_energy [n_owned, M], the same for every layer. Frees each layer's memory when done with it.
  void backward(const at::Tensor& bar_energy, Prediction& prediction) {
    for (int64_t t = model_.metadata().n_layers - 1; t >= 0; --t, kept_.pop_back()) {
      Gathered bar_h = gathered();
      at::Tensor bar_g;  // [n_total, dim_g]: every part sends adjoints to its senders
      for (std::size_t k = 0; k < parts_.size(); ++k) {
        Part& part = parts_[k];
        const Model::Edges edges = whole() ? part.edges : edges_of(part);
        Model::LayerVjp bars = model_.layer_vjp(t, kept_.back().g, neighbors(part, edges), kept_.back().z[k], rows_of(bar_energy, part),
                                                rows_of(bar_h_, part), rows_of(bar_g_, part));
        if (t > 0) {
          bar_h.put(part, bars.h);
          bar_g = bar_g.defined() ? bar_g.add_(bars.g) : bars.g;
        }
        part.bar_radial = part.bar_radial.defined() ? part.bar_radial.add_(bars.radial) : bars.radial;
        part.bar_sh = part.bar_sh.defined() ? part.bar_sh.add_(bars.sh) : bars.sh;
        if (whole() && t > 0) continue;
        accumulate_edges(part, model_.edges_vjp(cast(part), edges, part.bar_radial, part.bar_sh), prediction);
        part.bar_radial.reset(), part.bar_sh.reset();
      }
      if (t == 0) break;
      bar_h_ = bar_h.rows();
      halo_.reverse(bar_g);
      bar_g_ = bar_g.narrow(0, 0, n_owned_);
    }
  }

  at::Tensor owned_species() const { return graph_.species.narrow(0, 0, n_owned_); }

 private:
  void cut(int64_t n_parts) {
    const at::Tensor row_ptr = graph_.row_ptr.cpu().contiguous();
    const auto* edges_before = row_ptr.const_data_ptr<int64_t>();
    for (int64_t k = 0; k < n_parts; ++k) {
      Part part;
      part.begin = n_owned_ * k / n_parts;
      part.n = n_owned_ * (k + 1) / n_parts - part.begin;
      const int64_t first = edges_before[part.begin], n_edges = edges_before[part.begin + part.n] - first;
      part.edge_vector = graph_.edge_vector.narrow(0, first, n_edges);
      part.sender = graph_.sender.narrow(0, first, n_edges);
      part.row_ptr = n_parts == 1 ? graph_.row_ptr : graph_.row_ptr.narrow(0, part.begin, part.n + 1) - first;
      parts_.push_back(part);
    }
  }

  bool whole() const { return parts_.size() == 1; }
  Gathered gathered() const { return {n_owned_, static_cast<int64_t>(parts_.size())}; }
  at::Tensor rows_of(const at::Tensor& rows, const Part& part) const { return rows.narrow(0, part.begin, part.n); }

  // Only here: the caller formed the difference of positions in float64.
  at::Tensor cast(const Part& part) const { return part.edge_vector.to(model_.dtype()); }
  Model::Edges edges_of(const Part& part) const { return model_.edges(cast(part)); }

  // One group per member: a single transpose of sum_m E_m leaves each member's own adjoint in its own group.
  Model::Neighbors neighbors(const Part& part, const Model::Edges& edges) const {
    const auto grouped = [this](const at::Tensor& rows) { return rows.unsqueeze(1).expand({-1, n_groups_, -1}); };
    return {grouped(edges.radial), grouped(edges.sh), part.sender, part.row_ptr, rows_of(graph_.species, part)};
  }

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
    at::Tensor g;
    std::vector<at::Tensor> z;  ///< of each part
  };

  const Model& model_;
  HaloExchange& halo_;
  Graph graph_;  ///< on the model's device
  const int64_t n_owned_, n_total_, n_groups_;
  std::vector<Part> parts_;
  at::Tensor bar_h_, bar_g_;
  std::vector<Kept> kept_;
};

at::Tensor to_host(const at::Tensor& tensor) { return tensor.to(at::kCPU, at::kDouble).contiguous(); }

}  // namespace

Prediction predict(const Model& model, const Graph& graph, HaloExchange& halo, const Request& request) {
  const at::NoGradGuard no_grad;
  const int64_t M = model.metadata().n_members;
  const int64_t G = request.members ? M : 1;

  Chain chain(model, graph, halo, G, request.n_parts);
  const at::Tensor out = chain.forward();
  const at::Tensor species = chain.owned_species();
  // G = M: sum_m E_m, whose groups are the members. G = 1: the one group collects the mean over members.
  const at::Tensor seed = at::full({M}, G == M ? 1.0 : 1.0 / static_cast<double>(M), out.options().dtype(at::kDouble));
  Prediction prediction;
  start_forces(graph, G, request.atom_virial, request.on_device ? model.device() : at::kCPU, prediction);
  chain.backward(model.readout_vjp(species, seed), prediction);
  prediction.node_energy = to_host(model.readout(out, species));
  if (request.uncertainty) {
    const Model::Uncertainty spread = model.uncertainty(out, species);
    prediction.node_energy_var = to_host(spread.node_energy_var);
    const at::Tensor cov_aleatoric = to_host(spread.cov_aleatoric);  // [n_owned, M, 6]
    prediction.cov_aleatoric = cov_aleatoric.mean(1);
    if (model.metadata().has_force_cov()) prediction.logdet_aleatoric = log_determinant(cov_aleatoric).mean(1);
    prediction.cov_epistemic = to_host(spread.cov_epistemic).mean(1);
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
