#pragma once
// Results of derivatives that a mask leaves out. A Function of autograd cannot return undefined
// tensors, so these results are left out of its list and put back behind it.
#include <array>
#include <optional>

#include <ATen/core/Tensor.h>
#include <torch/csrc/autograd/custom_function.h>

namespace race {

/// The tensor, or no value if it is undefined.
inline std::optional<at::Tensor> optional(const at::Tensor& t) {
  return t.defined() ? std::optional<at::Tensor>(t) : std::nullopt;
}

/// An uninitialised tensor like t, or an undefined one if it is not wanted or t is undefined.
inline at::Tensor empty_if(bool wanted, const at::Tensor& t) {
  return wanted && t.defined() ? t.new_empty(t.sizes()) : at::Tensor();
}

/// The defined ones of the results, in their order.
template <class... Tensors>
torch::autograd::variable_list only_defined(const std::tuple<Tensors...>& results) {
  torch::autograd::variable_list list;
  const auto add = [&list](const at::Tensor& t) {
    if (t.defined()) list.push_back(t);
  };
  std::apply([&add](const auto&... each) { (add(each), ...); }, results);
  return list;
}

/// The inverse: the k-th result is the next of the list if the mask has it, else undefined.
template <size_t N>
std::array<at::Tensor, N> put_back(const torch::autograd::variable_list& list,
                                   const std::array<bool, N>& mask) {
  std::array<at::Tensor, N> results;
  for (size_t k = 0, next = 0; k < N; ++k)
    if (mask[k]) results[k] = list[next++];
  return results;
}

/// The mask in a form that a context of autograd can save.
template <size_t N>
c10::List<bool> saved(const std::array<bool, N>& mask) {
  c10::List<bool> list;
  for (const bool wanted : mask) list.push_back(wanted);
  return list;
}

template <size_t N>
std::array<bool, N> restored(const c10::List<bool>& list) {
  std::array<bool, N> mask{};
  for (size_t k = 0; k < N; ++k) mask[k] = list[k];
  return mask;
}

}  // namespace race
