#pragma once
#include <c10/util/Exception.h>

// Arguments of operators: the error (ValueError in Python) is one line that names the operator, the
// argument, the expected and the received value.
#define RACE_CHECK(op, condition, name, expected, ...)                                      \
  TORCH_CHECK_VALUE(condition, "race::", op, ": ", name, ": expected ", expected, ", got ", \
                    __VA_ARGS__)
