#pragma once
#include <ATen/core/Tensor.h>
#include <c10/util/Exception.h>

// Arguments of operators: the error (ValueError in Python) is one line that names the operator, the
// argument, the expected and the received value.
#define RACE_CHECK(op, condition, name, expected, ...)                                      \
  TORCH_CHECK_VALUE(condition, "race::", op, ": ", name, ": expected ", expected, ", got ", \
                    __VA_ARGS__)

namespace race {

// `rows` must be undefined, or like the operand.
inline void check_like(const char* op, const char* name, const at::Tensor& rows,
                       const at::Tensor& like) {
  RACE_CHECK(op,
             !rows.defined() ||
                 (rows.sizes() == like.sizes() && rows.scalar_type() == like.scalar_type() &&
                  rows.device() == like.device()),
             name, c10::str(like.scalar_type(), " ", like.sizes(), " on ", like.device()),
             rows.scalar_type(), " ", rows.sizes(), " on ", rows.device());
}

}  // namespace race
