#include "race/model.h"

// The only file that knows TorchScript: another payload (AOTInductor) would replace this one and
// python/race/deploy/export.py.

#include <torch/csrc/jit/runtime/graph_executor.h>
#include <torch/script.h>

#include <algorithm>
#include <sstream>

#include "race/allocator.h"
#include "race/error.h"
#include "selftest.h"

namespace race {
namespace {

const std::vector<std::string> segment_names = {"edges",       "edges_vjp",   "embed",
                                                "layer",       "layer_vjp",   "readout",
                                                "readout_vjp", "uncertainty", "virial_cov"};

/// The line of a C++ or TorchScript exception that says what went wrong: the first, but the last
/// below a TorchScript traceback.
std::string reason(const std::exception& error) {
  const auto* c10_error = dynamic_cast<const c10::Error*>(&error);
  std::string text = c10_error ? c10_error->what_without_backtrace() : error.what();
  text.erase(text.find_last_not_of(" \n") + 1);
  return text.find("Traceback of TorchScript") == std::string::npos
             ? text.substr(0, text.find('\n'))
             : text.substr(text.rfind('\n') + 1);
}

/// Casts and moves every parameter and buffer; those named in keep_float64 keep their precision.
void place(torch::jit::Module& module, at::Device device, at::ScalarType dtype,
           const std::vector<std::string>& keep_float64) {
  const auto move = [&](const std::string& name, at::Tensor tensor) {
    const bool keep =
        std::find(keep_float64.begin(), keep_float64.end(), name) != keep_float64.end();
    tensor.set_data(tensor.is_floating_point() && !keep ? tensor.to(device, dtype)
                                                        : tensor.to(device));
    tensor.set_requires_grad(false);
  };
  for (const auto& item : module.named_parameters()) move(item.name, item.value);
  for (const auto& item : module.named_buffers()) move(item.name, item.value);
}

}  // namespace

struct Model::State {
  torch::jit::Module module;
  Metadata metadata;
  std::string sha256;
  at::Device device = at::kCPU;
  at::ScalarType dtype = at::kFloat;
  std::map<std::string, torch::jit::Method> methods;

  /// Runs one segment. The interpreter takes no profile and fuses nothing: the first calls cost
  /// what later ones cost, and give the same numbers.
  template <typename... Inputs>
  c10::IValue call(const char* segment, Inputs&&... inputs) const {
    const torch::jit::GraphOptimizerEnabledGuard plain(false);
    torch::jit::Method method = methods.at(segment);
    return method({c10::IValue(std::forward<Inputs>(inputs))...});
  }
};

Model Model::load(const Artifact& artifact, at::Device device, std::optional<at::ScalarType> dtype,
                  bool selftest) {
  const std::string& name = artifact.name;
  if (device.is_cpu()) keep_memory();
  auto state = std::make_shared<State>();
  torch::jit::ExtraFilesMap extra = {{"metadata.json", ""}, {"selftest.json", ""}};
  try {
    std::istringstream stream(artifact.bytes);
    state->module = torch::jit::load(stream, at::Device(at::kCPU), extra);
  } catch (const std::exception& error) {
    throw Error(name + ": torch cannot load this artifact (" + reason(error) +
                "); export it again with this torch, or with --portable");
  }
  state->metadata = parse_metadata(extra["metadata.json"], name);
  state->sha256 = artifact.sha256;
  state->dtype = dtype.value_or(state->metadata.dtype == "float64" ? at::kDouble : at::kFloat);
  state->device = device;
  if (state->dtype != at::kFloat && state->dtype != at::kDouble)
    throw Error(name + ": a model runs in float32 or float64, not in " +
                std::string(c10::toString(state->dtype)));

  try {
    state->module.eval();
    place(state->module, device, state->dtype, state->metadata.keep_float64);
    const at::NoGradGuard no_grad;
    // Not frozen: `prepare` has made every constant, and an exception in a frozen method reads
    // functions that freezing has deleted.
    state->module.get_method("prepare")({});
    for (const auto& segment : segment_names)
      state->methods.emplace(segment, state->module.get_method(segment));
  } catch (const std::exception& error) {
    throw Error(name + ": cannot prepare the model on " + device.str() + " (" + reason(error) +
                ")");
  }
  const Model model(std::move(state));
  if (!selftest) return model;
  try {
    replay_selftest(model, extra["selftest.json"], name);
  } catch (const Error&) {
    throw;
  } catch (const std::exception& error) {
    throw Error(name + ": the model does not run on " + device.str() + " (" + reason(error) +
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
  const auto out = state_->call("edges", edge_vector).toTuple();
  const auto& parts = out->elements();
  return {parts.at(0).toTensor(), parts.at(1).toTensor(), parts.at(2).toTensor(),
          parts.at(3).toTensor()};
}

at::Tensor Model::edges_vjp(const at::Tensor& edge_vector, const Edges& edges,
                            const at::Tensor& bar_radial, const at::Tensor& bar_sh) const {
  return state_
      ->call("edges_vjp", edge_vector, edges.radial_grad, edges.sh_grad, bar_radial, bar_sh)
      .toTensor();
}

at::Tensor Model::embed(const at::Tensor& species) const {
  return state_->call("embed", species).toTensor();
}

Model::Layer Model::layer(int64_t t, const at::Tensor& h, const at::Tensor& g,
                          const Neighbors& neighbors) const {
  const auto& [radial, sh, sender, row_ptr, species] = neighbors;
  const auto out = state_->call("layer", t, h, g, radial, sh, sender, row_ptr, species).toTuple();
  const auto& parts = out->elements();
  return {parts.at(0).toTensor(), parts.at(1).toTensor(), parts.at(2).toTensor(),
          parts.at(3).toTensor()};
}

Model::LayerVjp Model::layer_vjp(int64_t t, const at::Tensor& g, const Neighbors& neighbors,
                                 const at::Tensor& z, const at::Tensor& bar_energy,
                                 const at::Tensor& bar_h, const at::Tensor& bar_g) const {
  const auto& [radial, sh, sender, row_ptr, species] = neighbors;
  const auto out = state_
                       ->call("layer_vjp", t, g, radial, sh, sender, row_ptr, species, z,
                              bar_energy, bar_h, bar_g)
                       .toTuple();
  const auto& parts = out->elements();
  return {parts.at(0).toTensor(), parts.at(1).toTensor(), parts.at(2).toTensor(),
          parts.at(3).toTensor()};
}

at::Tensor Model::readout(const at::Tensor& out, const at::Tensor& species) const {
  return state_->call("readout", out, species).toTensor();
}

at::Tensor Model::readout_vjp(const at::Tensor& species, const at::Tensor& bar_energy) const {
  return state_->call("readout_vjp", species, bar_energy).toTensor();
}

Model::Uncertainty Model::uncertainty(const at::Tensor& out, const at::Tensor& species) const {
  const auto result = state_->call("uncertainty", out, species).toTuple();
  const auto& parts = result->elements();
  return {parts.at(0).toTensor(), parts.at(1).toTensor(), parts.at(2).toTensor()};
}

at::Tensor Model::virial_cov(const at::Tensor& out) const {
  return state_->call("virial_cov", out).toTensor();
}

}  // namespace race
