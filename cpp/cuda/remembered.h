#pragma once
#include <vector>

#include <ATen/core/Tensor.h>

namespace race::cuda {

// Recognises a tensor while it lives and is not written to. A view is recognised by its base,
// because every narrow() makes another object. The weak reference keeps none of its data.
class Remembered {
 public:
  explicit Remembered(const at::Tensor& t)
      : impl_(owner(t).getIntrusivePtr()),
        version_(version(t)),
        data_(t.const_data_ptr()),
        sizes_(t.sizes().vec()),
        strides_(t.strides().vec()) {}
  bool is(const at::Tensor& t) const {
    return !impl_.expired() && impl_._unsafe_get_target() == owner(t).unsafeGetTensorImpl() &&
           version_ == version(t) && data_ == t.const_data_ptr() && t.sizes() == sizes_ &&
           t.strides() == strides_;
  }
  bool gone() const { return impl_.expired(); }

 private:
  static const at::TensorBase& owner(const at::TensorBase& t) {
    return t.is_view() ? t._base() : t;
  }
  static uint32_t version(const at::Tensor& t) {
    return t.unsafeGetTensorImpl()->version_counter().current_version();
  }
  c10::weak_intrusive_ptr<c10::TensorImpl> impl_;
  uint32_t version_;
  const void* data_;
  std::vector<int64_t> sizes_, strides_;
};

}  // namespace race::cuda
