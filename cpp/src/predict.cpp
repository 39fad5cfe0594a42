#include "race/predict.h"

#include <ATen/core/grad_mode.h>
#include <c10/core/InferenceMode.h>
#include <torch/csrc/autograd/autograd.h>

#include <vector>

#include "edge_forces.h"
#include "race/error.h"

namespace race {
namespace {

/// A tensor that autograd may record: on the model's device, and not made under a caller's inference mode.
at::Tensor recordable(const at::Tensor& tensor, at::Device device) {
  const at::Tensor moved = tensor.to(device);
  return moved.is_inference() ? moved.clone() : moved;
}

at::Tensor leaf(const at::Tensor& tensor) { return tensor.detach().requires_grad_(); }

/// Of adjoints, where undefined is zero. Not in place: autograd's results may share memory.
at::Tensor sum(const at::Tensor& a, const at::Tensor& b) { return !a.defined() ? b : !b.defined() ? a : a + b; }

/// One layer as recorded: from its leaves h, g (and the radial and sh leaves shared by all layers) to nodes and out.
struct Segment {
  at::Tensor h, g;
  Model::Layer result;
};

/// E(edge_vector) and its transpose, cut where domains exchange rows. Every adjoint is written bar_x = dE/dx.
class Chain {
 public:
  Chain(const Model& model, const Graph& graph, HaloExchange& halo, int64_t n_groups)
      : model_(model), halo_(halo), graph_(graph), n_owned_(graph.n_owned), n_total_(graph.n_total), n_groups_(n_groups) {
    for (at::Tensor* tensor : {&graph_.species, &graph_.sender, &graph_.row_ptr, &graph_.edge_vector})
      *tensor = recordable(*tensor, model.device());
    owned_species_ = graph_.species.narrow(0, 0, n_owned_);
    edge_vector_ = graph_.edge_vector.to(model.dtype());  // cast only now: the caller formed the difference of positions in float64
  }

  /// Readout channels summed over layers, [n_owned, M, K]; records the segments.
  at::Tensor forward() {
    edges_ = [&] {
      const at::NoGradGuard no_grad;
      return model_.edges(edge_vector_);
    }();
    // One leaf per group: a single backward of sum_m E_m leaves each member's own adjoint in its own group.
    radial_ = leaf(edges_.radial.unsqueeze(1).expand({-1, n_groups_, -1}));
    sh_ = leaf(edges_.sh.unsqueeze(1).expand({-1, n_groups_, -1}));

    Model::Nodes nodes = [&] {
      const at::NoGradGuard no_grad;  // functions of the species alone
      return model_.embed(graph_.species);
    }();
    nodes.h = nodes.h.narrow(0, 0, n_owned_);
    at::Tensor out;
    const int64_t n_layers = model_.metadata().n_layers;
    for (int64_t t = 0; t < n_layers; ++t) {
      Segment segment;
      segment.h = t == 0 ? nodes.h : leaf(nodes.h);
      segment.g = t == 0 ? nodes.g : leaf(with_ghosts(nodes.g));
      segment.result = model_.layer(t, segment.h, segment.g, radial_, sh_, graph_.sender, graph_.row_ptr, owned_species_);
      nodes = segment.result.nodes;
      const at::Tensor part = segment.result.out.detach();
      out = out.defined() ? out + part : part;
      segments_.push_back(std::move(segment));
    }
    return out;
  }

  /// dE/d edge_vector [E, G, 3], from bar_out = dE/d out, the same for every layer. Frees each segment's tape when done with it.
  at::Tensor backward(const at::Tensor& bar_out) {
    at::Tensor bar_h, bar_g;  // of the nodes that the segment at hand handed on; undefined after the last layer
    at::Tensor bar_radial, bar_sh;  // summed over segments
    for (; !segments_.empty(); segments_.pop_back()) {
      const bool first = segments_.size() == 1;
      const Segment& segment = segments_.back();
      const auto bars = transpose(segment, bar_h, bar_g, bar_out, first);
      const at::NoGradGuard no_grad;
      bar_radial = sum(bar_radial, bars[0]);
      bar_sh = sum(bar_sh, bars[1]);
      if (first) continue;
      bar_h = bars[2];
      at::Tensor rows = bars[3].defined() ? bars[3].contiguous() : at::zeros_like(segment.g);
      halo_.reverse(rows);
      bar_g = rows.narrow(0, 0, n_owned_);
    }
    const at::NoGradGuard no_grad;
    return model_.edges_vjp(edge_vector_, edges_, bar_radial.defined() ? bar_radial : at::zeros_like(radial_),
                            bar_sh.defined() ? bar_sh : at::zeros_like(sh_));
  }

