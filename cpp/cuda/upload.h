#pragma once
// Copies plain data to a device, as bytes.
#include <cstring>
#include <vector>

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>

namespace race::cuda {

template <class T>
at::Tensor upload(const std::vector<T>& values, at::Device device) {
  const at::Tensor host = at::empty({static_cast<int64_t>(values.size() * sizeof(T))},
                                    at::TensorOptions().dtype(at::kByte));
  if (!values.empty())
    std::memcpy(host.mutable_data_ptr(), values.data(), values.size() * sizeof(T));
  return host.to(device);
}

}  // namespace race::cuda
