#include "race/predict.h"

#include <ATen/core/grad_mode.h>

#include <algorithm>
#include <cmath>
#include <utility>
#include <vector>

#include "edge_forces.h"
#include "race/error.h"
#include "race/moments.h"
#include "recent.h"
#include "recordings.h"

namespace race {
namespace {

/// Consecutive receivers, as a layer takes them, and the accumulated adjoints of their edges.
struct Part : Receivers {
  Model::Edges edges;  ///< kept only if there is one part: with several, each part computes its
                       ///< edges again for each layer
  at::Tensor vector;   ///< edge_vector in the model's dtype; kept likewise
  at::Tensor bar_radial, bar_sh;  ///< summed over layers, or of the last layer
  at::Tensor power;               ///< [E, G], likewise; undefined without velocities
};

/// A tensor [n_owned, ...] that is filled part by part: a single part is taken as it is.
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

// With one layer an edge's virial is its sender's, the centroid form; several layers have none.
double share_of_sender(const Metadata& metadata) { return metadata.n_layers == 1 ? 1.0 : 0.5; }

/// E(edge_vector) and its transpose, cut at the exchanges between domains. Every adjoint is written
/// bar_x = dE/dx.
class Evaluation {
 public:
  Evaluation(const Model& model, const Graph& graph, HaloExchange& halo, int64_t n_groups,
             int64_t n_parts)
      : model_(model),
        halo_(halo),
        graph_(graph),
        n_owned_(graph.n_owned),
        n_total_(graph.n_total),
        n_groups_(n_groups) {
    for (at::Tensor* tensor :
         {&graph_.species, &graph_.sender, &graph_.row_ptr, &graph_.edge_vector})
      *tensor = tensor->to(model.device());
    cut(std::clamp<int64_t>(n_parts, 1, std::max<int64_t>(n_owned_, 1)));
  }

  /// Readout channels summed over layers, [n_owned, M, K]; keeps the inputs of the transpose.
  at::Tensor forward() {
    if (whole()) parts_[0].edges = edges_of(parts_[0]);
    at::Tensor g = model_.embed(graph_.species), h = g.new_empty({n_owned_, 0}), out;
    for (int64_t t = 0; t < model_.metadata().n_layers; ++t) {
      if (t > 0) g = with_ghosts(g);
      kept_.push_back({.g = g, .dg = {}, .z = {}});
      Gathered next_h = gathered(), next_g = gathered(), here = gathered();
      for (Part& part : parts_) {
        const Model::Layer layer = model_.layer(
            t, rows_of(h, part), g, neighbors(part, whole() ? part.edges : edges_of(part)));
        kept_.back().z.push_back(layer.z);
        next_h.put(part, layer.h), next_g.put(part, layer.g), here.put(part, layer.out);
      }
      h = next_h.rows(), g = next_g.rows();
      out = out.defined() ? out + here.rows() : here.rows();
    }
    last_h_ = h, last_g_ = g;
    return out;
  }

  /// The last layer's z, [n_owned, ...]; after forward().
  at::Tensor last_z() const {
    Gathered z = gathered();
    for (std::size_t k = 0; k < parts_.size(); ++k) z.put(parts_[k], kept_.back().z[k]);
    return z.rows();
  }

  /// Rates of change of the features that neighbours read, for moving atoms: after forward().
  /// velocity: float64 [n_owned, 3].
  void follow(const at::Tensor& velocity) {
    velocity_ = with_ghosts(velocity.to(model_.device(), at::kDouble));
    const int64_t L = model_.metadata().n_layers;
    if (L == 1) return;
    if (!model_.has_tangents())
      throw Error(
          "heat flux: this artifact of an earlier release cannot give it for more than one layer; "
          "expected one of this release; export the model again");
    at::Tensor dg = at::zeros_like(kept_[0].g), dh = dg.new_empty({n_owned_, 0});
    for (int64_t t = 0; t + 1 < L; ++t) {
      Gathered next_h = gathered(), next_g = gathered();
      for (std::size_t k = 0; k < parts_.size(); ++k) {
        const Part& part = parts_[k];
        const Model::Neighbors around = neighbors(part, whole() ? part.edges : edges_of(part));
        const auto [dradial, dsh] = model_.edges_jvp(cast(part), rate_of(part));
        const Model::LayerRates rates =
            model_.layer_jvp(t, rows_of(dh, part), dg, grouped(dradial), grouped(dsh), kept_[t].g,
                             around, kept_[t].z[k]);
        next_h.put(part, rates.h), next_g.put(part, rates.g);
      }
      dh = next_h.rows(), dg = with_ghosts(next_g.rows());
      kept_[t + 1].dg = dg;
    }
  }
  const at::Tensor& velocity() const { return velocity_; }  ///< [n_total, 3]; after follow()

