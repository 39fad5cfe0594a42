#include "segments.h"

#include <torch/csrc/jit/runtime/graph_executor.h>
#include <torch/script.h>

#include <algorithm>
#include <map>
#include <sstream>

#include "race/error.h"

namespace race {

struct Segments::State {
  torch::jit::Module module;
  torch::jit::ExtraFilesMap texts = {{"metadata.json", ""}, {"selftest.json", ""}};
  std::map<std::string, torch::jit::Method> methods;
};

std::string reason_of(const std::exception& error) {
  const auto* c10_error = dynamic_cast<const c10::Error*>(&error);
  std::string text = c10_error ? c10_error->what_without_backtrace() : error.what();
  text.erase(text.find_last_not_of(" \n") + 1);
  return text.find("Traceback of TorchScript") == std::string::npos
             ? text.substr(0, text.find('\n'))
             : text.substr(text.rfind('\n') + 1);
}

Segments::Segments(const Artifact& artifact) : state_(std::make_shared<State>()) {
  try {
    std::istringstream stream(artifact.bytes);
    state_->module = torch::jit::load(stream, at::Device(at::kCPU), state_->texts);
  } catch (const std::exception& error) {
    throw Error(artifact.name + ": torch cannot load this artifact (" + reason_of(error) +
                "); export it again with this torch, or with --portable");
  }
}

const std::string& Segments::text(const std::string& name) const { return state_->texts.at(name); }

void Segments::prepare(at::Device device, at::ScalarType dtype,
                       const std::vector<std::string>& keep_float64) {
  const auto move = [&](const std::string& name, const at::Tensor& tensor) {
    const bool keep =
        std::find(keep_float64.begin(), keep_float64.end(), name) != keep_float64.end();
    const at::Tensor moved =
        tensor.is_floating_point() && !keep ? tensor.to(device, dtype) : tensor.to(device);
    return moved.detach();
  };
  torch::jit::Module& module = state_->module;
  module.eval();
  for (auto part : module.named_modules()) {
    const std::string prefix = part.name.empty() ? "" : part.name + ".";
    for (const auto& item : part.value.named_attributes(/*recurse=*/false))
      if (item.value.isTensor())
        part.value.setattr(item.name, move(prefix + item.name, item.value.toTensor()));
  }
  const at::NoGradGuard no_grad;
  // Not frozen: `prepare` has made every constant, and an exception in a frozen method reads
  // functions that freezing has deleted.
  module.get_method("prepare")({});
  for (const auto& method : module.get_methods()) state_->methods.emplace(method.name(), method);
}

bool Segments::has(const std::string& segment) const { return state_->methods.contains(segment); }

std::vector<at::Tensor> Segments::call(const std::string& segment,
                                       std::vector<c10::IValue> inputs) const {
  // The interpreter takes no profile and fuses nothing: the first calls cost as much as later ones,
  // and give the same numbers.
  const torch::jit::GraphOptimizerEnabledGuard plain(false);
  torch::jit::Method method = state_->methods.at(segment);
  const c10::IValue out = method(std::move(inputs));
  if (out.isTensor()) return {out.toTensor()};
  std::vector<at::Tensor> tensors;
  for (const c10::IValue& part : out.toTupleRef().elements()) tensors.push_back(part.toTensor());
  return tensors;
}

}  // namespace race
