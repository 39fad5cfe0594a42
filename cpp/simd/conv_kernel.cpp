// The kernels behind race::conv, vectorised over channels. They are compiled once per instruction
// set: CMake defines RACE_KERNELS (the function that returns this build's kernels) and RACE_BYTES
// (the width of a vector).
//
// Work is cut into blocks of up to kLanes edges of one receiver. A chunk of blocks goes through one
// path after the other: the path's part of the radial table then stays in the cache. For each block
// and path the edge matrix Q[m1, m3] = sum_m2 cg Y is formed lane by edge. Then one of the loops
// below runs on channel tiles of C vectors. Radial weights are interpolated in registers at their
// use: neither they nor their adjoints are ever in memory. The receiver's rows (out, w) stay in
// registers across the block.
#include "conv_kernel.h"

#include "conv_radial.h"
#include "conv_work.h"
#include "conv_diagonal.h"

namespace race::conv {
namespace {

// out += Q x R, or its second-order form; the sums over the block's edges stay in registers.
template <class T, int N, int C, int D3, bool Second>
void accumulate(const Work<T> k, int64_t c0) {
  using V = Vec<T, N>;
  const PlannedPath p = k.path;
  const int64_t in = in_column(k, c0), d1 = 2 * p.l1 + 1;
  T* out = k.out + out_column(k, p, c0);
  V sum[D3][C];
  RACE_UNROLLED (m3, 0, D3)
    RACE_UNROLLED (c, 0, C) sum[m3][c] = load<V>(out + m3 * p.out_stride + c * N);
  for (int64_t e = 0; e < k.n; ++e) {
    const T* x = k.g + k.sender[e] * k.g_stride + in;
    const T* a = k.a + k.sender[e] * k.a_stride + in;
    const T *q = k.q + e, *qc = k.qc + e;
    V r[C], b[C], qx[C], qa[C];
    interpolate<T, N, C, Second ? Want::both : Want::value>(k, k.v, k.s, e, p.weight_offset + c0, r,
                                                            b);
    if constexpr (D3 == 1)
      RACE_UNROLLED (c, 0, C) qx[c] = qa[c] = V{};
    for (int m1 = 0; m1 < d1;
         ++m1, x += p.in_stride, a += p.in_stride, q += D3 * kLanes, qc += D3 * kLanes) {
      RACE_UNROLLED (c, 0, C) {
        const V xv = load<V>(x + c * N), av = Second ? load<V>(a + c * N) : V{};
        if constexpr (D3 == 1) {  // R multiplies the sum over m1
          qx[c] += q[0] * xv;
          if constexpr (Second) qa[c] += q[0] * av + qc[0] * xv;
        } else {
          const V t = r[c] * xv, s = Second ? r[c] * av + b[c] * xv : t;
          RACE_UNROLLED (m3, 0, D3) {
            sum[m3][c] += q[m3 * kLanes] * s;
            if constexpr (Second) sum[m3][c] += qc[m3 * kLanes] * t;
          }
        }
      }
    }
    if constexpr (D3 == 1)
      RACE_UNROLLED (c, 0, C) sum[0][c] += Second ? r[c] * qa[c] + b[c] * qx[c] : r[c] * qx[c];
  }
  RACE_UNROLLED (m3, 0, D3)
    RACE_UNROLLED (c, 0, C) store(out + m3 * p.out_stride + c * N, sum[m3][c]);
}

// Computes dg, dR and dY; w stays in registers across the block's edges. dQ[m1, m3] = sum_c w R x
// is summed over the tile's vectors, then dY = cg . dQ on whole vectors. This takes fewer
// operations than reducing the (up to 49) dQ across lanes, since dY has at most seven columns,
// which all paths share.
template <class T, int N, int C, int D3, bool Second>
void transpose(const Work<T> k, int64_t c0) {
  using V = Vec<T, N>;
  const PlannedPath p = k.path;
  const CouplingTable<T>& table = k.table;
  const int64_t in = in_column(k, c0), d1 = 2 * p.l1 + 1;
  const T* w0 = k.w + out_column(k, p, c0);
  V w[D3][C];
  RACE_UNROLLED (m3, 0, D3)
    RACE_UNROLLED (c, 0, C) w[m3][c] = load<V>(w0 + m3 * p.out_stride + c * N);
  alignas(64) T dq[kMaxDim * D3 * N];
  for (int64_t e = 0; e < k.n; ++e) {
    const T* x = k.g + k.sender[e] * k.g_stride + in;
    const T* a = k.a + k.sender[e] * k.a_stride + in;
    T* dx = k.dg ? k.dg + k.sender[e] * k.dg_stride + in : nullptr;
    const T *q = k.q + e, *qc = k.qc + e;
    V r[C], b[C], dr1[C], dr2[C], rw[C], bw[C];
    interpolate<T, N, C, Want::both>(k, k.v, k.s, e, p.weight_offset + c0, r, b);
    RACE_UNROLLED (c, 0, C) {
      dr1[c] = dr2[c] = V{};
      if constexpr (D3 == 1) {
        rw[c] = r[c] * w[0][c];
        bw[c] = Second ? b[c] * w[0][c] : V{};
      }
    }
    for (int m1 = 0; m1 < d1;
         ++m1, x += p.in_stride, a += p.in_stride, q += D3 * kLanes, qc += D3 * kLanes) {
      V sum[D3];
      RACE_UNROLLED (m3, 0, D3) sum[m3] = V{};
      RACE_UNROLLED (c, 0, C) {
        const V xv = load<V>(x + c * N), av = Second ? load<V>(a + c * N) : V{};
        V dg;
        if constexpr (D3 == 1) {  // w multiplies the sum over m1, R w gives the adjoint of each
                                  // feature
          dr1[c] += q[0] * xv;
          if constexpr (Second) dr2[c] += q[0] * av + qc[0] * xv;
          sum[0] += Second ? rw[c] * av + bw[c] * xv : rw[c] * xv;
          dg = Second ? q[0] * bw[c] + qc[0] * rw[c] : q[0] * rw[c];
        } else {
          V u = q[0] * w[0][c], uc{}, s = r[c] * xv;
          RACE_UNROLLED (m3, 1, D3) u += q[m3 * kLanes] * w[m3][c];
          dr1[c] += xv * u;
          if constexpr (Second) {
            RACE_UNROLLED (m3, 0, D3) uc += qc[m3 * kLanes] * w[m3][c];
            s = r[c] * av + b[c] * xv;
            dr2[c] += av * u + xv * uc;
          }
          RACE_UNROLLED (m3, 0, D3) sum[m3] += s * w[m3][c];
          dg = Second ? b[c] * u + r[c] * uc : r[c] * u;
        }
        if (dx) {
          T* d = dx + m1 * p.in_stride + c * N;
          store(d, load<V>(d) + dg);
        }
      }
      if (k.dy)
        RACE_UNROLLED (m3, 0, D3) store(dq + (m1 * D3 + m3) * N, sum[m3]);
    }
    if constexpr (D3 == 1)
      RACE_UNROLLED (c, 0, C) {
        dr1[c] *= w[0][c];
        dr2[c] *= w[0][c];
      }
    radial_adjoint<T, N, C, Second>(k, e, p.weight_offset + c0, dr1, dr2, b);
    if (!k.dy) continue;
    T* dy = k.dy + e * kWidth<T>;
    for (int m2 = 0; m2 < table.d2; ++m2, dy += kLanes * kWidth<T>) {
      V sum = load<V>(dy);
      for (int i = table.m2_begin[m2]; i < table.m2_begin[m2 + 1]; ++i)
        sum += table.by_m2[i].value * load<V>(dq + table.by_m2[i].q * N);
      store(dy, sum);
    }
  }
}

// Runs tile<N, C>(c) over channels [0, mul): tiles of up to MaxC vectors, then half a vector, then
// single channels.
template <class T, int MaxC, class F>
RACE_INLINE void for_tiles(int64_t mul, F&& tile) {
  constexpr int W = kWidth<T>;
  int64_t c = 0;
  if constexpr (MaxC >= 4)
    for (; c + 4 * W <= mul; c += 4 * W) tile.template operator()<W, 4>(c);
  if constexpr (MaxC >= 2)
    for (; c + 2 * W <= mul; c += 2 * W) tile.template operator()<W, 2>(c);
  for (; c + W <= mul; c += W) tile.template operator()<W, 1>(c);
  if constexpr (W >= 4)
    for (; c + W / 2 <= mul; c += W / 2) tile.template operator()<W / 2, 1>(c);
  for (; c < mul; ++c) tile.template operator()<1, 1>(c);
}

template <class T, int D3, bool Second>
void run_path(const Work<T>& k) {
  // accumulators must fit the registers
  constexpr int MaxC = D3 <= 3 ? 4 : 2,
                SumC = D3 == 1   ? 4
                       : D3 == 3 ? 2
                                 : 1,
                PairC = D3 <= 3 ? 2 : 1;
  if (k.partner) {
    if (k.out)
      for_tiles<T, SumC>(k.path.mul, [&]<int N, int C>(int64_t c) {
        diagonal_accumulate<T, N, C, D3, 2, Second>(k, c);
      });
    if (k.w)
      for_tiles<T, PairC>(k.path.mul, [&]<int N, int C>(int64_t c) {
        diagonal_transpose<T, N, C, D3, 2, Second>(k, c);
      });
  } else if (k.table.diagonal) {
    if (k.out)
      for_tiles<T, MaxC>(k.path.mul, [&]<int N, int C>(int64_t c) {
        diagonal_accumulate<T, N, C, D3, 1, Second>(k, c);
      });
    if (k.w)
      for_tiles<T, MaxC>(k.path.mul, [&]<int N, int C>(int64_t c) {
        diagonal_transpose<T, N, C, D3, 1, Second>(k, c);
      });
  } else {
    if (k.out)
      for_tiles<T, MaxC>(k.path.mul,
                         [&]<int N, int C>(int64_t c) { accumulate<T, N, C, D3, Second>(k, c); });
    if (k.w)
      for_tiles<T, MaxC>(k.path.mul,
                         [&]<int N, int C>(int64_t c) { transpose<T, N, C, D3, Second>(k, c); });
  }
}

// Forms the edge matrix of a block whose harmonics are y [S, kLanes].
template <class T>
inline void edge_matrix(const CouplingTable<T>& table, const T* y, T* q) {
  using V = Vec<T, kLanes>;
  y += table.sh_offset * kLanes;
  for (int i = 0; i < table.q_size; ++i) {
    V sum{};
    for (int k = table.q_begin[i]; k < table.q_begin[i + 1]; ++k)
      sum += table.by_q[k].value * load<V>(y + table.by_q[k].m2 * kLanes);
    store(q + i * kLanes, sum);
  }
}

// Adds the sums over the vectors of each of n edges to `lanes`, and leaves the vectors zero.
template <class T>
void add_sums(T* partial, int64_t n, T* lanes) {
  using V = Vec<T, 8>;
  static_assert(kLanes % 8 == 0);
  alignas(64) T sums[8];
  for (int64_t first = 0; first < n; first += 8, partial += 8 * kWidth<T>, lanes += 8) {
    sum_eight_rows<T, kWidth<T>>(partial, sums);
    store(lanes, load<V>(lanes) + load<V>(sums));
    RACE_UNROLLED (i, 0, 8) store(partial + i * kWidth<T>, Vec<T, kWidth<T>>{});
  }
}

template <class T, bool Second>
void run_block(const Work<T>& work) {
  switch (2 * work.path.l3 + 1) {
    case 1: return run_path<T, 1, Second>(work);
    case 3: return run_path<T, 3, Second>(work);
    case 5: return run_path<T, 5, Second>(work);
    case 7: return run_path<T, 7, Second>(work);
  }
}

// q times the weights of a block's rows, into `result` unless q is one.
template <class T>
inline const T* scale(const T* q, const T* weights, T* result) {
  using V = Vec<T, kLanes>;
  bool one = true;
  for (int e = 0; e < kLanes; ++e) one &= q[e] == T(1);
  if (one) return weights;
  for (int i = 0; i < kRows; ++i)
    store(result + i * kLanes, load<V>(q) * load<V>(weights + i * kLanes));
  return result;
}

// Transposes rows [n, S] of a block to [S, kLanes].
template <class T>
void to_lanes(const T* from, int64_t stride, int64_t n, int64_t sh_dim, T* lanes) {
  for (int64_t s = 0; s < sh_dim; ++s)
    for (int64_t e = 0; e < kLanes; ++e)
      lanes[s * kLanes + e] = e < n ? from[e * stride + s] : T(0);
}

// Transposes lanes [S, kLanes] back to rows [n, S]. S is a compile-time constant if it is that of
// lmax <= 3.
template <int S, class T>
inline void to_rows(const T* lanes, int64_t n, int64_t sh_dim, T* to) {
  const int64_t size = S ? S : sh_dim;
  for (int64_t e = 0; e < n; ++e, to += size)
    for (int64_t s = 0; s < size; ++s) to[s] = lanes[s * kLanes + e];
}

template <class T>
void to_rows(const T* lanes, int64_t n, int64_t sh_dim, T* to) {
  switch (sh_dim) {
    case 4: return to_rows<4>(lanes, n, sh_dim, to);
    case 9: return to_rows<9>(lanes, n, sh_dim, to);
    case 16: return to_rows<16>(lanes, n, sh_dim, to);
    default: return to_rows<0>(lanes, n, sh_dim, to);
  }
}

// Cuts edges from `edge` on into at most kChunk blocks; moves (receiver, edge) behind them.
template <class T, bool Second>
int64_t cut_blocks(const Arguments<T>& args, int64_t end, int64_t& receiver, int64_t& edge) {
  int64_t count = 0;
  for (; count < kChunk; ++count) {
    while (receiver < end && edge == args.row_ptr[receiver + 1]) ++receiver;
    if (receiver == end) break;
    EdgeBlock& block = args.blocks[count];
    const int64_t left = args.row_ptr[receiver + 1] - edge;
    block.receiver = receiver;
    block.edge = edge;
    block.n = left < kLanes ? left : kLanes;
    to_lanes(args.sh + edge * args.sh_stride, args.sh_stride, block.n, args.sh_dim,
             args.y + count * args.sh_dim * kLanes);
    place<T, Second>(args, count);
    edge += block.n;
  }
  return count;
}

template <class T, bool Second>
void run(const Arguments<T>& args, int64_t begin, int64_t end) {
  const int64_t S = args.sh_dim, y_size = S * kLanes, weights_size = kRows * kLanes;
  alignas(64) T dy[kMaxDim * kLanes * kWidth<T>] = {}, dx[kLanes * kWidth<T>] = {};
  alignas(64) T q[kMaxDim * kMaxDim * kLanes], qc[kMaxDim * kMaxDim * kLanes],
      scaled[4][kRows * kLanes];
  const bool want_dx = args.w && args.radial.dx, want_dy = args.w && args.dsh,
             own_group = args.n_groups > 1;
  int64_t receiver = begin, edge = args.row_ptr[begin];
  while (const int64_t count = cut_blocks<T, Second>(args, end, receiver, edge)) {
    for (int64_t m = args.first_member; m < args.last_member; ++m) {
      const int64_t group = own_group ? m : 0;
      if (own_group || m == args.first_member)
        for (int64_t i = 0; i < count; ++i) {
          const EdgeBlock& block = args.blocks[i];
          if (Second)
            to_lanes(args.c + block.edge * args.c_stride + (args.c_stride ? group * S : 0),
                     args.c_stride, block.n, S, args.c_lanes + i * y_size);
          for (int64_t e = 0; Second && e < kLanes; ++e)
            args.c_lanes[i * y_size + e] = 0;  // Y_0 is constant: it has no direction
          if (Second && args.radial.n_rows) direct(args, i, group);
          for (int64_t k = 0; want_dy && k < y_size; ++k) args.dy_lanes[i * y_size + k] = 0;
          for (int64_t k = 0; want_dx && k < kLanes; ++k) args.dx_lanes[i * kLanes + k] = 0;
        }
      const RadialRows<T> rows = rows_of<T, Second>(args.radial, args.n_edges, m);
      for (int64_t p = 0; p < args.n_paths; ++p) {
        const PlannedPath& path = args.paths[p];
        if (path.is_partner) continue;
        const PlannedPath* partner = path.partner > 0 ? args.paths + path.partner : nullptr;
        const CouplingTable<T>& table = args.tables[path.table];
        const bool path_dy = want_dy && table.sh_offset > 0;
        for (int64_t i = 0; i < count; ++i) {
          const EdgeBlock& block = args.blocks[i];
          edge_matrix(table, args.y + i * y_size, q);
          if (Second) edge_matrix(table, args.c_lanes + i * y_size, qc);
          const T* weights[] = {args.value + i * weights_size, args.direction + i * weights_size,
                                args.slope + i * weights_size, args.curve + i * weights_size};
          for (int k = 0; table.diagonal && k < (Second ? 4 : args.w ? 2 : 1); ++k)
            weights[k] = scale(q, weights[k], scaled[k]);
          const Work<T> work{
              .g = args.g,
              .a = args.a,
              .dg = args.dg,
              .g_stride = args.g_stride,
              .a_stride = args.a_stride,
              .dg_stride = args.dg_stride,
              .path = path,
              .partner = partner,
              .table = table,
              .n = block.n,
              .member = m,
              .sender = args.sender + block.edge,
              .row = block.row,
              .rows = rows,
              .v = weights[0],
              .s = weights[1],
              .slope = weights[2],
              .curve = weights[3],
              .xi = Second ? args.radial.xi + block.edge * args.radial.xi_stride +
                                 group * args.radial.xi_group
                           : nullptr,
              .xi_stride = args.radial.xi_stride,
              .q = q,
              .qc = qc,
              .w = args.w ? args.w + block.receiver * args.out_stride : nullptr,
              .out = args.out ? args.out + block.receiver * args.out_stride : nullptr,
              .dy = path_dy ? dy : nullptr,
              .dx = want_dx ? dx : nullptr,
          };
          run_block<T, Second>(work);
          for (int64_t m2 = 0; path_dy && m2 < table.d2; ++m2)
            add_sums(dy + m2 * kLanes * kWidth<T>, block.n,
                     args.dy_lanes + i * y_size + (table.sh_offset + m2) * kLanes);
          if (want_dx) add_sums(dx, block.n, args.dx_lanes + i * kLanes);
        }
      }
      if (!own_group && m + 1 < args.last_member) continue;
      for (int64_t i = 0; i < count; ++i) {
        const EdgeBlock& block = args.blocks[i];
        const int64_t row = group * args.n_edges + block.edge;
        if (want_dx) to_rows<1>(args.dx_lanes + i * kLanes, block.n, 1, args.radial.dx + row);
        if (want_dy) to_rows(args.dy_lanes + i * y_size, block.n, S, args.dsh + row * S);
      }
    }
  }
}

const KernelSet kSet{{run<float, false>, run<float, true>},
                     {run<double, false>, run<double, true>}};

}  // namespace

const KernelSet* RACE_KERNELS() { return &kSet; }

}  // namespace race::conv
