#pragma once
#include <cstdint>

namespace race::edge_basis {

// Numbers [n_edges, n_groups, n_components] of any strides: component k of group g of edge e is
// data[e edge + g group + k component].
template <class T>
struct EdgeRows {
  T* data;
  int64_t edge, group, component;
};

}  // namespace race::edge_basis
