#pragma once

#include <ATen/ATen.h>

#include <cstdint>

namespace race {

/// The part of a structure that one domain (one process, or the whole molecule) works on.
///
/// Rows [0, n_owned) are the atoms this domain owns; rows [n_owned, n_total) are ghosts: copies of
/// atoms owned elsewhere, or periodic images of its own. The domain holds exactly the edges whose
/// *receiver* it owns, so one r_max of ghosts is enough for any number of layers. Both n_owned = 0
/// and no edges at all are valid.
///
/// Tensors may live on any device; predict() moves them to the model's.
struct Graph {
  int64_t n_owned = 0;
  int64_t n_total = 0;
  at::Tensor species;      ///< int64 [n_total], index into Metadata::elements; ghosts included
  at::Tensor edge_vector;  ///< float64 [n_edges, 3], r_sender - r_receiver + shift @ cell,
                           ///< Angstrom; the caller ensures |edge_vector| < r_max: nothing is
                           ///< checked per edge
  at::Tensor sender;       ///< int64 [n_edges], row in [0, n_total)
  at::Tensor row_ptr;  ///< int64 [n_owned + 1], CSR: the edges received by row j are row_ptr[j] ..
                       ///< row_ptr[j + 1] - 1
};

/// Checks shapes, dtypes and index ranges of `graph`: O(n_edges), for tests and for callers at a
/// border (Python). Throws race::Error naming the field, the expected and the actual value.
void check(const Graph& graph, int64_t n_elements);

}  // namespace race
