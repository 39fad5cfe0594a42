// The kernels behind race::linear: small matrix products whose rows are found by index, so that
// neither atoms are sorted nor members and components permuted. They are compiled once per
// instruction set, like conv_kernel.cpp.
//
// A tile of R rows and C vectors of columns is summed in registers: over the channels of x in
// `product`, over atoms in `outer`. It has six rows and as many columns as leave room for the
// operands, so that one load feeds several multiply-adds. Narrower tiles do the rest.
#include "linear_kernel.h"

#include <utility>

#include "simd.h"

namespace race::linear {
namespace {

constexpr int kRows = kOuterRows;
constexpr int kVectors = kRegisters / 8;

// Runs tile<N, C>(c) over columns [0, mul): C vectors of N numbers each.
template <class T, class F>
RACE_INLINE void for_columns(int64_t mul, F&& tile) {
  constexpr int W = kWidth<T>;
  int64_t c = 0;
  if constexpr (kVectors >= 4)
    for (; c + 4 * W <= mul; c += 4 * W) tile.template operator()<W, 4>(c);
  for (; c + 2 * W <= mul; c += 2 * W) tile.template operator()<W, 2>(c);
  for (; c + W <= mul; c += W) tile.template operator()<W, 1>(c);
  if constexpr (W >= 4)
    for (; c + W / 2 <= mul; c += W / 2) tile.template operator()<W / 2, 1>(c);
  if constexpr (W >= 16)
    for (; c + W / 4 <= mul; c += W / 4) tile.template operator()<W / 4, 1>(c);
  for (; c < mul; ++c) tile.template operator()<1, 1>(c);
}

// Runs tile<R>() over n rows.
template <class F>
RACE_INLINE void for_rows(int64_t n, F&& tile) {
  for (; n >= kRows; n -= kRows) tile.template operator()<kRows>();
  if (n >= 4) {
    tile.template operator()<4>();
    n -= 4;
  }
  if (n >= 2) {
    tile.template operator()<2>();
    n -= 2;
  }
  if (n >= 1) tile.template operator()<1>();
}

template <class T>
RACE_INLINE int64_t atom(const Arguments<T>& args, int64_t position) {
  return args.order ? args.order[position] : position;
}

template <class T, int N, int C, int R>
RACE_INLINE void product_tile(const T* const* x, T* const* y, const T* w, int64_t mul_in,
                              int64_t mul_out, bool accumulate) {
  using V = Vec<T, N>;
  V sum[R][C];
  for (int r = 0; r < R; ++r)
    for (int c = 0; c < C; ++c) sum[r][c] = accumulate ? load<V>(y[r] + c * N) : V{};
  for (int64_t u = 0; u < mul_in; ++u, w += mul_out) {
    V b[C];
    for (int c = 0; c < C; ++c) b[c] = load<V>(w + c * N);
    for (int r = 0; r < R; ++r)
      for (int c = 0; c < C; ++c) sum[r][c] += x[r][u] * b[c];
  }
  for (int r = 0; r < R; ++r)
    for (int c = 0; c < C; ++c) store(y[r] + c * N, sum[r][c]);
}

// Columns from c on of one block and member, for positions [begin, end) of one species.
template <class T, int N, int C>
void product_columns(const Multiply<T>& args, const Block& block, int64_t member, const T* weight,
                     int64_t begin, int64_t end, int64_t c) {
  const T* x0 = args.x + block.in_offset + member * block.mul_in;
  T* y0 = args.y + block.out_offset + member * block.mul_out + c;
  const int64_t x_step = args.n_members * block.mul_in, y_step = args.n_members * block.mul_out;
  int64_t position = begin, m = block.d;
  const T* x = nullptr;
  T* y = nullptr;
  for_rows((end - begin) * block.d, [&]<int R>() {
    const T* xs[R];
    T* ys[R];
    for (int r = 0; r < R; ++r, ++m, x += x_step, y += y_step) {
      if (m == block.d) {
        const int64_t i = atom(args, position++);
        x = x0 + i * args.x_stride, y = y0 + i * args.y_stride, m = 0;
      }
      xs[r] = x, ys[r] = y;
    }
    product_tile<T, N, C, R>(xs, ys, weight + c, block.mul_in, block.mul_out, args.accumulate);
  });
}

template <class T>
void product(const Multiply<T>& args, int64_t begin, int64_t end) {
  for (int64_t member = 0; member < args.n_members; ++member)
    for (int64_t k = 0; k < args.n_blocks; ++k) {
      const Block& block = args.blocks[k];
      for (int64_t s = 0; s < args.n_species; ++s) {
        const int64_t first = begin > args.begin[s] ? begin : args.begin[s],
                      last = end < args.begin[s + 1] ? end : args.begin[s + 1];
        if (first >= last) continue;
        const T* weight = args.weight + member * args.weight_member + s * args.weight_species +
                          block.weight_offset;
        for_columns<T>(block.mul_out, [&]<int N, int C>(int64_t c) {
          product_columns<T, N, C>(args, block, member, weight, first, last, c);
        });
      }
    }
}

template <class T, int N, int C, int R>
void outer_tile(const Outer<T>& args, const Block& block, const OuterTask& task, int64_t row,
                int64_t c) {
  using V = Vec<T, N>;
  const T* x0 = args.x + block.in_offset + task.member * block.mul_in + row;
  const T* y0 = args.y + block.out_offset + task.member * block.mul_out + c;
  const int64_t x_step = args.n_members * block.mul_in, y_step = args.n_members * block.mul_out;
  V sum[R][C] = {};
  for (int64_t position = args.begin[task.species]; position < args.begin[task.species + 1];
       ++position) {
    const int64_t i = atom(args, position);
    const T *x = x0 + i * args.x_stride, *y = y0 + i * args.y_stride;
    for (int64_t m = 0; m < block.d; ++m, x += x_step, y += y_step) {
      V b[C];
      for (int c1 = 0; c1 < C; ++c1) b[c1] = load<V>(y + c1 * N);
      for (int r = 0; r < R; ++r)
        for (int c1 = 0; c1 < C; ++c1) sum[r][c1] += x[r] * b[c1];
    }
  }
  T* w = args.dweight + task.member * args.weight_member + task.species * args.weight_species +
         block.weight_offset + row * block.mul_out + c;
  for (int r = 0; r < R; ++r)
    for (int c1 = 0; c1 < C; ++c1) {
      T* p = w + r * block.mul_out + c1 * N;
      store(p, load<V>(p) + sum[r][c1]);
    }
}

template <class T>
void outer(const Outer<T>& args, int64_t begin, int64_t end) {
  for (int64_t t = begin; t < end; ++t) {
    const OuterTask& task = args.tasks[t];
    const Block& block = args.blocks[task.block];
    for_columns<T>(block.mul_out, [&]<int N, int C>(int64_t c) {
      int64_t row = task.row;
      for_rows(task.count, [&]<int R>() {
        outer_tile<T, N, C, R>(args, block, task, row, c);
        row += R;
      });
    });
  }
}

// Interleaves halves: (a0 b0 a1 b1 ..) of the lower (Half = 0) or the upper half of a and b.
template <class V, int W, int Half, int... I>
RACE_INLINE V interleave(const V& a, const V& b, std::integer_sequence<int, I...>) {
  return RACE_SHUFFLE(a, b, (Half * (W / 2) + I / 2 + (I % 2) * W)...);
}

// result = matrix^T, row-major. Interleaving the two halves of a sequence of W * W numbers rotates
// the bits of their indices by one. After log2(W) times, row and column have changed places.
template <class T>
void transpose(const T* matrix, int64_t rows, int64_t columns, T* result) {
  constexpr int W = kWidth<T>;
  using V = Vec<T, W>;
  using Lanes = std::make_integer_sequence<int, W>;
  for (int64_t i = 0; i < rows; i += W)
    for (int64_t j = 0; j < columns; j += W) {
      if (i + W > rows || j + W > columns) {
        for (int64_t a = i; a < rows && a < i + W; ++a)
          for (int64_t b = j; b < columns && b < j + W; ++b)
            result[b * rows + a] = matrix[a * columns + b];
        continue;
      }
      V v[W], shuffled[W];
      for (int r = 0; r < W; ++r) v[r] = load<V>(matrix + (i + r) * columns + j);
      for (int n = 1; n < W; n *= 2) {
        for (int r = 0; r < W / 2; ++r) {
          shuffled[2 * r] = interleave<V, W, 0>(v[r], v[r + W / 2], Lanes{});
          shuffled[2 * r + 1] = interleave<V, W, 1>(v[r], v[r + W / 2], Lanes{});
        }
        for (int r = 0; r < W; ++r) v[r] = shuffled[r];
      }
      for (int r = 0; r < W; ++r) store(result + (j + r) * rows + i, v[r]);
    }
}

const KernelSet kSet{{product<float>, outer<float>, transpose<float>},
                     {product<double>, outer<double>, transpose<double>}};

}  // namespace

const KernelSet* RACE_KERNELS() { return &kSet; }

}  // namespace race::linear
