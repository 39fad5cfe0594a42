#include "selftest.h"

#include <torch/version.h>

#include <cstdio>

#include "json.h"
#include "race/error.h"
#include "race/predict.h"

namespace race {
namespace {

at::Tensor floats(const Json& json, at::IntArrayRef shape) {
  const std::vector<double> values = json.numbers();
  return at::tensor(values, at::kDouble).reshape(shape);
}

at::Tensor integers(const Json& json) { return at::tensor(json.integers(), at::kLong); }

/// Periodic images that check the widths of exchanges: callers size their buffers by metadata.json.
class WatchedHalo final : public HaloExchange {
 public:
  WatchedHalo(at::Tensor owner, const Metadata& metadata, const std::string& name)
      : images_(std::move(owner)), widths_(metadata.halo_widths), name_(name) {}

  void forward(at::Tensor& rows) override {
    if (layer_ >= widths_.size() || rows.size(1) != widths_[layer_])
      throw Error(
          name_ +
          ": halo_widths in metadata.json do not fit the model: the exchange before layer " +
          std::to_string(layer_ + 1) + " has " + std::to_string(rows.size(1)) +
          " numbers per atom; export the model again");
    ++layer_;
    images_.forward(rows);
  }
  void reverse(at::Tensor& rows) override { images_.reverse(rows); }

 private:
  PeriodicFoldHalo images_;
  const std::vector<int64_t>& widths_;
  const std::string& name_;
  std::size_t layer_ = 0;
};

std::string short_number(double value) {
  char text[32];
  std::snprintf(text, sizeof text, "%.3g", value);
  return text;
}

}  // namespace

void replay_selftest(const Model& model, const std::string& json, const std::string& name) {
  const Json root = Json::parse(json, name + ", selftest.json");
  const std::string dtype = model.dtype() == at::kDouble ? "float64" : "float32";
  const double tolerance = root.at("tolerance").at(dtype).number();
  const int64_t M = model.metadata().n_members;

  for (const Json& item : root.at("cases").array()) {
    const std::string label = item.at("name").string();
    Graph graph;
    graph.species = integers(item.at("species"));
    graph.edge_vector = floats(item.at("edge_vector"), {-1, 3});
    graph.sender = integers(item.at("sender"));
    graph.row_ptr = integers(item.at("row_ptr"));
    graph.n_total = graph.species.size(0);
    graph.n_owned = graph.row_ptr.size(0) - 1;
    check(graph, static_cast<int64_t>(model.metadata().elements.size()));

    // Neighbours are ghosts, so that the halo path is replayed too.
    WatchedHalo halo(integers(item.at("owner")), model.metadata(), name);
    const Prediction got = predict(model, graph, halo, {.members = true, .uncertainty = true});
    at::Tensor forces = got.forces.reshape({graph.n_total, M * 3}).clone();
    halo.reverse(forces);
    forces = forces.narrow(0, 0, graph.n_owned).reshape({-1});

    const std::pair<const char*, at::Tensor> quantities[] = {
        {"node_energy", got.node_energy},
        {"forces", forces},
        {"virial", got.virial},
        {"node_energy_var", got.node_energy_var},
        {"cov_aleatoric", got.cov_aleatoric},
        {"cov_epistemic", got.cov_epistemic},
        {"virial_cov", got.virial_cov},
    };
    for (const auto& [quantity, value] : quantities) {
      const Json& expected = item.at("expected").at(quantity);
      const at::Tensor reference = floats(expected.at("value"), {-1});
      if (reference.numel() != value.numel())
        throw Error(name + ": self-test '" + label + "' expects " +
                    std::to_string(reference.numel()) + " values of " + quantity +
                    ", the model gives " + std::to_string(value.numel()) +
                    "; export the model again");
      const double difference = (value.reshape({-1}) - reference).abs().max().item<double>();
      const double allowed = tolerance * expected.at("scale").number();
      if (!(difference <= allowed))  // NaN fails too
        throw Error(name + ": self-test failed, do not use this model here: " + quantity +
                    " of case '" + label + "' differs by " + short_number(difference) +
                    " (allowed " + short_number(allowed) + ") in " + dtype + " on " +
                    model.device().str() + " with torch " TORCH_VERSION ", exported with " +
                    model.metadata().torch_version);
    }
  }
}

}  // namespace race
