#include "race/graph.h"

#include <ATen/core/grad_mode.h>

#include <utility>

#include "race/error.h"
#include "recordings.h"

namespace race {
namespace {

std::string shape(const at::Tensor& tensor) {
  std::string text = std::string(c10::toString(tensor.scalar_type())) + " [";
  for (int64_t k = 0; k < tensor.dim(); ++k)
    text += (k ? ", " : "") + std::to_string(tensor.size(k));
  return text + "]";
}

void check_tensor(const char* name, const at::Tensor& tensor, at::ScalarType dtype,
                  std::vector<int64_t> sizes) {
  if (!tensor.defined()) throw Error(std::string("graph: ") + name + " is missing");
  if (tensor.scalar_type() == dtype && tensor.sizes() == at::IntArrayRef(sizes)) return;
  throw Error(std::string("graph: ") + name + "; expected " +
              shape(at::empty(sizes, at::TensorOptions().dtype(dtype))) + ", got " + shape(tensor));
}

void check_range(const char* name, const at::Tensor& tensor, int64_t end) {
  if (tensor.numel() == 0) return;
  const int64_t low = tensor.min().item<int64_t>(), high = tensor.max().item<int64_t>();
  if (low < 0 || high >= end)
    throw Error(std::string("graph: ") + name + "; expected values in [0, " + std::to_string(end) +
                "), got " + std::to_string(low < 0 ? low : high));
}

}  // namespace

Topology::Topology(const Graph& graph, at::Device device)
    : recordings_(std::make_shared<Recordings>()) {
  neighbors_.n_owned = graph.n_owned;
  neighbors_.n_total = graph.n_total;
  const auto copy = [&](const at::Tensor& t) {
    return t.to(device, t.scalar_type(), /*non_blocking=*/false, /*copy=*/true);
  };
  neighbors_.species = copy(graph.species);
  neighbors_.sender = copy(graph.sender);
  neighbors_.row_ptr = copy(graph.row_ptr);
}

Graph Topology::at(at::Tensor edge_vector) const {
  if (edge_vector.dim() != 2 || edge_vector.size(0) != n_edges() || edge_vector.size(1) != 3)
    throw Error("graph: edge_vector; expected one row of three for each of the " +
                std::to_string(n_edges()) + " edges of the neighbour list, got " +
                shape(edge_vector) + "; make a new Topology if the list has changed");
  Graph graph = neighbors_;
  graph.edge_vector = std::move(edge_vector);
  return graph;
}

at::Tensor Topology::edge_vectors(const at::Tensor& positions, double unit) const {
  const at::NoGradGuard no_grad;
  if (positions.dim() != 2 || positions.size(0) != n_total() || positions.size(1) != 3)
    throw Error("graph: positions; expected one row of three for each of the " +
                std::to_string(n_total()) + " rows, got " + shape(positions));
  if (!receiver_.defined())
    receiver_ = at::repeat_interleave(neighbors_.row_ptr.diff(), std::optional<int64_t>(n_edges()));
  const at::Tensor here =
      positions.to(receiver_.device(), at::kDouble, /*non_blocking=*/positions.is_pinned());
  at::Tensor vector = here.index_select(0, neighbors_.sender).sub_(here.index_select(0, receiver_));
  return unit == 1 ? vector : vector.mul_(unit);
}

void check(const Graph& graph, int64_t n_elements) {
  if (graph.n_owned < 0 || graph.n_total < graph.n_owned)
    throw Error("graph: expected 0 <= n_owned <= n_total, got " + std::to_string(graph.n_owned) +
                " and " + std::to_string(graph.n_total));
  const int64_t n_edges =
      graph.sender.defined() && graph.sender.dim() == 1 ? graph.sender.size(0) : 0;
  check_tensor("species", graph.species, at::kLong, {graph.n_total});
  check_tensor("sender", graph.sender, at::kLong, {n_edges});
  check_tensor("edge_vector", graph.edge_vector, at::kDouble, {n_edges, 3});
  check_tensor("row_ptr", graph.row_ptr, at::kLong, {graph.n_owned + 1});
  check_range("species", graph.species, n_elements);
  check_range("sender", graph.sender, graph.n_total);
  const at::Tensor counts = graph.row_ptr.diff();
  if (graph.row_ptr[0].item<int64_t>() != 0 ||
      graph.row_ptr[graph.n_owned].item<int64_t>() != n_edges ||
      (counts.numel() > 0 && counts.min().item<int64_t>() < 0))
    throw Error("graph: row_ptr; expected it to rise from 0 to the number of edges, " +
                std::to_string(n_edges));
}

}  // namespace race
