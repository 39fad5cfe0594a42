#pragma once
#include <cstdint>

namespace race::product {

// One non-zero coefficient: it adds value a[a] b[b].
template <class T>
struct Entry {
  int32_t a, b;
  T value;
};

// The entries of one component of the result that share a weight: those up to entry `end`.
struct Run {
  int32_t path, end;
};

// A bilinear map of components, whose terms are weighted by path:
//   out[o] += sum over the runs r of o: weight[path_r] sum over the entries e of r: value a[a] b[b]
// Runs and entries follow each other in the order of o: its runs are runs[begin[o]] ..
// runs[begin[o + 1]], and the first run begins with entry 0.
template <class T>
struct BilinearMap {
  const int32_t* begin;  // [n_components + 1]
  const Run* runs;
  const Entry<T>* entries;
};

// The bilinear maps of P2 and P3 (race/product.h) and of their derivatives. If a bilinear map has
// an adjoint `bar`, the adjoint of one operand is another bilinear map, of bar and the other
// operand.
template <class T>
struct BilinearMaps {
  BilinearMap<T> second;        // P2 from (x, x)
  BilinearMap<T> second_back;   // adjoint of x from (that of P2, x)
  BilinearMap<T> third;         // P3 from (P2, x)
  BilinearMap<T> third_first;   // adjoint of P2 from (that of P3, x)
  BilinearMap<T> third_second;  // adjoint of x from (that of P3, P2)
  bool has_third;
};

}  // namespace race::product
