// The kernels behind race::conv, vectorised over channels. Included by one source per instruction set, which defines
// RACE_ISA (a name) and RACE_BYTES (vector width).
//
// Work is cut into blocks of up to kLanes edges of one receiver. Per block the edge matrices Q[m1, m3] = sum_m2 cg Y are formed
// once, lane by edge, for all paths and members; then each path runs one of the loops below on channel tiles of C vectors. Radial
// weights are interpolated in registers where they are used: neither they nor their adjoints ever lie in memory. The receiver's
// rows (out, w) stay in registers across the edges of the block; every other operand is touched once.
#include "conv_kernel.h"
#include "vector.h"

namespace race::conv {
namespace {

template <class T>
constexpr int kWidth = RACE_BYTES / sizeof(T);

// Where each edge of a block finds R and its direction: R = sum_i v[i] p_i with p_0, p_1, p_0 + step, p_1 + step, the direction
// the same with s. Interpolation needs the rows (value, slope) of both knots; explicit rows are p_0 = R, p_1 = b.
template <class T>
struct EdgeRows {
  const T *p0[kLanes], *p1[kLanes];
  T* d0[kLanes];  // where the adjoint of p_0 goes, and step_d apart those of the other three; null if not wanted
  int64_t step;
  bool table;
  T v[4][kLanes], s[4][kLanes];
  T slope[4][kLanes], second[4][kLanes], curve[4][kLanes];  // R', R'' and xi R''
};

// One block of edges, one member.
template <class T>
struct Block {
  const Job<T>& job;
  int64_t n, member;
  const int64_t* sender;
  const EdgeRows<T>& rows;
  const T* w;  // the receiver's rows
  T* out;
  T* dy;  // [sh_dim, kLanes, kWidth] partial sums of dY, one vector each
  T* dx;  // [kLanes, kWidth] the same of dx
};

template <class T>
inline __attribute__((always_inline)) int64_t in_column(const Block<T>& k, const Path& p, int64_t c) {
  return p.in_offset + k.member * p.mul + c;
}

template <class T>
inline __attribute__((always_inline)) int64_t out_column(const Block<T>& k, const Path& p, int64_t c) {
  return p.out_offset + k.member * p.out_mul + p.column + c;
}

// sum_i weight[i] p_i over C vectors of edge e
template <class T, int N, int C>
inline __attribute__((always_inline)) void combine(const EdgeRows<T>& rows, const T (*weight)[kLanes], int64_t e, int64_t column, Vec<T, N>* out) {
  using V = Vec<T, N>;
  const T *p0 = rows.p0[e] + column, *p1 = rows.p1[e] + column, *p2 = p0 + rows.step, *p3 = p1 + rows.step;
  const T w0 = weight[0][e], w1 = weight[1][e], w2 = weight[2][e], w3 = weight[3][e];
  for (int c = 0; c < C; ++c)
    out[c] = w0 * load<V>(p0 + c * N) + w1 * load<V>(p1 + c * N) + w2 * load<V>(p2 + c * N) + w3 * load<V>(p3 + c * N);
}

// Both sums from one pass over the rows.
template <class T, int N, int C>
inline __attribute__((always_inline)) void combine_both(const EdgeRows<T>& rows, int64_t e, int64_t column, Vec<T, N>* r, Vec<T, N>* s) {
  using V = Vec<T, N>;
  const T *p0 = rows.p0[e] + column, *p1 = rows.p1[e] + column, *p2 = p0 + rows.step, *p3 = p1 + rows.step;
  const T v0 = rows.v[0][e], v1 = rows.v[1][e], v2 = rows.v[2][e], v3 = rows.v[3][e];
  const T s0 = rows.s[0][e], s1 = rows.s[1][e], s2 = rows.s[2][e], s3 = rows.s[3][e];
  for (int c = 0; c < C; ++c) {
    const V a = load<V>(p0 + c * N), b = load<V>(p1 + c * N), d = load<V>(p2 + c * N), f = load<V>(p3 + c * N);
    r[c] = v0 * a + v1 * b + v2 * d + v3 * f;
    s[c] = s0 * a + s1 * b + s2 * d + s3 * f;
  }
}

// Hands on the adjoint of R: dr1 of <w, T(g, R, Y)>, and in second order dr2 of S. `s` is R' (first order).
template <class T, int N, int C, bool Second>
inline __attribute__((always_inline)) void radial_adjoint(const Block<T>& k, int64_t e, int64_t column, const Vec<T, N>* dr1, const Vec<T, N>* dr2,
                                                          const Vec<T, N>* s) {
  using V = Vec<T, N>;
  const EdgeRows<T>& rows = k.rows;
  if (k.dx) {
    V sum = load<V>(k.dx + e * kWidth<T>);
    if constexpr (Second) {
      V slope[C], curve[C];
      combine<T, N, C>(rows, rows.slope, e, column, slope);
      combine<T, N, C>(rows, rows.curve, e, column, curve);
      for (int c = 0; c < C; ++c) sum += dr2[c] * slope[c] + dr1[c] * curve[c];
    } else {
      for (int c = 0; c < C; ++c) sum += dr1[c] * s[c];
    }
    store(k.dx + e * kWidth<T>, sum);
  }
  if (!rows.d0[e]) return;
  T* d = rows.d0[e] + column;
  const int n_rows = rows.table ? 4 : 1;
  for (int i = 0; i < n_rows; ++i, d += k.job.radial.n_weights)
    for (int c = 0; c < C; ++c) {
      if constexpr (Second)
        store(d + c * N, load<V>(d + c * N) + rows.v[i][e] * dr2[c] + rows.s[i][e] * dr1[c]);
      else
        store(d + c * N, load<V>(d + c * N) + rows.v[i][e] * dr1[c]);
    }
}

// out += Q x R, or its second-order form; the sums over the block's edges stay in registers.
template <class T, int N, int C, int D3, bool Second>
void accumulate(const Block<T>& k, const Path& p, int64_t c0) {
  using V = Vec<T, N>;
  const Job<T>& job = k.job;
  const T* q0 = job.q + job.tables[p.table].q_offset * kLanes;
  const T* qc0 = job.qc + job.tables[p.table].q_offset * kLanes;
  const int64_t in = in_column(k, p, c0);
  T* out = k.out + out_column(k, p, c0);
  V sum[D3][C];
  for (int m3 = 0; m3 < D3; ++m3)
    for (int c = 0; c < C; ++c) sum[m3][c] = load<V>(out + m3 * p.out_stride + c * N);
  for (int64_t e = 0; e < k.n; ++e) {
    const T* x = job.g + k.sender[e] * job.g_stride + in;
    const T* a = job.a + k.sender[e] * job.a_stride + in;
    const T *q = q0 + e, *qc = qc0 + e;
    V r[C], b[C];
    if constexpr (Second)
      combine_both<T, N, C>(k.rows, e, p.weight_offset + c0, r, b);
    else
      combine<T, N, C>(k.rows, k.rows.v, e, p.weight_offset + c0, r);
    for (int m1 = 0; m1 < p.d1; ++m1, x += p.in_stride, a += p.in_stride, q += D3 * kLanes, qc += D3 * kLanes) {
      V s[C], t[C];
      for (int c = 0; c < C; ++c) {
        const V xv = load<V>(x + c * N);
        t[c] = r[c] * xv;
        s[c] = t[c];
        if constexpr (Second) s[c] = r[c] * load<V>(a + c * N) + b[c] * xv;
      }
      for (int m3 = 0; m3 < D3; ++m3)
        for (int c = 0; c < C; ++c) {
          sum[m3][c] += q[m3 * kLanes] * s[c];
          if constexpr (Second) sum[m3][c] += qc[m3 * kLanes] * t[c];
        }
    }
  }
  for (int m3 = 0; m3 < D3; ++m3)
    for (int c = 0; c < C; ++c) store(out + m3 * p.out_stride + c * N, sum[m3][c]);
}

// dg, dR and dY; w stays in registers across the block's edges. dQ[m1, m3] = sum_c w R x is summed over the tile's vectors, then
// dY = cg . dQ on whole vectors: fewer operations than reducing the (up to 49) dQ across lanes, since dY has at most seven
// columns, which all paths share.
template <class T, int N, int C, int D3, bool Second>
void transpose(const Block<T>& k, const Path& p, int64_t c0) {
  using V = Vec<T, N>;
  const Job<T>& job = k.job;
  const Table<T>& table = job.tables[p.table];
  const T* q0 = job.q + table.q_offset * kLanes;
  const T* qc0 = job.qc + table.q_offset * kLanes;
  const int64_t in = in_column(k, p, c0);
  const T* w0 = k.w + out_column(k, p, c0);
  V w[D3][C];
  for (int m3 = 0; m3 < D3; ++m3)
    for (int c = 0; c < C; ++c) w[m3][c] = load<V>(w0 + m3 * p.out_stride + c * N);
  alignas(64) T dq[kMaxDim * D3 * N];
  for (int64_t e = 0; e < k.n; ++e) {
    const T* x = job.g + k.sender[e] * job.g_stride + in;
    const T* a = job.a + k.sender[e] * job.a_stride + in;
    T* dx = job.dg ? job.dg + k.sender[e] * job.dg_stride + in : nullptr;
    const T *q = q0 + e, *qc = qc0 + e;
    V r[C], b[C], dr1[C], dr2[C];
    combine_both<T, N, C>(k.rows, e, p.weight_offset + c0, r, b);
    for (int c = 0; c < C; ++c) dr1[c] = dr2[c] = V{};
    for (int m1 = 0; m1 < p.d1; ++m1, x += p.in_stride, a += p.in_stride, q += D3 * kLanes, qc += D3 * kLanes) {
      V sum[D3];
      for (int m3 = 0; m3 < D3; ++m3) sum[m3] = V{};
      for (int c = 0; c < C; ++c) {
        const V xv = load<V>(x + c * N);
        V u = q[0] * w[0][c], uc{}, s = r[c] * xv;
        for (int m3 = 1; m3 < D3; ++m3) u += q[m3 * kLanes] * w[m3][c];
        dr1[c] += xv * u;
        if constexpr (Second) {
          const V av = load<V>(a + c * N);
          for (int m3 = 0; m3 < D3; ++m3) uc += qc[m3 * kLanes] * w[m3][c];
          s = r[c] * av + b[c] * xv;
          dr2[c] += av * u + xv * uc;
        }
        if (job.dsh)
          for (int m3 = 0; m3 < D3; ++m3) sum[m3] += s * w[m3][c];
        if (dx) {
          T* d = dx + m1 * p.in_stride + c * N;
          if constexpr (Second)
            store(d, load<V>(d) + b[c] * u + r[c] * uc);
          else
            store(d, load<V>(d) + r[c] * u);
        }
      }
      if (job.dsh)
        for (int m3 = 0; m3 < D3; ++m3) store(dq + (m1 * D3 + m3) * N, sum[m3]);
    }
    radial_adjoint<T, N, C, Second>(k, e, p.weight_offset + c0, dr1, dr2, b);
    if (!job.dsh) continue;
    T* dy = k.dy + (table.sh_offset * kLanes + e) * kWidth<T>;
    for (int m2 = 0; m2 < table.d2; ++m2, dy += kLanes * kWidth<T>) {
      V sum = load<V>(dy);
      for (int i = table.m2_begin[m2]; i < table.m2_begin[m2 + 1]; ++i) sum += table.by_m2[i].value * load<V>(dq + table.by_m2[i].q * N);
      store(dy, sum);
    }
  }
}

// Q = q * identity: everything follows from <x, w> over m, without matrices.
template <class T, int N, int C, int D, bool Second>
void diagonal_accumulate(const Block<T>& k, const Path& p, int64_t c0) {
  using V = Vec<T, N>;
  const Job<T>& job = k.job;
  const int64_t row = job.tables[p.table].q_offset * kLanes, in = in_column(k, p, c0);
  T* out = k.out + out_column(k, p, c0);
  V sum[D][C];
  for (int m = 0; m < D; ++m)
    for (int c = 0; c < C; ++c) sum[m][c] = load<V>(out + m * p.out_stride + c * N);
  for (int64_t e = 0; e < k.n; ++e) {
    const T* x = job.g + k.sender[e] * job.g_stride + in;
    const T* a = job.a + k.sender[e] * job.a_stride + in;
    const T q = job.q[row + e], qc = Second ? job.qc[row + e] : T(0);
    V r[C], b[C];
    if constexpr (Second)
      combine_both<T, N, C>(k.rows, e, p.weight_offset + c0, r, b);
    else
      combine<T, N, C>(k.rows, k.rows.v, e, p.weight_offset + c0, r);
    for (int c = 0; c < C; ++c) {
      const V qr = q * r[c], qb = q * b[c] + qc * r[c];
      for (int m = 0; m < D; ++m) {
        sum[m][c] += (Second ? qb : qr) * load<V>(x + m * p.in_stride + c * N);
        if constexpr (Second) sum[m][c] += qr * load<V>(a + m * p.in_stride + c * N);
      }
    }
  }
  for (int m = 0; m < D; ++m)
    for (int c = 0; c < C; ++c) store(out + m * p.out_stride + c * N, sum[m][c]);
}

template <class T, int N, int C, int D, bool Second>
void diagonal_transpose(const Block<T>& k, const Path& p, int64_t c0) {
  using V = Vec<T, N>;
  const Job<T>& job = k.job;
  const Table<T>& table = job.tables[p.table];
  const T coefficient = table.by_q[0].value;
  const int64_t row = table.q_offset * kLanes, in = in_column(k, p, c0);
  const T* w0 = k.w + out_column(k, p, c0);
  V w[D][C];
  for (int m = 0; m < D; ++m)
    for (int c = 0; c < C; ++c) w[m][c] = load<V>(w0 + m * p.out_stride + c * N);
  for (int64_t e = 0; e < k.n; ++e) {
    const T* x = job.g + k.sender[e] * job.g_stride + in;
    const T* a = job.a + k.sender[e] * job.a_stride + in;
    T* dx = job.dg ? job.dg + k.sender[e] * job.dg_stride + in : nullptr;
    const T q = job.q[row + e], qc = Second ? job.qc[row + e] : T(0);
    V r[C], b[C], dr1[C], dr2[C], sum{};
    combine_both<T, N, C>(k.rows, e, p.weight_offset + c0, r, b);
    for (int c = 0; c < C; ++c) {
      V xw{}, aw{};
      for (int m = 0; m < D; ++m) {
        xw += load<V>(x + m * p.in_stride + c * N) * w[m][c];
        if constexpr (Second) aw += load<V>(a + m * p.in_stride + c * N) * w[m][c];
      }
      dr1[c] = q * xw;
      dr2[c] = q * aw + qc * xw;
      sum += Second ? r[c] * aw + b[c] * xw : r[c] * xw;
      if (dx) {
        const V factor = Second ? q * b[c] + qc * r[c] : q * r[c];
        for (int m = 0; m < D; ++m) {
          T* d = dx + m * p.in_stride + c * N;
          store(d, load<V>(d) + factor * w[m][c]);
        }
      }
    }
    radial_adjoint<T, N, C, Second>(k, e, p.weight_offset + c0, dr1, dr2, b);
    if (!job.dsh) continue;
    T* dy = k.dy + (table.sh_offset * kLanes + e) * kWidth<T>;
    store(dy, load<V>(dy) + coefficient * sum);
  }
}

// Runs tile<N, C>(c) over channels [0, mul): tiles of up to MaxC vectors, then half a vector, then single channels.
template <class T, int MaxC, class F>
inline __attribute__((always_inline)) void for_tiles(int64_t mul, F&& tile) {
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
void run_path(const Block<T>& k, const Path& p) {
  constexpr int MaxC = D3 <= 3 ? 4 : 2;  // accumulators must fit the registers
  if (k.job.tables[p.table].diagonal) {
    if (k.out) for_tiles<T, MaxC>(p.mul, [&]<int N, int C>(int64_t c) { diagonal_accumulate<T, N, C, D3, Second>(k, p, c); });
    if (k.w) for_tiles<T, MaxC>(p.mul, [&]<int N, int C>(int64_t c) { diagonal_transpose<T, N, C, D3, Second>(k, p, c); });
  } else {
    if (k.out) for_tiles<T, MaxC>(p.mul, [&]<int N, int C>(int64_t c) { accumulate<T, N, C, D3, Second>(k, p, c); });
    if (k.w) for_tiles<T, MaxC>(p.mul, [&]<int N, int C>(int64_t c) { transpose<T, N, C, D3, Second>(k, p, c); });
  }
}

// Edge matrices of n edges whose harmonics start at y, one edge per lane.
template <class T>
void edge_matrices(const Job<T>& job, const T* y, int64_t stride, int64_t n, T* q) {
  using V = Vec<T, kLanes>;
  V lanes[kMaxSh];
  for (int64_t s = 0; s < job.sh_dim; ++s) {
    lanes[s] = V{};
    for (int64_t e = 0; e < n; ++e) lanes[s][e] = y[e * stride + s];
  }
  for (int64_t t = 0; t < job.n_tables; ++t) {
    const Table<T>& table = job.tables[t];
    for (int i = 0; i < table.q_size; ++i) {
      V sum{};
      for (int k = table.q_begin[i]; k < table.q_begin[i + 1]; ++k) sum += table.by_q[k].value * lanes[table.sh_offset + table.by_q[k].m2];
      store(q + (table.q_offset + i) * kLanes, sum);
    }
  }
}

// Hermite weights of (value, slope) at both ends of the interval that holds x, and of their derivatives. Beyond x = 1 R is the
// last knot's value, the same for every x.
template <class T, bool Second>
void knot_weights(const Job<T>& job, int64_t edge, int64_t n, EdgeRows<T>& rows, int64_t* interval) {
  const Radial<T>& radial = job.radial;
  const T per_unit = T(radial.n_knots - 1), spacing = T(1) / per_unit;
  for (int64_t e = 0; e < n; ++e) {
    const T x = radial.x[(edge + e) * radial.x_stride];
    const T position = (x > T(0) ? (x < T(1) ? x : T(1)) : T(0)) * per_unit;
    int64_t i = int64_t(position);
    if (i > radial.n_knots - 2) i = radial.n_knots - 2;
    const T t = position - T(i), s = T(1) - t, inside = x > T(0) && x < T(1) ? T(1) : T(0);
    interval[e] = i;
    rows.v[0][e] = (T(1) + T(2) * t) * s * s;
    rows.v[1][e] = spacing * t * s * s;
    rows.v[2][e] = t * t * (T(3) - T(2) * t);
    rows.v[3][e] = -spacing * t * t * s;
    rows.slope[0][e] = -inside * T(6) * t * s * per_unit;
    rows.slope[1][e] = inside * s * (T(1) - T(3) * t);
    rows.slope[2][e] = -rows.slope[0][e];
    rows.slope[3][e] = inside * t * (T(3) * t - T(2));
    if constexpr (Second) {
      const T curve = inside * per_unit;
      rows.second[0][e] = curve * per_unit * (T(12) * t - T(6));
      rows.second[1][e] = curve * (T(6) * t - T(4));
      rows.second[2][e] = -rows.second[0][e];
      rows.second[3][e] = curve * (T(6) * t - T(2));
    } else {
      for (int row = 0; row < 4; ++row) rows.s[row][e] = rows.slope[row][e];
    }
  }
}

// The rows of one member.
template <class T, bool Second>
void point_rows(const Job<T>& job, int64_t edge, int64_t n, int64_t member, int64_t group, const int64_t* interval, EdgeRows<T>& rows) {
  const Radial<T>& radial = job.radial;
  const int64_t K = radial.n_weights;
  for (int64_t e = 0; e < n; ++e) {
    if (rows.table) {
      const int64_t offset = (member * radial.n_knots + interval[e]) * 2 * K;
      rows.p0[e] = radial.table + offset;
      rows.p1[e] = rows.p0[e] + K;
      rows.d0[e] = radial.dtable ? radial.dtable + offset : nullptr;
      if constexpr (Second) {
        const T xi = radial.xi[(edge + e) * radial.xi_stride + group * radial.xi_group];
        for (int row = 0; row < 4; ++row) {
          rows.s[row][e] = xi * rows.slope[row][e];
          rows.curve[row][e] = xi * rows.second[row][e];
        }
      }
    } else {
      const int64_t offset = (member * job.n_edges + edge + e) * K;
      rows.p0[e] = radial.rows + offset;
      rows.p1[e] = Second ? radial.b + member * radial.b_member + (edge + e) * radial.b_stride : rows.p0[e];
      rows.d0[e] = radial.drows ? radial.drows + offset : nullptr;
    }
  }
}

template <class T>
void flush(T* lanes, T* out, int64_t n, int64_t stride) {
  alignas(64) T sums[kLanes];
  sum_eight_rows<T, kWidth<T>>(lanes, sums);
  for (int64_t e = 0; e < n; ++e) out[e * stride] = sums[e];
  for (int64_t i = 0; i < kLanes * kWidth<T>; ++i) lanes[i] = 0;
}

template <class T, bool Second>
void run(const Job<T>& job, int64_t begin, int64_t end) {
  alignas(64) T dy[kMaxSh * kLanes * kWidth<T>] = {};
  alignas(64) T dx[kLanes * kWidth<T>] = {};
  int64_t interval[kLanes] = {};
  EdgeRows<T> rows{};
  rows.table = job.radial.n_knots > 0;
  rows.step = rows.table ? 2 * job.radial.n_weights : 0;
  if (!rows.table)
    for (int e = 0; e < kLanes; ++e) rows.v[0][e] = rows.s[1][e] = T(1);
  const bool want_dx = job.radial.dx && job.w;
  for (int64_t j = begin; j < end; ++j)
    for (int64_t e = job.row_ptr[j]; e < job.row_ptr[j + 1]; e += kLanes) {
      const int64_t left = job.row_ptr[j + 1] - e, n = left < kLanes ? left : kLanes;
      edge_matrices(job, job.sh + e * job.sh_stride, job.sh_stride, n, job.q);
      if (rows.table) knot_weights<T, Second>(job, e, n, rows, interval);
      for (int64_t m = job.first_member; m < job.last_member; ++m) {
        const int64_t group = job.n_groups > 1 ? m : 0;
        if (Second && (m == job.first_member || group > 0))
          edge_matrices(job, job.c + e * job.c_stride + (job.c_stride ? group * job.sh_dim : 0), job.c_stride, n, job.qc);
        point_rows<T, Second>(job, e, n, m, group, interval, rows);
        const Block<T> k{job, n, m, job.sender + e, rows, job.w ? job.w + j * job.out_stride : nullptr,
                         job.out ? job.out + j * job.out_stride : nullptr, dy, want_dx ? dx : nullptr};
        for (int64_t i = 0; i < job.n_paths; ++i) switch (job.paths[i].d3) {
            case 1: run_path<T, 1, Second>(k, job.paths[i]); break;
            case 3: run_path<T, 3, Second>(k, job.paths[i]); break;
            case 5: run_path<T, 5, Second>(k, job.paths[i]); break;
            case 7: run_path<T, 7, Second>(k, job.paths[i]); break;
          }
        if (job.n_groups == 1 && m + 1 < job.last_member) continue;
        if (want_dx) flush(dx, job.radial.dx + e * job.n_groups + group, n, job.n_groups);
        if (job.dsh && job.w)
          for (int64_t s = 0; s < job.sh_dim; ++s)
            flush(dy + s * kLanes * kWidth<T>, job.dsh + (e * job.n_groups + group) * job.sh_dim + s, n, job.n_groups * job.sh_dim);
      }
    }
}

const KernelSet kSet{{run<float, false>, run<float, true>}, {run<double, false>, run<double, true>}};

}  // namespace

const KernelSet* RACE_ISA() { return &kSet; }

}  // namespace race::conv
