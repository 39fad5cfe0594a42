#include "race/model.h"

#include <algorithm>

#include "race/allocator.h"
#include "race/error.h"
#include "segments.h"
#include "selftest.h"

namespace race {
namespace {

const std::vector<std::string> segment_names = {"edges",       "edges_vjp",   "embed",
                                                "layer",       "layer_vjp",   "readout",
                                                "readout_vjp", "uncertainty", "virial_cov"};

// Segments for a heat flux; artifacts of earlier exports lack them.
const std::vector<std::string> tangent_names = {"edges_jvp", "layer_jvp", "layer_power"};

}  // namespace

struct Model::State {
  explicit State(const Artifact& artifact) : segments(artifact) {}

  Segments segments;
  Metadata metadata;
  std::string sha256;
  at::Device device = at::kCPU;
  at::ScalarType dtype = at::kFloat;

  template <typename... Inputs>
  std::vector<at::Tensor> call(const char* segment, Inputs&&... inputs) const {
    return segments.call(segment, {c10::IValue(std::forward<Inputs>(inputs))...});
  }
};

Model Model::load(const Artifact& artifact, at::Device device, std::optional<at::ScalarType> dtype,
                  bool selftest) {
  const std::string& name = artifact.name;
  if (device.is_cpu()) keep_memory();
  auto state = std::make_shared<State>(artifact);
  state->metadata = parse_metadata(state->segments.text("metadata.json"), name);
  state->sha256 = artifact.sha256;
  state->dtype = dtype.value_or(state->metadata.dtype == "float64" ? at::kDouble : at::kFloat);
  state->device = device;
  if (state->dtype != at::kFloat && state->dtype != at::kDouble)
    throw Error(name + ": a model runs in float32 or float64, not in " +
                std::string(c10::toString(state->dtype)));

  try {
    state->segments.prepare(device, state->dtype, state->metadata.keep_float64);
    for (const auto& segment : segment_names)
      if (!state->segments.has(segment)) throw Error("it has no segment " + segment);
  } catch (const std::exception& error) {
    throw Error(name + ": cannot prepare the model on " + device.str() + " (" + reason_of(error) +
                ")");
  }
  const std::string selftest_json = selftest ? state->segments.text("selftest.json") : "";
  const Model model(std::move(state));
  if (!selftest) return model;
  try {
    replay_selftest(model, selftest_json, name);
  } catch (const Error&) {
    throw;
  } catch (const std::exception& error) {
    throw Error(name + ": the model does not run on " + device.str() + " (" + reason_of(error) +
                "); export it with --portable");
  }
  return model;
}

Model Model::load(const std::string& path, at::Device device, std::optional<at::ScalarType> dtype,
                  bool selftest, const std::string& expected_sha256) {
  return load(read_artifact(path, expected_sha256), device, dtype, selftest);
}

const Metadata& Model::metadata() const { return state_->metadata; }
const std::string& Model::sha256() const { return state_->sha256; }
at::Device Model::device() const { return state_->device; }
at::ScalarType Model::dtype() const { return state_->dtype; }

int64_t Model::comm_width_max() const {
  const auto& widths = state_->metadata.halo_widths;
  return widths.empty() ? 0 : *std::max_element(widths.begin(), widths.end());
}

Model::Edges Model::edges(const at::Tensor& edge_vector) const {
  const auto parts = state_->call("edges", edge_vector);
  return {parts.at(0), parts.at(1), parts.at(2), parts.at(3)};
}

at::Tensor Model::edges_vjp(const at::Tensor& edge_vector, const Edges& edges,
                            const at::Tensor& bar_radial, const at::Tensor& bar_sh) const {
  return state_
      ->call("edges_vjp", edge_vector, edges.radial_grad, edges.sh_grad, bar_radial, bar_sh)
      .at(0);
}

bool Model::has_tangents() const {
  return std::all_of(tangent_names.begin(), tangent_names.end(),
                     [this](const std::string& name) { return state_->segments.has(name); });
}

Model::EdgeRates Model::edges_jvp(const at::Tensor& edge_vector, const at::Tensor& rate) const {
  const auto parts = state_->call("edges_jvp", edge_vector, rate);
  return {parts.at(0), parts.at(1)};
}

at::Tensor Model::embed(const at::Tensor& species) const {
  return state_->call("embed", species).at(0);
}

Model::Layer Model::layer(int64_t t, const at::Tensor& h, const at::Tensor& g,
                          const Neighbors& neighbors) const {
  const auto& [radial, sh, sender, row_ptr, species] = neighbors;
  const auto parts = state_->call("layer", t, h, g, radial, sh, sender, row_ptr, species);
  return {parts.at(0), parts.at(1), parts.at(2), parts.at(3)};
}

Model::LayerVjp Model::layer_vjp(int64_t t, const at::Tensor& g, const Neighbors& neighbors,
                                 const at::Tensor& z, const at::Tensor& bar_energy,
                                 const at::Tensor& bar_h, const at::Tensor& bar_g) const {
  const auto& [radial, sh, sender, row_ptr, species] = neighbors;
  const auto parts = state_->call("layer_vjp", t, g, radial, sh, sender, row_ptr, species, z,
                                  bar_energy, bar_h, bar_g);
  return {parts.at(0), parts.at(1), parts.at(2), parts.at(3)};
}

Model::LayerRates Model::layer_jvp(int64_t t, const at::Tensor& dh, const at::Tensor& dg,
                                   const at::Tensor& dradial, const at::Tensor& dsh,
                                   const at::Tensor& g, const Neighbors& neighbors,
                                   const at::Tensor& z) const {
  const auto& [radial, sh, sender, row_ptr, species] = neighbors;
  const auto parts = state_->call("layer_jvp", t, dh, dg, dradial, dsh, g, radial, sh, sender,
                                  row_ptr, species, z);
  return {parts.at(0), parts.at(1)};
}

at::Tensor Model::layer_power(int64_t t, const at::Tensor& dg, const Neighbors& neighbors,
                              const at::Tensor& z, const at::Tensor& bar_energy,
                              const at::Tensor& bar_h, const at::Tensor& bar_g) const {
  const auto& [radial, sh, sender, row_ptr, species] = neighbors;
  return state_
      ->call("layer_power", t, dg, radial, sh, sender, row_ptr, species, z, bar_energy, bar_h,
             bar_g)
      .at(0);
}

at::Tensor Model::readout(const at::Tensor& out, const at::Tensor& species) const {
  return state_->call("readout", out, species).at(0);
}

at::Tensor Model::readout_vjp(const at::Tensor& species, const at::Tensor& bar_energy) const {
  return state_->call("readout_vjp", species, bar_energy).at(0);
}

Model::Uncertainty Model::uncertainty(const at::Tensor& out, const at::Tensor& species) const {
  const auto parts = state_->call("uncertainty", out, species);
  return {parts.at(0), parts.at(1), parts.at(2)};
}

at::Tensor Model::grade(const at::Tensor& z, const at::Tensor& species) const {
  return state_->call("grade", z, species).at(0);
}

at::Tensor Model::virial_cov(const at::Tensor& out) const {
  return state_->call("virial_cov", out).at(0);
}

}  // namespace race
