#pragma once
#include <ATen/core/Tensor.h>

namespace race::cuda {

// Knows a tensor again while it lives and is not written to. The weak reference keeps nothing of
// its data.
class Remembered {
 public:
  explicit Remembered(const at::Tensor& t)
      : impl_(t.getIntrusivePtr()), version_(version(t)), data_(t.const_data_ptr()) {}
  bool is(const at::Tensor& t) const {
    return !impl_.expired() && impl_._unsafe_get_target() == t.unsafeGetTensorImpl() &&
           version_ == version(t) && data_ == t.const_data_ptr();
  }
  bool gone() const { return impl_.expired(); }

 private:
  static uint32_t version(const at::Tensor& t) {
    return t.unsafeGetTensorImpl()->version_counter().current_version();
  }
  c10::weak_intrusive_ptr<c10::TensorImpl> impl_;
  uint32_t version_;
  const void* data_;
};

}  // namespace race::cuda
