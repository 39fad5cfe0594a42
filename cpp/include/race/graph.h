#pragma once

#include <ATen/ATen.h>

#include <cstdint>
#include <memory>

namespace race {

class Recordings;

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
                           ///< Angstrom. Edges of r_max and longer have radial weights of zero:
                           ///< a waste on a CPU, whose callers leave them out
  at::Tensor sender;       ///< int64 [n_edges], row in [0, n_total)
  at::Tensor row_ptr;  ///< int64 [n_owned + 1], CSR: the edges received by row j are row_ptr[j] ..
                       ///< row_ptr[j + 1] - 1
};

/// Who is whose neighbour in one domain: all of a graph but its edge vectors. It is on one device,
/// never changes, and is kept by the owner of the neighbour list from one change of that list to
/// the next. Operators recognise its tensors: what they derive from them (checks, edges by sender,
/// atoms by species) is made once, and a step neither uploads nor reads anything. Another list, or
/// another species of an atom, is another Topology.
///
/// It may have edges of r_max and longer, such as those of a list with a skin: their radial weights
/// are exactly zero.
class Topology {
 public:
  /// Copies the tensors of `graph`, whose edge vectors are not read, to `device`.
  Topology(const Graph& graph, at::Device device);

  int64_t n_owned() const { return neighbors_.n_owned; }
  int64_t n_total() const { return neighbors_.n_total; }
  int64_t n_edges() const { return neighbors_.sender.size(0); }

  /// The graph at a step. edge_vector: as in Graph, one row for each edge, on any device.
  /// @throws Error for another number of rows.
  Graph at(at::Tensor edge_vector) const;

  /// Edge vectors for at(), on the topology's device: unit times the difference of the rows'
  /// positions, float64 [n_total, 3] on any device. Ghosts are at their images. Nothing waits for
  /// the device if positions are there or in pinned memory.
  at::Tensor edge_vectors(const at::Tensor& positions, double unit = 1) const;

  Recordings& recordings() const { return *recordings_; }  ///< of predict(); see recorder.h

 private:
  Graph neighbors_;              ///< without edge vectors
  mutable at::Tensor receiver_;  ///< int64 [n_edges]; undefined until edge_vectors()
  std::shared_ptr<Recordings> recordings_;
};

/// Checks shapes, dtypes and index ranges of `graph`: O(n_edges), for tests and for callers at a
/// border (Python). Throws race::Error naming the field, the expected and the actual value.
void check(const Graph& graph, int64_t n_elements);

}  // namespace race
