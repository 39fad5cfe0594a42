// Python's door to librace. Importing race._race also registers the torch operators race::*.
#include <torch/extension.h>

PYBIND11_MODULE(_race, m) { m.doc() = "librace: fused operators and the runtime of compiled models"; }