  const at::Tensor& owned_species() const { return owned_species_; }
  const Graph& graph() const { return graph_; }  ///< on the model's device

 private:
  at::Tensor with_ghosts(const at::Tensor& owned) {
    const at::NoGradGuard no_grad;
    at::Tensor rows = owned.detach();
    if (n_total_ > n_owned_) {
      rows = at::empty({n_total_, owned.size(1)}, owned.options());
      rows.narrow(0, 0, n_owned_).copy_(owned);
    }
    halo_.forward(rows);
    return rows;
  }

  /// Adjoints of radial, sh and, but for the first layer, h and g; undefined where nothing depends on them.
  std::vector<at::Tensor> transpose(const Segment& segment, const at::Tensor& bar_h, const at::Tensor& bar_g, const at::Tensor& bar_out,
                                    bool first) const {
    std::vector<at::Tensor> outputs, bars;
    const auto add = [&](const at::Tensor& output, const at::Tensor& bar) {
      if (!bar.defined() || !output.requires_grad() || output.numel() == 0) return;
      outputs.push_back(output);
      bars.push_back(bar);
    };
    add(segment.result.out, bar_out);
    add(segment.result.nodes.h, bar_h);
    add(segment.result.nodes.g, bar_g);
    std::vector<at::Tensor> inputs = {radial_, sh_};
    if (!first) inputs.insert(inputs.end(), {segment.h, segment.g});
    if (outputs.empty()) return std::vector<at::Tensor>(inputs.size());  // no atoms here
    return torch::autograd::grad(outputs, inputs, bars, /*retain_graph=*/false, /*create_graph=*/false, /*allow_unused=*/true);
  }

  const Model& model_;
  HaloExchange& halo_;
  Graph graph_;
  const int64_t n_owned_, n_total_, n_groups_;
  at::Tensor owned_species_, edge_vector_;
  at::Tensor radial_, sh_;
  Model::Edges edges_;
  std::vector<Segment> segments_;
};

at::Tensor to_host(const at::Tensor& tensor) { return tensor.to(at::kCPU, at::kDouble).contiguous(); }

}  // namespace

Prediction predict(const Model& model, const Graph& graph, HaloExchange& halo, const Request& request) {
  // A caller may sit in inference mode or under no_grad; the chain needs autograd, and leaves the caller's mode as it was.
  const c10::InferenceMode recording(false);
  const at::AutoGradMode enable_grad(true);
  const int64_t M = model.metadata().n_members;
  const int64_t G = request.members ? M : 1;

  Chain chain(model, graph, halo, G);
  const at::Tensor out = leaf(chain.forward());
  const at::Tensor node_energy = model.readout(out, chain.owned_species());

  // G = M: sum_m E_m, whose groups are the members. G = 1: the one group collects the mean over members.
  const at::Tensor seed = at::full_like(node_energy, G == M ? 1.0 : 1.0 / static_cast<double>(M));
  const at::Tensor bar_out = torch::autograd::grad({node_energy}, {out}, {seed})[0];
  const at::Tensor edge_grad = chain.backward(bar_out);

  const at::NoGradGuard no_grad;
  Prediction prediction;
  prediction.node_energy = to_host(node_energy.detach());
  accumulate_edges(chain.graph(), edge_grad, request.atom_virial, prediction);
  if (request.uncertainty) {
    const Model::Uncertainty spread = model.uncertainty(out.detach(), chain.owned_species());
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
  const at::NoGradGuard no_grad;
  const auto column = [&](int k) { return six.select(-1, k).to(at::kDouble); };  // xx, yy, zz, xy, xz, yz
  // Pivots of L D L^T: no determinant of six products, whose terms cancel.
  const at::Tensor d0 = column(0), xy = column(3), xz = column(4);
  const at::Tensor d1 = column(1) - xy * xy / d0, yz = column(5) - xy * xz / d0;
  const at::Tensor d2 = column(2) - xz * xz / d0 - yz * yz / d1;
  return d0.log() + d1.log() + d2.log();
}

}  // namespace race
