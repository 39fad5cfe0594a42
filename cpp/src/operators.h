#pragma once
// Registration of operators, and calls to them through the dispatcher, which chooses the device.

#include <string>

#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/csrc/autograd/autograd_not_implemented_fallback.h>
#include <torch/library.h>

namespace race {

/// One operator: a schema, and a function for each dispatch key, given as TORCH_FN(function).
/// Kernels for CUDA tensors register themselves (cpp/cuda/register.h).
class Operator {
 public:
  Operator(torch::Library* library, const char* schema)
      : library_(library), name_(schema, std::string(schema).find('(')) {
    library_->def(schema);
  }

  template <class F>
  Operator& cpu(F function) {
    return add(c10::DispatchKey::CPU, function);
  }
  /// Registers operations of torch, for every device that has no kernel of its own.
  template <class F>
  Operator& portable(F function) {
    return add(c10::DispatchKey::CompositeExplicitAutograd, function);
  }
  template <class F>
  Operator& autograd(F function) {
    return add(c10::DispatchKey::Autograd, function);
  }
  Operator& not_differentiable() {
    library_->impl(name_.c_str(),
                   torch::dispatch(c10::DispatchKey::Autograd,
                                   torch::autograd::autogradNotImplementedFallback()));
    return *this;
  }
  /// Registers the function that gives shapes without data.
  template <class F>
  Operator& meta(F function) {
    return add(c10::DispatchKey::Meta, function);
  }

 private:
  template <class F>
  Operator& add(c10::DispatchKey key, F function) {
    library_->impl(name_.c_str(), torch::dispatch(key, torch::CppFunction(function)));
    return *this;
  }

  torch::Library* library_;
  std::string name_;
};

/// Calls define(library) for the library in which a file registers its operators; `first` is one of
/// them. The Python module and the LAMMPS plugin each carry librace, and one process may load both.
/// The first registers, for good: the handle is never destroyed, and the libraries are linked
/// nodelete.
template <class F>
bool register_operators(const char* first, const char* file, uint32_t line, F define) {
  if (c10::Dispatcher::singleton().findSchema({first, ""})) return false;
  define(new torch::Library(torch::Library::FRAGMENT, "race", std::nullopt, file, line));
  return true;
}

/// A registered operator, to be called through the dispatcher; F is the type of its kernel.
template <class F>
auto find_operator(const char* name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<F>();
}

}  // namespace race