  /// Adds forces and virials of E = sum_m seed_m E_m, float64 [M], to `prediction`. The last call
  /// frees each layer's memory on its way.
  void backward(const at::Tensor& seed, bool last, Prediction& prediction) {
    const at::Tensor bar_energy =
        model_.readout_vjp(owned_species(), seed);  // [n_owned, M], the same for every layer
    at::Tensor bar_h = at::zeros_like(last_h_), bar_g = at::zeros_like(last_g_);
    for (int64_t t = model_.metadata().n_layers - 1; t >= 0; --t) {
      Gathered before_h = gathered();
      at::Tensor before_g;  // [n_total, dim_g]: every part sends adjoints to its senders
      for (std::size_t k = 0; k < parts_.size(); ++k) {
        Part& part = parts_[k];
        const Model::Edges edges = whole() ? part.edges : edges_of(part);
        if (t > 0 && velocity_.defined()) {
          at::Tensor power = model_.layer_power(t, kept_[t].dg, neighbors(part, edges),
                                                kept_[t].z[k], rows_of(bar_energy, part),
                                                rows_of(bar_h, part), rows_of(bar_g, part));
          if (n_groups_ == 1) power = power.sum(1, /*keepdim=*/true);
          part.power = part.power.defined() ? part.power + power : power;
        }
        Model::LayerVjp bars =
            model_.layer_vjp(t, kept_[t].g, neighbors(part, edges), kept_[t].z[k],
                             rows_of(bar_energy, part), rows_of(bar_h, part), rows_of(bar_g, part));
        if (t > 0) {
          before_h.put(part, bars.h);
          before_g = before_g.defined() ? before_g.add_(bars.g) : bars.g;
        }
        part.bar_radial =
            part.bar_radial.defined() ? part.bar_radial.add_(bars.radial) : bars.radial;
        part.bar_sh = part.bar_sh.defined() ? part.bar_sh.add_(bars.sh) : bars.sh;
        if (whole() && t > 0) continue;
        const at::Tensor edge_grad =
            model_.edges_vjp(cast(part), edges, part.bar_radial, part.bar_sh);
        accumulate_edges(part, edge_grad, prediction);
        if (velocity_.defined())
          accumulate_flux(part, edge_grad, part.power, velocity_, prediction.heat_flux);
        part.bar_radial.reset(), part.bar_sh.reset(), part.power.reset();
      }
      if (last) kept_.pop_back();
      if (t == 0) break;
      bar_h = before_h.rows();
      halo_.reverse(before_g);
      bar_g = before_g.narrow(0, 0, n_owned_);
    }
  }

  at::Tensor owned_species() const { return graph_.species.narrow(0, 0, n_owned_); }

 private:
  void cut(int64_t n_parts) {
    if (n_parts == 1) {  // the graph's own tensors: operators that remember them need not sort them
                         // again
      Part all;
      all.n = n_owned_;
      all.to_sender = share_of_sender(model_.metadata());
      all.edge_vector = graph_.edge_vector;
      all.sender = graph_.sender;
      all.row_ptr = graph_.row_ptr;
      all.vector = cast(all);
      parts_.push_back(all);
      return;
    }
    const at::Tensor row_ptr = graph_.row_ptr.cpu().contiguous();
    const auto* edges_before = row_ptr.const_data_ptr<int64_t>();
    for (int64_t k = 0; k < n_parts; ++k) {
      Part part;
      part.begin = n_owned_ * k / n_parts;
      part.n = n_owned_ * (k + 1) / n_parts - part.begin;
      part.to_sender = share_of_sender(model_.metadata());
      const int64_t first = edges_before[part.begin],
                    n_edges = edges_before[part.begin + part.n] - first;
      part.edge_vector = graph_.edge_vector.narrow(0, first, n_edges);
      part.sender = graph_.sender.narrow(0, first, n_edges);
      part.row_ptr = graph_.row_ptr.narrow(0, part.begin, part.n + 1) - first;
      parts_.push_back(part);
    }
  }

  bool whole() const { return parts_.size() == 1; }
  Gathered gathered() const { return {n_owned_, static_cast<int64_t>(parts_.size())}; }
  at::Tensor rows_of(const at::Tensor& rows, const Part& part) const {
    return rows.narrow(0, part.begin, part.n);
  }

  // The only cast: the caller formed the difference of positions in float64.
  at::Tensor cast(const Part& part) const {
    return part.vector.defined() ? part.vector : part.edge_vector.to(model_.dtype());
  }
  Model::Edges edges_of(const Part& part) const { return model_.edges(cast(part)); }

