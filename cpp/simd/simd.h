#pragma once
// Vectors of N numbers, written once for every instruction set. All definitions are types, are
// always inlined or have internal linkage. Kernels are compiled once per instruction set (isa.h): a
// function that these builds shared could be emitted with AVX-512, and then be linked into code
// that runs everywhere.

#include <cstdint>
#include <type_traits>
#include <utility>

#define RACE_INLINE inline __attribute__((always_inline))

// For loops that the compiler vectorises by itself. Before a function that is no template, it has
// this function compiled for every instruction set. The processor's version is chosen when the
// library is loaded. Functions that it calls must be RACE_INLINE to be compiled along.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define RACE_EVERY_ISA __attribute__((target_clones("avx512f", "avx2,fma", "default")))
#else
#define RACE_EVERY_ISA
#endif

// A short loop over vectors of an array, unrolled early enough for GCC to keep it in registers.
#if defined(__GNUC__) && !defined(__clang__)
#define RACE_UNROLLED(i, begin, end) _Pragma("GCC unroll 16") for (int i = begin; i < end; ++i)
#else
#define RACE_UNROLLED(i, begin, end) for (int i = begin; i < end; ++i)
#endif

namespace race {
namespace {

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

template <class V, class T>
RACE_INLINE V load(const T* p) {
  V v;
  __builtin_memcpy(&v, p, sizeof(V));
  return v;
}

template <class V, class T>
RACE_INLINE void store(T* p, const V& v) {
  __builtin_memcpy(p, &v, sizeof(V));
}

#ifdef RACE_BYTES  // register width of this build's instruction set
template <class T>
constexpr int kWidth = RACE_BYTES / sizeof(T);
#if RACE_BYTES == 64 || defined(__aarch64__)  // AVX-512, NEON
constexpr int kRegisters = 32;
#else
constexpr int kRegisters = 16;
#endif
#endif

#if defined(__clang__) || __GNUC__ >= 12
#define RACE_SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else  // the older form: its indices are a vector
template <class V>
using Number = std::remove_cvref_t<decltype(std::declval<V>()[0])>;
template <class V>
using Indices = Vec<std::conditional_t<sizeof(Number<V>) == 4, int32_t, int64_t>,
                    sizeof(V) / sizeof(Number<V>)>;
#define RACE_SHUFFLE(a, b, ...) \
  __builtin_shuffle(a, b, Indices<std::remove_cvref_t<decltype(a)>>{__VA_ARGS__})
#endif

// out[r] = sum of row r of eight rows of W numbers.
template <class T, int W>
inline void sum_eight_rows(const T* rows, T* out) {
  if constexpr (W == 8 || W == 16) {
    using V = Vec<T, 8>;
    V v[8];
    for (int r = 0; r < 8; ++r) {
      v[r] = load<V>(rows + r * W);
      if constexpr (W == 16) v[r] += load<V>(rows + r * W + 8);
    }
    for (int r = 0; r < 4; ++r)  // halves of two rows in one vector
      v[r] = RACE_SHUFFLE(v[2 * r], v[2 * r + 1], 0, 1, 2, 3, 8, 9, 10, 11) +
             RACE_SHUFFLE(v[2 * r], v[2 * r + 1], 4, 5, 6, 7, 12, 13, 14, 15);
    for (int r = 0; r < 2; ++r)  // quarters of four
      v[r] = RACE_SHUFFLE(v[2 * r], v[2 * r + 1], 0, 1, 4, 5, 8, 9, 12, 13) +
             RACE_SHUFFLE(v[2 * r], v[2 * r + 1], 2, 3, 6, 7, 10, 11, 14, 15);
    store(out, RACE_SHUFFLE(v[0], v[1], 0, 2, 4, 6, 8, 10, 12, 14) +
                   RACE_SHUFFLE(v[0], v[1], 1, 3, 5, 7, 9, 11, 13, 15));
    return;
  }
  for (int r = 0; r < 8; ++r) {
    T sum = 0;
    for (int i = 0; i < W; ++i) sum += rows[r * W + i];
    out[r] = sum;
  }
}

}  // namespace
}  // namespace race
