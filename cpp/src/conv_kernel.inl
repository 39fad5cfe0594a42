// The kernels behind race::conv, vectorised over channels. Included by one source per instruction set, which defines
// RACE_ISA (a name) and RACE_BYTES (vector width).
//
// Work is cut into blocks of up to kLanes edges of one receiver. Per block the edge matrices Q[m1, m3] = sum_m2 cg Y are formed
// once, lane by edge, for all paths and members; then each path runs one of the loops below on channel tiles of C vectors. The
// receiver's rows (out, w) stay in registers or L1 across the edges of the block; every other operand is touched once.
#include "conv_kernel.h"

namespace race::conv {
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
inline __attribute__((always_inline)) V load(const T* p) {
  V v;
  __builtin_memcpy(&v, p, sizeof(V));
  return v;
}

template <class V, class T>
inline __attribute__((always_inline)) void store(T* p, const V& v) {
  __builtin_memcpy(p, &v, sizeof(V));
}

template <class T>
constexpr int kWidth = RACE_BYTES / sizeof(T);

// One block of edges, one member.
template <class T>
struct Block {
  const Job<T>& job;
  int64_t n, member;
  const int64_t* sender;
  const T *radial, *b;  // rows of the block's edges
  T* dradial;
  const T* w;  // the receiver's rows
  T* out;
  T* dy;  // [kLanes, sh_dim, kWidth] partial sums of dY, one vector each
};

template <class T>
inline __attribute__((always_inline)) int64_t in_column(const Block<T>& k, const Path& p, int64_t c) {
  return p.in_offset + k.member * p.mul + c;
}

template <class T>
inline __attribute__((always_inline)) int64_t out_column(const Block<T>& k, const Path& p, int64_t c) {
  return p.out_offset + k.member * p.out_mul + p.column + c;
}

// Radial rows come from memory, a few lines per path: asks for the same columns one block ahead.
template <class T, int N, int C, bool Second>
inline __attribute__((always_inline)) void prefetch(const Job<T>& job, const T* radial, const T* b, const T* dradial) {
  for (int c = 0; c < C; ++c) {
    __builtin_prefetch(radial + kLanes * job.radial_stride + c * N, 0, 2);
    if constexpr (Second) __builtin_prefetch(b + kLanes * job.b_stride + c * N, 0, 2);
    if (dradial) __builtin_prefetch(dradial + kLanes * job.dradial_stride + c * N, 1, 2);
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
    const T* radial = k.radial + e * job.radial_stride + p.weight_offset + c0;
    const T* b = k.b + e * job.b_stride + p.weight_offset + c0;
    const T *q = q0 + e, *qc = qc0 + e;
    prefetch<T, N, C, Second>(job, radial, b, nullptr);
    V r[C], rb[C];
    for (int c = 0; c < C; ++c) {
      r[c] = load<V>(radial + c * N);
      if constexpr (Second) rb[c] = load<V>(b + c * N);
    }
    for (int m1 = 0; m1 < p.d1; ++m1, x += p.in_stride, a += p.in_stride, q += D3 * kLanes, qc += D3 * kLanes) {
      V s[C], t[C];
      for (int c = 0; c < C; ++c) {
        const V xv = load<V>(x + c * N);
        t[c] = r[c] * xv;
        s[c] = t[c];
        if constexpr (Second) s[c] = r[c] * load<V>(a + c * N) + rb[c] * xv;
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

template <class T, class V>
inline __attribute__((always_inline)) void put(T* p, const V& v, bool overwrite) {
  if (overwrite)
    store(p, v);
  else
    store(p, load<V>(p) + v);
}

// dg and dR only: w stays in registers across the block's edges.
template <class T, int N, int C, int D3, bool Second>
void transpose(const Block<T>& k, const Path& p, int64_t c0) {
  using V = Vec<T, N>;
  const Job<T>& job = k.job;
  const T* q0 = job.q + job.tables[p.table].q_offset * kLanes;
  const T* qc0 = job.qc + job.tables[p.table].q_offset * kLanes;
  const int64_t in = in_column(k, p, c0);
  const T* w0 = k.w + out_column(k, p, c0);
  V w[D3][C];
  for (int m3 = 0; m3 < D3; ++m3)
    for (int c = 0; c < C; ++c) w[m3][c] = load<V>(w0 + m3 * p.out_stride + c * N);
  for (int64_t e = 0; e < k.n; ++e) {
    const T* x = job.g + k.sender[e] * job.g_stride + in;
    const T* a = job.a + k.sender[e] * job.a_stride + in;
    T* dx = job.dg + k.sender[e] * job.dg_stride + in;
    const T* radial = k.radial + e * job.radial_stride + p.weight_offset + c0;
    const T* b = k.b + e * job.b_stride + p.weight_offset + c0;
    const T *q = q0 + e, *qc = qc0 + e;
    T* dradial = k.dradial + e * job.dradial_stride + p.weight_offset + c0;
    prefetch<T, N, C, Second>(job, radial, b, dradial);
    V r[C], rb[C], dr[C];
    for (int c = 0; c < C; ++c) {
      dr[c] = V{};
      r[c] = load<V>(radial + c * N);
      if constexpr (Second) rb[c] = load<V>(b + c * N);
    }
    for (int m1 = 0; m1 < p.d1; ++m1, x += p.in_stride, a += p.in_stride, dx += p.in_stride, q += D3 * kLanes, qc += D3 * kLanes)
      for (int c = 0; c < C; ++c) {
        const V xv = load<V>(x + c * N);
        V u{}, uc{};
        for (int m3 = 0; m3 < D3; ++m3) {
          u += q[m3 * kLanes] * w[m3][c];
          if constexpr (Second) uc += qc[m3 * kLanes] * w[m3][c];
        }
        V d = load<V>(dx + c * N);
        if constexpr (Second) {
          dr[c] += load<V>(a + c * N) * u + xv * uc;
          d += rb[c] * u + r[c] * uc;
        } else {
          dr[c] += xv * u;
          d += r[c] * u;
        }
        store(dx + c * N, d);
      }
    for (int c = 0; c < C; ++c) put(dradial + c * N, dr[c], job.overwrite_dradial);
  }
}

// dg, dR and dY. dQ[m1, m3] = sum_c w R x is summed over the tile's vectors, then dY = cg . dQ on whole vectors: fewer
// operations than reducing the (up to 49) dQ across lanes, since dY has at most seven columns, which all paths share.
template <class T, int N, int C, int D3, bool Second>
void transpose_sh(const Block<T>& k, const Path& p, int64_t c0) {
  using V = Vec<T, N>;
  const Job<T>& job = k.job;
  const Table<T>& table = job.tables[p.table];
  const T* q0 = job.q + table.q_offset * kLanes;
  const T* qc0 = job.qc + table.q_offset * kLanes;
  const int64_t in = in_column(k, p, c0);
  const T* w0 = k.w + out_column(k, p, c0);
  alignas(64) T dq[kMaxDim * D3 * N];
  for (int64_t e = 0; e < k.n; ++e) {
    const T* x = job.g + k.sender[e] * job.g_stride + in;
    const T* a = job.a + k.sender[e] * job.a_stride + in;
    T* dx = job.dg + k.sender[e] * job.dg_stride + in;
    const T* radial = k.radial + e * job.radial_stride + p.weight_offset + c0;
    const T* b = k.b + e * job.b_stride + p.weight_offset + c0;
    const T *q = q0 + e, *qc = qc0 + e;
    T* dradial = k.dradial + e * job.dradial_stride + p.weight_offset + c0;
    prefetch<T, N, C, Second>(job, radial, b, dradial);
    V r[C], rb[C], dr[C];
    for (int c = 0; c < C; ++c) {
      dr[c] = V{};
      r[c] = load<V>(radial + c * N);
      if constexpr (Second) rb[c] = load<V>(b + c * N);
    }
    for (int m1 = 0; m1 < p.d1; ++m1, x += p.in_stride, a += p.in_stride, dx += p.in_stride, q += D3 * kLanes, qc += D3 * kLanes) {
      V sum[D3];
      for (int m3 = 0; m3 < D3; ++m3) sum[m3] = V{};
      for (int c = 0; c < C; ++c) {
        const V xv = load<V>(x + c * N);
        V av{}, u{}, uc{}, s = r[c] * xv;
        if constexpr (Second) {
          av = load<V>(a + c * N);
          s = r[c] * av + rb[c] * xv;
        }
        for (int m3 = 0; m3 < D3; ++m3) {
          const V w = load<V>(w0 + m3 * p.out_stride + c * N);
          u += q[m3 * kLanes] * w;
          if constexpr (Second) uc += qc[m3 * kLanes] * w;
          sum[m3] += s * w;
        }
        V d = load<V>(dx + c * N);
        if constexpr (Second) {
          dr[c] += av * u + xv * uc;
          d += rb[c] * u + r[c] * uc;
        } else {
          dr[c] += xv * u;
          d += r[c] * u;
        }
        store(dx + c * N, d);
      }
      for (int m3 = 0; m3 < D3; ++m3) store(dq + (m1 * D3 + m3) * N, sum[m3]);
    }
    for (int c = 0; c < C; ++c) put(dradial + c * N, dr[c], job.overwrite_dradial);

    T* dy = k.dy + (e * job.sh_dim + table.sh_offset) * kWidth<T>;
    for (int m2 = 0; m2 < table.d2; ++m2, dy += kWidth<T>) {
      V sum = load<V>(dy);
      for (int i = table.m2_begin[m2]; i < table.m2_begin[m2 + 1]; ++i) sum += table.by_m2[i].value * load<V>(dq + table.by_m2[i].q * N);
      store(dy, sum);
    }
  }
}

// Q = q * identity: everything follows from <x, w> over m, without matrices.
template <class T, int N, bool Second>
void diagonal(const Block<T>& k, const Path& p, int64_t c0) {
  using V = Vec<T, N>;
  const Job<T>& job = k.job;
  const Table<T>& table = job.tables[p.table];
  const T coefficient = table.by_q[0].value;
  const int64_t in = in_column(k, p, c0), row = out_column(k, p, c0);
  for (int64_t e = 0; e < k.n; ++e) {
    const T* x = job.g + k.sender[e] * job.g_stride + in;
    const T* a = job.a + k.sender[e] * job.a_stride + in;
    const T* radial = k.radial + e * job.radial_stride + p.weight_offset + c0;
    const T* b = k.b + e * job.b_stride + p.weight_offset + c0;
    T* dradial = k.w ? k.dradial + e * job.dradial_stride + p.weight_offset + c0 : nullptr;
    prefetch<T, N, 1, Second>(job, radial, b, dradial);
    const V r = load<V>(radial), rb = load<V>(b);
    const T q = job.q[table.q_offset * kLanes + e], qc = Second ? job.qc[table.q_offset * kLanes + e] : T(0);
    const V qr = q * r, qb = q * rb + qc * r;
    if (k.out)
      for (int m = 0; m < p.d3; ++m) {
        const V xv = load<V>(x + m * p.in_stride);
        T* out = k.out + row + m * p.out_stride;
        if constexpr (Second)
          store(out, load<V>(out) + qr * load<V>(a + m * p.in_stride) + qb * xv);
        else
          store(out, load<V>(out) + qr * xv);
      }
    if (!k.w) continue;
    T* dx = job.dg + k.sender[e] * job.dg_stride + in;
    V xw{}, aw{};
    for (int m = 0; m < p.d3; ++m) {
      const V w = load<V>(k.w + row + m * p.out_stride);
      xw += load<V>(x + m * p.in_stride) * w;
      if constexpr (Second) aw += load<V>(a + m * p.in_stride) * w;
      store(dx + m * p.in_stride, load<V>(dx + m * p.in_stride) + (Second ? qb : qr) * w);
    }
    put(dradial, Second ? q * aw + qc * xw : q * xw, job.overwrite_dradial);
    if (job.dsh) {
      T* dy = k.dy + (e * job.sh_dim + table.sh_offset) * kWidth<T>;
      store(dy, load<V>(dy) + coefficient * (Second ? r * aw + rb * xw : r * xw));
    }
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
  if (k.out) for_tiles<T, 2>(p.mul, [&]<int N, int C>(int64_t c) { accumulate<T, N, C, D3, Second>(k, p, c); });
  if (!k.w) return;
  if (k.job.dsh)
    for_tiles<T, 4>(p.mul, [&]<int N, int C>(int64_t c) { transpose_sh<T, N, C, D3, Second>(k, p, c); });
  else
    for_tiles<T, 2>(p.mul, [&]<int N, int C>(int64_t c) { transpose<T, N, C, D3, Second>(k, p, c); });
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

template <class T>
void flush_dsh(const Job<T>& job, T* dy, int64_t edge, int64_t n, int64_t group) {
  for (int64_t e = 0; e < n; ++e)
    for (int64_t s = 0; s < job.sh_dim; ++s) {
      T* lanes = dy + (e * job.sh_dim + s) * kWidth<T>;
      T sum = 0;
      for (int i = 0; i < kWidth<T>; ++i) {
        sum += lanes[i];
        lanes[i] = 0;
      }
      job.dsh[((edge + e) * job.n_groups + group) * job.sh_dim + s] = sum;
    }
}

template <class T, bool Second>
void run(const Job<T>& job, int64_t begin, int64_t end) {
  alignas(64) T dy[kLanes * kMaxSh * kWidth<T>] = {};
  for (int64_t j = begin; j < end; ++j)
    for (int64_t e = job.row_ptr[j]; e < job.row_ptr[j + 1]; e += kLanes) {
      const int64_t left = job.row_ptr[j + 1] - e, n = left < kLanes ? left : kLanes;
      edge_matrices(job, job.sh + e * job.sh_stride, job.sh_stride, n, job.q);
      for (int64_t m = 0; m < job.n_members; ++m) {
        const int64_t group = job.n_groups > 1 ? m : 0;
        if (Second && (m == 0 || group > 0)) edge_matrices(job, job.c + e * job.c_stride + (job.c_stride ? group * job.sh_dim : 0), job.c_stride, n, job.qc);
        const Block<T> k{job,
                         n,
                         m,
                         job.sender + e,
                         job.radial + m * job.radial_member + e * job.radial_stride,
                         job.b + m * job.b_member + e * job.b_stride,
                         job.dradial + m * job.dradial_member + e * job.dradial_stride,
                         job.w ? job.w + j * job.out_stride : nullptr,
                         job.out ? job.out + j * job.out_stride : nullptr,
                         dy};
        for (int64_t i = 0; i < job.n_paths; ++i) {
          const Path& p = job.paths[i];
          if (job.tables[p.table].diagonal) {
            for_tiles<T, 1>(p.mul, [&]<int N, int C>(int64_t c) { diagonal<T, N, Second>(k, p, c); });
            continue;
          }
          switch (p.d3) {
            case 1: run_path<T, 1, Second>(k, p); break;
            case 3: run_path<T, 3, Second>(k, p); break;
            case 5: run_path<T, 5, Second>(k, p); break;
            case 7: run_path<T, 7, Second>(k, p); break;
          }
        }
        if (job.dsh && (group > 0 || job.n_groups > 1 || m == job.n_members - 1)) flush_dsh(job, dy, e, n, group);
      }
    }
}

const KernelSet kSet{{run<float, false>, run<float, true>}, {run<double, false>, run<double, true>}};

}  // namespace

const KernelSet* RACE_ISA() { return &kSet; }

}  // namespace race::conv
