#pragma once
// The interface of conv.cpp to the kernels, which are compiled once per instruction set. It is
// plain data only. An inline function shared with those translation units could be emitted with
// AVX-512, and then be linked into code that runs everywhere.
#include <cstdint>

#include "../src/conv_path.h"

namespace race::conv {

constexpr int kLanes = 16;   // edges of one receiver that are worked on together
constexpr int kMaxSh = 16;   // (lmax + 1)^2, lmax = 3
constexpr int kMaxDim = 7;   // 2 lmax + 1
constexpr int kRows = 6;     // rows of a table that determine the quintic of an interval
constexpr int kChunk = 128;  // blocks of edges that are taken through all paths before the next

// One non-zero coefficient: couples entry q = m1 * d3 + m3 of the edge matrix Q with Y[m2].
template <class T>
struct Entry {
  int32_t q, m2;
  T value;
};

// Coupling coefficients of one (l1, l2, l3): Q[m1, m3] = sum_m2 cg[m1, m2, m3] Y[m2], shared by all
// paths with equal ones.
template <class T>
struct CouplingTable {
  int32_t d1, d2, d3, sh_offset;
  int32_t q_size;        // entries of the edge matrix; one if diagonal
  bool diagonal;         // Q = q * identity (l2 = 0)
  const Entry<T>* by_q;  // sorted by q; q_begin[q] .. q_begin[q + 1]
  const int32_t* q_begin;
  const Entry<T>* by_m2;  // the same, sorted by m2
  const int32_t* m2_begin;
};

struct PlannedPath : Path {
  int32_t table;                  // index of its coefficient table
  int64_t in_stride, out_stride;  // from one spherical component to the next
  int32_t partner;  // > 0: index of a diagonal path that reads the same features with the same
                    // table, worked on together
  bool is_partner;  // computed together with another path
};

// The radial weights R[m, e, k]: rows of a matrix [M, E, K], or a spline with the coefficients
// `table` [M, N, K] at x[e]. b is a direction of R: rows of a matrix as well, or R'(x[e]) xi[e,
// group]. Their adjoints go to drows [M, E, K], or to dx [G, E] and dtable [M, N, K], each only if
// given; dx alone is overwritten.
template <class T>
struct Radial {
  int64_t n_weights, n_rows;           // K; N, zero without a table
  const T *rows, *b, *x, *table, *xi;  // absent b or xi: a row of zeros with stride 0
  int64_t b_stride, b_member, x_stride, xi_stride, xi_group;
  T *drows, *dx, *dtable;
};

// One block: up to kLanes edges of one receiver, and the row of each. A row is the interval of the
// table that holds x, or the edge itself if R is given as rows.
struct EdgeBlock {
  int64_t receiver, edge, n;
  int64_t row[kLanes];
};

// The trilinear map out = T(g, R, Y) and its derivatives over receivers [begin, end).
//   first order   out += T(g, R, Y);  w given: dg, dR, dY of <w, T(g, R, Y)>
//   second order  the same of S = <w, T(a, R, Y) + T(g, b, Y) + T(g, R, c)>, out being dS/dw
// An absent a, b or c is a row of zeros with stride 0. Results may be null; out, dg and the radial
// adjoints are added to.
template <class T>
struct Arguments {
  const PlannedPath* paths;
  int64_t n_paths;
  const CouplingTable<T>* tables;
  int64_t n_tables, sh_dim, n_groups, n_edges;
  int64_t first_member, last_member;
  const int64_t *sender, *row_ptr;

  const T *g, *a;  // rows of senders
  int64_t g_stride, a_stride;
  Radial<T> radial;
  const T *sh, *c;  // [E, S] values; cotangents [E, G, S]
  int64_t sh_stride, c_stride;
  const T* w;  // rows of receivers, null: no dg, dR, dY
  int64_t out_stride;

  T *out, *dg, *dsh;  // dsh [G, E, S]: one group after the other, as they are worked on
  int64_t dg_stride;

  // Scratch of a chunk of blocks, lane by edge.
  EdgeBlock* blocks;
  T *y, *c_lanes;          // [S] sh and c
  T *value, *direction;    // [kRows] R and its direction, as sums over the rows of an interval
  T *slope, *curve;        // [kRows] second order: R' and R''
  T *dy_lanes, *dx_lanes;  // [S], [1] adjoints of sh and x
};

// Numbers of T in the scratch of one block, without the EdgeBlock itself.
constexpr int64_t scratch_size(int64_t sh_dim) { return (3 * sh_dim + 4 * kRows + 1) * kLanes; }

template <class T>
struct Kernels {
  void (*first)(const Arguments<T>&, int64_t begin, int64_t end);
  void (*second)(const Arguments<T>&, int64_t begin, int64_t end);
};

struct KernelSet {
  Kernels<float> f32;
  Kernels<double> f64;
};

const KernelSet* kernels_baseline();
const KernelSet* kernels_avx2();  // x86-64 only, like the next
const KernelSet* kernels_avx512();

}  // namespace race::conv
