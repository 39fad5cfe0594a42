#include "race/memory.h"

#include <c10/core/Allocator.h>

#include <algorithm>
#include <cmath>

#include "race/error.h"

namespace race {

// Torch tells its profiler of every allocation and release; this is a profiler that only counts.
class PeakMemory::Watch final : public c10::MemoryReportingInfoBase {
 public:
  explicit Watch(c10::Device device) : device_(device) {}
  void reportMemoryUsage(void*, int64_t change, std::size_t, std::size_t,
                         c10::Device device) override {
    if (device.type() != device_.type()) return;
    now_ += change;
    peak_ = std::max(peak_, now_);
  }
  bool memoryProfilingEnabled() const override { return true; }
  int64_t peak() const { return peak_; }

 private:
  c10::Device device_;
  int64_t now_ = 0, peak_ = 0;
};

PeakMemory::PeakMemory(c10::Device device)
    : watch_(std::make_shared<Watch>(device)), guard_(c10::DebugInfoKind::PROFILER_STATE, watch_) {}

int64_t PeakMemory::bytes() const { return watch_->peak(); }

namespace {

constexpr int64_t small = 128,
                  large = 256;  // atoms of the two evaluations that define a line: above them
                                // kernels' buffers stop growing
constexpr int64_t atoms_per_small_part = 2;  // atoms of a small part

/// Ghosts without owners: their features are zero.
class NoHalo final : public HaloExchange {
 public:
  explicit NoHalo(int64_t n_owned) : n_owned_(n_owned) {}
  void forward(at::Tensor& rows) override {
    rows.narrow(0, n_owned_, rows.size(0) - n_owned_).zero_();
  }
  void reverse(at::Tensor&) override {}

 private:
  int64_t n_owned_;
};

/// Atoms at arbitrary places: the results have no meaning, but all sizes are right.
Graph synthetic(int64_t n_owned, double ghosts_per_atom, double edges_per_atom, double r_max,
                int64_t n_elements) {
  const auto count = [&](double per_atom) {
    return static_cast<int64_t>(std::ceil(per_atom * static_cast<double>(n_owned)));
  };
  Graph graph;
  graph.n_owned = n_owned;
  graph.n_total = n_owned + count(ghosts_per_atom);
  const int64_t n_edges = count(edges_per_atom);
  graph.species = at::arange(graph.n_total, at::kLong).remainder(n_elements);
  graph.sender = at::arange(n_edges, at::kLong).mul(7).remainder(graph.n_total);
  graph.row_ptr = at::arange(n_owned + 1, at::kLong).mul(n_edges).div(n_owned, "floor");
  const at::Tensor angle = at::arange(n_edges, at::kDouble);
  const at::Tensor r = angle.remainder(11).mul(0.05).add(0.4).mul(r_max);  // 0.4 to 0.9 r_max
  graph.edge_vector = at::stack({angle.cos(), angle.sin(), angle.mul(0.3).cos()}, 1);
  graph.edge_vector =
      graph.edge_vector / graph.edge_vector.norm(2, 1, /*keepdim=*/true) * r.unsqueeze(1);
  return graph;
}

}  // namespace

// Ratios are bounded to keep the evaluations small: domains with larger ones are counted by their
// ghosts or edges.
MemoryEstimate::MemoryEstimate(const Model& model, double ghosts_per_atom, double edges_per_atom,
                               const Request& request, bool in_parts)
    : ghosts_per_atom_(std::clamp(ghosts_per_atom, 0.01, 8.0)),
      edges_per_atom_(std::clamp(edges_per_atom, 1.0, 500.0)) {
  const auto measured = [&](int64_t n_atoms, int64_t n_parts) {
    const Graph graph =
        synthetic(n_atoms, ghosts_per_atom_, edges_per_atom_, model.metadata().r_max,
                  static_cast<int64_t>(model.metadata().elements.size()));
    NoHalo halo(n_atoms);
    Request of_parts = request;
    of_parts.n_parts = n_parts;
    const PeakMemory peak(model.device());
    predict(model, graph, halo, of_parts);
    return static_cast<double>(peak.bytes());
  };
  const auto line = [](double at_small, double at_large) {
    const double slope = (at_large - at_small) / static_cast<double>(large - small);
    return Line{std::max(0.0, at_large - slope * large), slope};
  };
  one_part_ = line(measured(small, 1), measured(large, 1));
  if (!in_parts) return;
  two_parts_ = line(measured(small, 2), measured(large, 2));
  small_parts_ = line(measured(small, small / atoms_per_small_part),
                      measured(large, large / atoms_per_small_part));
  small_parts_->intercept =
      std::max(small_parts_->intercept,
               two_parts_->intercept);  // buffers that small parts do not fill
}

double MemoryEstimate::atoms(const Graph& graph) const {
  const auto n = [](int64_t count) { return static_cast<double>(count); };
  return std::max({n(graph.n_owned), n(graph.n_total - graph.n_owned) / ghosts_per_atom_,
                   n(graph.sender.size(0)) / edges_per_atom_});
}

// From two parts on the peak is the largest of several sums, each linear in 1 / n_parts. This
// function is convex: it lies below its chord.
double MemoryEstimate::bytes(const Graph& graph, int64_t n_parts) const {
  const auto at = [n = atoms(graph)](const Line& line) { return line.intercept + line.slope * n; };
  if (n_parts == 1) return at(one_part_);
  if (!two_parts_ || !small_parts_)
    throw Error("memory in parts: expected an estimate made for parts, got one without");
  return at(*small_parts_) +
         std::max(0.0, at(*two_parts_) - at(*small_parts_)) * 2 / static_cast<double>(n_parts);
}

int64_t MemoryEstimate::parts(const Graph& graph, double cap) const {
  if (bytes(graph, 1) <= cap) return 1;
  for (int64_t n_parts = 2; n_parts <= std::max<int64_t>(graph.n_owned, 2);
       n_parts += 1 + n_parts / 8)
    if (bytes(graph, n_parts) <= cap) return n_parts;
  return 0;
}

}  // namespace race
