// Part of conv_kernel.inl: where the radial weights of an edge are, and with which weights their rows add up.

// Where R and its direction lie: R = sum_i value[i] p_i over the rows p_0, p_1, p_2 and those `step` further, the direction the same
// with its own weights. A table's rows are (value, slope, curvature) of an interval's two knots, explicit rows p_0 = R, p_1 = b.
template <class T>
struct Rows {
  const T *p0, *p1;
  T* d0;  // where the adjoint of p_0 goes, and one after the other those of the other rows; null if not wanted
  int64_t third, step, stride0, stride1;  // strides: from one row[e] to the next
  int64_t n_weights;
  int n_adjoints;
};

// Quintic Hermite weights of (value, slope, curvature) at both ends of each edge's interval: of R, R' and (second order) R''.
// `inside` is 0 from x = 1 on and at x <= 0, where R does not depend on x.
template <class T>
void hermite(const T* fraction, const T* inside, int64_t n_knots, T* value, T* slope, T* curve) {
  using V = Vec<T, kLanes>;
  const T per_unit = T(n_knots - 1), h = T(1) / per_unit, h2 = h * h;
  const V t = load<V>(fraction), s = T(1) - t, t2 = t * t, s2 = s * s, t3 = t2 * t, s3 = s2 * s, in = load<V>(inside);
  const V weights[3][kRows] = {
      {s3 * (T(1) + T(3) * t + T(6) * t2), h * t * s3 * (T(1) + T(3) * t), h2 * T(0.5) * t2 * s3,
       t3 * (T(1) + T(3) * s + T(6) * s2), -h * s * t3 * (T(1) + T(3) * s), h2 * T(0.5) * t3 * s2},
      {-in * per_unit * T(30) * t2 * s2, in * s2 * (T(1) + T(2) * t - T(15) * t2), in * h * T(0.5) * t * s2 * (T(2) - T(5) * t),
       in * per_unit * T(30) * t2 * s2, in * t2 * (T(1) + T(2) * s - T(15) * s2), in * h * T(0.5) * t2 * s * (T(3) - T(5) * t)},
      {-in * per_unit * per_unit * T(60) * t * s * (s - t), -in * per_unit * T(12) * t * s * (T(3) - T(5) * t), in * s * (T(1) - T(8) * t + T(10) * t2),
       in * per_unit * per_unit * T(60) * t * s * (s - t), in * per_unit * T(12) * t * s * (T(3) - T(5) * s), in * t * (T(1) - T(8) * s + T(10) * s2)}};
  for (int row = 0; row < kRows; ++row) {
    store(value + row * kLanes, weights[0][row]);
    store(slope + row * kLanes, weights[1][row]);
    if (curve) store(curve + row * kLanes, weights[2][row]);
  }
}

// Rows and weights of the edges of block `i`.
template <class T, bool Second>
void place(const Job<T>& job, int64_t i) {
  const int64_t size = kRows * kLanes, n_knots = job.radial.n_knots;
  Block& block = job.blocks[i];
  if (n_knots == 0) {
    for (int64_t e = 0; e < kLanes; ++e) block.row[e] = block.edge + e;
    for (int64_t k = 0; k < size; ++k) {
      job.value[i * size + k] = k < kLanes ? T(1) : T(0);
      job.direction[i * size + k] = k >= kLanes && k < 2 * kLanes ? T(1) : T(0);
    }
    return;
  }
  using V = Vec<T, kLanes>;
  using I = Vec<int64_t, kLanes>;
  alignas(64) T t[kLanes], inside[kLanes];
  const T* from = job.radial.x + block.edge * job.radial.x_stride;
  const bool whole = job.radial.x_stride == 1 && block.edge + kLanes <= job.n_edges;  // further lanes may hold any number
  for (int64_t e = 0; !whole && e < kLanes; ++e) t[e] = from[(e < block.n ? e : 0) * job.radial.x_stride];
  const V x = load<V>(whole ? from : t), zero{}, one = zero + T(1);
  const V position = (x > zero ? (x < one ? x : one) : zero) * T(n_knots - 1);
  const I last = I{} + (n_knots - 2), floor = __builtin_convertvector(position, I), interval = floor < last ? floor : last;
  store(block.row, interval);
  store(t, position - __builtin_convertvector(interval, V));
  store(inside, x > zero ? (x < one ? one : zero) : zero);
  hermite<T>(t, inside, n_knots, job.value + i * size, (Second ? job.slope : job.direction) + i * size, Second ? job.curve + i * size : nullptr);
}

// The direction of one group: xi R'.
template <class T>
void direct(const Job<T>& job, int64_t i, int64_t group) {
  const int64_t size = kRows * kLanes;
  const Block& block = job.blocks[i];
  for (int64_t e = 0; e < block.n; ++e) {
    const T xi = job.radial.xi[(block.edge + e) * job.radial.xi_stride + group * job.radial.xi_group];
    for (int64_t k = i * size + e; k < (i + 1) * size; k += kLanes) job.direction[k] = xi * job.slope[k];
  }
}

// The rows of one member.
template <class T, bool Second>
Rows<T> rows_of(const Radial<T>& radial, int64_t n_edges, int64_t member) {
  const int64_t K = radial.n_weights;
  if (radial.n_knots) {
    const int64_t offset = member * radial.n_knots * 3 * K;
    return {radial.table + offset, radial.table + offset + K, radial.dtable ? radial.dtable + offset : nullptr, 2 * K, 3 * K, 3 * K, 3 * K, K, kRows};
  }
  const int64_t offset = member * n_edges * K;
  const T* rows = radial.rows + offset;
  return {rows, Second ? radial.b + member * radial.b_member : rows, radial.drows ? radial.drows + offset : nullptr, 0, 0, K, Second ? radial.b_stride : K, K, 1};
}
