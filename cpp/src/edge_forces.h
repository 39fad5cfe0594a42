#pragma once

#include "race/predict.h"

namespace race {

/// dE/d edge_vector -> forces, virial and, if asked for, atom virials of `prediction` (see predict.h for shapes and signs).
/// edge_grad: [E, G, 3] in any dtype, on the device of the graph's tensors; the results are on the CPU. Sums in float64 and in a fixed order: the same bits at every call.
void accumulate_edges(const Graph& graph, const at::Tensor& edge_grad, bool atom_virial, Prediction& prediction);

}  // namespace race
