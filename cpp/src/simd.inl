// Vectors of N numbers for kernels that are compiled once per instruction set; RACE_BYTES is the width of its registers. All of it
// is always inlined or a type, for the reason given in isa.h.

template <class T, int N>
struct Vector {
  typedef T type __attribute__((vector_size(N * sizeof(T))));
};
template <class T>
struct Vector<T, 1> {
  typedef T type;
};
template <class T, int N>
using Vec = typename Vector<T, N>::type;

template <class T>
constexpr int kWidth = RACE_BYTES / sizeof(T);

template <class V, class T>
inline __attribute__((always_inline)) V load(const T* p) {
  V v;
  __builtin_memcpy(&v, p, sizeof(V));
  return v;
}

template <class V, class T>
inline __attribute__((always_inline)) void store(T* p, const V& v) {
  __builtin_memcpy(p, &v, sizeof(V));
}
