#pragma once

#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/library.h>

namespace race {

/// The library in which a file registers its operators, of which `first` is one. Module and LAMMPS
/// plugin each carry librace, and one process may load both: the first to come registers, for good
/// (the handle is never destroyed, and the libraries are linked nodelete); null for others.
inline torch::Library* claim_operators(const char* first, const char* file, uint32_t line) {
  if (c10::Dispatcher::singleton().findSchema({first, ""})) return nullptr;
  return new torch::Library(torch::Library::FRAGMENT, "race", std::nullopt, file, line);
}

/// Kernels are given as TORCH_FN(function).
template <class Function>
void add_kernel(torch::Library* library, c10::DispatchKey key, const char* name,
                Function function) {
  library->impl(name, torch::dispatch(key, torch::CppFunction(function)));
}

/// A registered operator, to be called through the dispatcher; F: the type of its kernel.
template <class F>
auto find_operator(const char* name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<F>();
}

}  // namespace race