  /// d/dt edge_vector [E, 3]
  at::Tensor rate_of(const Part& part) const {
    const at::Tensor receiver = at::repeat_interleave(part.row_ptr.diff()) + part.begin;
    return (velocity_.index_select(0, part.sender) - velocity_.index_select(0, receiver))
        .to(model_.dtype());
  }

  // One group per trunk: a single transpose of the sum of their energies leaves each its own
  // adjoint.
  at::Tensor grouped(const at::Tensor& rows) const {
    return rows.unsqueeze(1).expand({-1, n_groups_, -1});
  }
  Model::Neighbors neighbors(const Part& part, const Model::Edges& edges) const {
    return {grouped(edges.radial), grouped(edges.sh), part.sender, part.row_ptr,
            rows_of(graph_.species, part)};
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
    at::Tensor g, dg;           ///< rate of change of g, from follow()
    std::vector<at::Tensor> z;  ///< z of each part
  };

  const Model& model_;
  HaloExchange& halo_;
  Graph graph_;  ///< on the model's device
  const int64_t n_owned_, n_total_, n_groups_;
  std::vector<Part> parts_;
  at::Tensor last_h_, last_g_, velocity_;
  std::vector<Kept> kept_;
};

/// Seeds of the transpose, float64: of the mean over members, [M], or of the members, [M / T, M],
/// whose row p has those of members p T to p T + T - 1. Made once for each device.
at::Tensor seeds_for(const Model& model, bool members) {
  const int64_t M = model.metadata().n_members, T = model.metadata().n_trunks;
  struct Key {
    int64_t n_members, n_trunks;
    bool members;
    at::Device device;
    bool operator==(const Key&) const = default;
  };
  static auto& seeds = *new Recent<Key, at::Tensor>(16);
  const Key wanted{M, T, members, model.device()};
  const auto options = at::TensorOptions().dtype(at::kDouble).device(model.device());
  return seeds.get(
      [&](const Key& key) { return key == wanted; },
      [&] {
        return std::pair{
            wanted,
            members ? at::eye(M / T, options).unsqueeze(2).expand({-1, -1, T}).reshape({M / T, M})
                    : at::full({M}, 1.0 / static_cast<double>(M), options)};
      });
}

/// Forces and virials of consecutive members; atoms' virials are means over members.
Prediction joined(const std::vector<Prediction>& passes) {
  if (passes.size() == 1) return passes[0];
  std::vector<at::Tensor> forces, virials, atoms, fluxes;
  for (const Prediction& pass : passes)
    forces.push_back(pass.forces), virials.push_back(pass.virial),
        atoms.push_back(pass.atom_virial), fluxes.push_back(pass.heat_flux);
  Prediction all;
  if (fluxes[0].defined()) all.heat_flux = at::cat(fluxes, 0);
  all.forces = at::cat(forces, 1), all.virial = at::cat(virials, 0);
  if (atoms[0].defined()) all.atom_virial = at::stack(atoms).mean(0);
  return all;
}

// A heat flux keeps adjoints of senders' features edge by edge: at most about 64 MiB in each part.
int64_t parts_for_flux(const Model& model, const Graph& graph, const Request& request) {
  const double bytes = static_cast<double>(graph.edge_vector.size(0)) *
                       static_cast<double>(model.comm_width_max()) *
                       static_cast<double>(c10::elementSize(model.dtype()));
  return std::max(request.n_parts, static_cast<int64_t>(bytes / (64 << 20)) + 1);
}

Prediction on_host(Prediction prediction) {
  std::vector<at::Tensor> tensors = prediction.tensors();
  for (at::Tensor& tensor : tensors)
    if (tensor.defined()) tensor = tensor.to(at::kCPU);
  prediction.set(tensors);
  return prediction;
}

bool on_one_device(const at::Tensor& tensor, at::Device device) {
  return tensor.device().type() == device.type() &&
         (!device.has_index() || tensor.device() == device);
}

/// What the device computes, and the velocities of all rows if there are some.
struct Evaluated {
  Prediction prediction;
  at::Tensor velocity;  ///< float64 [n_total, 3]
};

Evaluated evaluate(const Model& model, const Graph& graph, HaloExchange& halo,
                   const Request& request) {
  const int64_t M = model.metadata().n_members, T = model.metadata().n_trunks;
  const int64_t G = request.members ? T : 1;
  const bool moving = request.moving();
  Evaluation chain(model, graph, halo, G,
                   moving ? parts_for_flux(model, graph, request) : request.n_parts);
  const at::Tensor out = chain.forward();
  if (moving) chain.follow(request.velocity);
  const at::Tensor species = chain.owned_species();
  at::Tensor grade;
  if (request.uncertainty && model.metadata().has_grade)
    grade = model.grade(chain.last_z(), species).to(at::kDouble);
  const auto options = out.options().dtype(at::kDouble);
  const auto transposed = [&](const at::Tensor& seed, bool last) {
    Prediction pass;
    start_forces(graph, G, request.atom_virial, model.device(), pass);
    if (moving) pass.heat_flux = at::zeros({G, 3}, options);
    chain.backward(seed, last, pass);
    return pass;
  };
  Prediction prediction;
  if (request.forces && request.members) {
    // One transpose is for members 0 .. T-1, whose groups are their trunks, one for the next T, and
    // so on.
    std::vector<Prediction> passes;
    for (int64_t pass = 0; pass < M / T; ++pass)
      passes.push_back(transposed(seeds_for(model, true).select(0, pass), (pass + 1) * T == M));
    prediction = joined(passes);
  } else if (request.forces) {
    prediction = transposed(seeds_for(model, false), true);  // one group collects the mean
  }
  prediction.node_energy = model.readout(out, species).to(at::kDouble);
  prediction.grade = grade;
  if (request.uncertainty) {
    const Model::Uncertainty spread = model.uncertainty(out, species);
    prediction.node_energy_var = spread.node_energy_var.to(at::kDouble);
    const at::Tensor cov_aleatoric = spread.cov_aleatoric.to(at::kDouble);  // [n_owned, M, 6]
    prediction.cov_aleatoric = cov_aleatoric.mean(1);
    if (model.metadata().has_force_cov())
      prediction.logdet_aleatoric = log_determinant(cov_aleatoric).mean(1);
    prediction.cov_epistemic = spread.cov_epistemic.to(at::kDouble).mean(1);
    prediction.virial_cov = model.metadata().has_stress_cov()
                                ? model.virial_cov(out).to(at::kDouble)
                                : at::zeros({6, 6}, options);
  }
  return {prediction, chain.velocity()};
}

/// Adds what is not the model's own, and hands the prediction over where it was asked for.
Prediction finished(Evaluated evaluated, const Model& model, const Graph& graph,
                    const Request& request) {
  Prediction& prediction = evaluated.prediction;
  if (request.zbl)
    request.zbl->add(graph, prediction, evaluated.velocity, share_of_sender(model.metadata()));
  if (request.moving()) {
    const at::Tensor energy =
        request.members ? prediction.node_energy : prediction.node_energy.mean(1, true);
    prediction.heat_flux.add_(energy.t().matmul(request.velocity.to(energy.options())));
  }
  return request.on_device ? prediction : on_host(std::move(prediction));
}

}  // namespace

std::vector<at::Tensor> Prediction::tensors() const {
  return {node_energy,   forces,           virial, atom_virial, node_energy_var, cov_aleatoric,
          cov_epistemic, logdet_aleatoric, grade,  virial_cov,  heat_flux};
}

void Prediction::set(const std::vector<at::Tensor>& tensors) {
  std::size_t k = 0;
  for (at::Tensor* tensor :
       {&node_energy, &forces, &virial, &atom_virial, &node_energy_var, &cov_aleatoric,
        &cov_epistemic, &logdet_aleatoric, &grade, &virial_cov, &heat_flux})
    *tensor = tensors.at(k++);
}

Prediction predict(const Model& model, const Graph& graph, HaloExchange& halo,
                   const Request& request) {
  const at::NoGradGuard no_grad;
  return finished(evaluate(model, graph, halo, request), model, graph, request);
}

Prediction predict(const Model& model, const Topology& topology, const at::Tensor& edge_vector,
                   HaloExchange& halo, const Request& request) {
  const at::NoGradGuard no_grad;
  const Graph graph = topology.at(edge_vector);
  const at::Tensor owner = halo.fixed();
  const bool exchanges = model.comm_width_max() > 0;
  const bool reads_owner = exchanges && graph.n_total > graph.n_owned;
  const bool stays =
      !exchanges || (owner.defined() && (!reads_owner || on_one_device(owner, model.device())));
  if (!stays || request.n_parts != 1 || request.moving())
    return predict(model, graph, halo, request);
  const Recordings::Kind kind{.model = model,
                              .owner = reads_owner ? owner : at::Tensor(),
                              .forces = request.forces,
                              .members = request.members,
                              .uncertainty = request.uncertainty,
                              .atom_virial = request.atom_virial};
  const at::Device to = request.on_device ? model.device() : at::Device(at::kCPU);
  const Prediction prediction =
      topology.recordings().predict(kind, edge_vector, to, [&](const at::Tensor& vectors) {
        return evaluate(model, topology.at(vectors), halo, request).prediction;
      });
  return finished({prediction, {}}, model, graph, request);
}

}  // namespace race
