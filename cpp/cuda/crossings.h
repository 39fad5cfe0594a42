#pragma once
// The only ways between host and device in these files, and how often they were taken: a step must
// not wait for the device, nor send it tables, between two changes of the neighbour list.
#include <atomic>
#include <cstdint>
#include <cstring>
#include <vector>

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>

namespace race::cuda {

struct Crossings {
  std::atomic<int64_t> uploads{0}, reads{0};
};
inline Crossings crossings;

/// Copies plain data to a device, as bytes.
template <class T>
at::Tensor upload(const std::vector<T>& values, at::Device device) {
  ++crossings.uploads;
  const at::Tensor host = at::empty({static_cast<int64_t>(values.size() * sizeof(T))},
                                    at::TensorOptions().dtype(at::kByte));
  if (!values.empty())
    std::memcpy(host.mutable_data_ptr(), values.data(), values.size() * sizeof(T));
  return host.to(device);
}

/// Waits for the device, and returns a tensor's numbers on the host.
inline at::Tensor read_back(const at::Tensor& t) {
  ++crossings.reads;
  return t.cpu();
}

}  // namespace race::cuda
