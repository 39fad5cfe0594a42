#pragma once
#include <c10/util/Exception.h>

// Argument errors name the argument, what was expected and what came; race::conv's checks on the CPU say the same.
#define RACE_CHECK(condition, name, expected, ...) \
  TORCH_CHECK_VALUE(condition, "race::conv: ", name, ": expected ", expected, ", got ", __VA_ARGS__)
