// Runs the kernels of cpp/simd on fixed problems and prints every result, one a line:
//   NAME number number ...
// It knows no torch: it is for processors and instruction sets for which there is none.
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "../../../cpp/simd/conv_kernel.h"
#include "../../../cpp/simd/linear_kernel.h"
#include "../../../cpp/simd/product_kernel.h"
#include "../../../cpp/src/conv_plan.h"

namespace {

// The same numbers in [-1, 1) on every machine.
struct Random {
  uint64_t state = 1;

  double number() {
    state = state * 6364136223846793005u + 1442695040888963407u;
    return (state >> 11) * 0x1p-52 - 1.0;
  }
  int64_t below(int64_t n) { return static_cast<int64_t>((0.5 * number() + 0.5) * n); }
  template <class T>
  std::vector<T> draw(int64_t n) {
    std::vector<T> values(n);
    for (T& value : values) value = static_cast<T>(number());
    return values;
  }
};

template <class T>
void print(const std::string& name, const std::vector<T>& values) {
  std::printf("%s/%s", std::is_same_v<T, float> ? "float" : "double", name.c_str());
  for (const T value : values) std::printf(" %.17g", static_cast<double>(value));
  std::printf("\n");
}

template <class T, class KernelSet>
const auto& of(const KernelSet* set) {
  if constexpr (std::is_same_v<T, float>)
    return set->f32;
  else
    return set->f64;
}

// Three species, of which the last has no atom; widths that need tiles of every size.
template <class T>
void linear() {
  using namespace race::linear;
  const auto& kernels = of<T>(kernels_baseline());
  const int64_t M = 2, S = 3, n = 14,
                shapes[][3] = {{1, 5, 3}, {3, 2, 7}, {5, 19, 33}, {1, 70, 127}};
  std::vector<Block> blocks;
  int64_t dim_in = 0, dim_out = 0, numel = 0;
  for (const auto& [d, mul_in, mul_out] : shapes) {
    blocks.push_back({d, mul_in, mul_out, dim_in, dim_out, numel});
    dim_in += d * M * mul_in, dim_out += d * M * mul_out, numel += mul_in * mul_out;
  }
  Random random;
  std::vector<int64_t> order(n), begin{0, 5, n, n};
  for (int64_t p = 0; p < n; ++p) order[p] = 5 * p % n;
  const auto x = random.draw<T>(n * dim_in), grad = random.draw<T>(n * dim_out),
             weight = random.draw<T>(M * S * numel);
  auto y = random.draw<T>(n * dim_out), dweight = random.draw<T>(M * S * numel);

  const Arguments<T> args{blocks.data(),
                          static_cast<int64_t>(blocks.size()),
                          M,
                          S,
                          order.data(),
                          begin.data(),
                          dim_in,
                          dim_out,
                          S * numel,
                          numel,
                          x.data()};
  for (const bool accumulate : {true, false}) {
    kernels.product({args, weight.data(), y.data(), accumulate}, 0, n);
    print(accumulate ? "linear/added" : "linear/product", y);
  }
  std::vector<OuterTask> tasks;
  for (int64_t m = 0; m < M; ++m)
    for (int64_t s = 0; s < S; ++s)
      for (int64_t k = 0; k < args.n_blocks; ++k)
        for (int64_t row = 0; row < blocks[k].mul_in; row += kOuterRows)
          tasks.push_back({m, s, k, row, std::min<int64_t>(kOuterRows, blocks[k].mul_in - row)});
  kernels.outer({args, tasks.data(), grad.data(), dweight.data()}, 0, tasks.size());
  print("linear/outer", dweight);
  std::vector<T> transposed(19 * 33);
  kernels.transpose(weight.data(), 19, 33, transposed.data());
  print("linear/transpose", transposed);
}

// Five lists of couplings; the kernels do not mind that they are no derivatives of each other.
template <class T>
void product() {
  using namespace race::product;
  const auto& kernels = of<T>(kernels_baseline());
  const int64_t D = 9, P = 4, M = 2, C = 37, S = 2, n = 6;
  Random random;
  std::vector<std::vector<int32_t>> begins(5);
  std::vector<std::vector<Run>> runs(5);
  std::vector<std::vector<Entry<T>>> entries(5);
  const auto list = [&](int k) -> BilinearMap<T> {
    begins[k] = {0};
    for (int64_t o = 0; o < D; ++o) {
      for (int64_t run = random.below(3); run >= 0; --run) {
        for (int64_t entry = random.below(4); entry >= 0; --entry)
          entries[k].push_back({static_cast<int32_t>(random.below(D)),
                                static_cast<int32_t>(random.below(D)),
                                static_cast<T>(random.number())});
        runs[k].push_back(
            {static_cast<int32_t>(random.below(P)), static_cast<int32_t>(entries[k].size())});
      }
      begins[k].push_back(static_cast<int32_t>(runs[k].size()));
    }
    return {begins[k].data(), runs[k].data(), entries[k].data()};
  };
  const std::vector<int64_t> order{3, 0, 5, 1, 2, 4}, begin{0, 2, n};
  const int64_t size = n * D * M * C, n_weights = M * S * P * C;
  const auto x = random.draw<T>(size), grad = random.draw<T>(size), bar_x = random.draw<T>(size),
             weight = random.draw<T>(n_weights), bar_weight = random.draw<T>(n_weights);
  std::vector<T> scratch(scratch_size<T>(D, P));

  Arguments<T> args{};
  args.maps = {list(0), list(1), list(2), list(3), list(4), true};
  args.n_components = D, args.n_paths = P, args.n_members = M, args.n_channels = C;
  args.n_species = S, args.order = order.data(), args.begin = begin.data();
  args.x = x.data(), args.grad = grad.data(), args.weight = weight.data();
  args.bar_x = bar_x.data(), args.scratch = scratch.data();
  for (const bool third : {false, true})
    for (const int order_of : {1, 2, 3}) {  // 3: second order with a direction of the weights
      std::vector<T> out(size), dx(size), dweight(n_weights);
      args.maps.has_third = third;
      args.bar_weight = order_of == 3 ? bar_weight.data() : nullptr;
      args.out = out.data(), args.dx = dx.data(), args.dweight = dweight.data();
      (order_of == 1 ? kernels.first : kernels.second)(args, 0, n);
      const std::string name = "product/" + std::to_string(order_of) + (third ? "/third" : "");
      print(name + "/out", out);
      print(name + "/dx", dx);
      print(name + "/dweight", dweight);
    }
}

// All paths up to l = 3, those with l2 = 0 twice; receivers of no, one, 16 and 20 edges.
template <class T>
void convolution() {
  using namespace race::conv;
  const auto& kernels = of<T>(kernels_baseline());
  const int64_t M = 2, mul = 23, n_nodes = 7, lmax = 3, S = (lmax + 1) * (lmax + 1), N = 12;
  const std::vector<int64_t> row_ptr{0, 0, 20, 21, 30, 46};
  const int64_t n_receivers = row_ptr.size() - 1, E = row_ptr.back();
  Random random;
  std::vector<Path> paths;
  std::vector<double> cg;
  int64_t out_mul[lmax + 1] = {}, in_offset[lmax + 1], out_offset[lmax + 1], K = 0;
  for (int64_t l1 = 0; l1 <= lmax; ++l1)
    for (int64_t l2 = 0; l2 <= lmax; ++l2)
      for (int64_t l3 = std::abs(l1 - l2); l3 <= std::min(l1 + l2, lmax); ++l3) {
        const int64_t d1 = 2 * l1 + 1, d2 = 2 * l2 + 1, d3 = 2 * l3 + 1, at = cg.size();
        for (int64_t k = 0; k < d1 * d2 * d3; ++k)
          cg.push_back(l2 == 0                ? (k / d3 == k % d3 ? 0.7 : 0.0)
                       : random.below(3) == 0 ? random.number()
                                              : 0.0);
        for (int copy = 0; copy < (l2 == 0 ? 2 : 1); ++copy, K += mul, out_mul[l3] += mul)
          paths.push_back({l1, l2, l3, mul, 0, 0, 0, out_mul[l3], K, at});
      }
  int64_t dim_in = 0, dim_out = 0;
  for (int64_t l = 0; l <= lmax; ++l) {
    in_offset[l] = std::exchange(dim_in, dim_in + (2 * l + 1) * M * mul);
    out_offset[l] = std::exchange(dim_out, dim_out + (2 * l + 1) * M * out_mul[l]);
  }
  for (Path& path : paths) {
    path.in_offset = in_offset[path.l1];
    path.out_offset = out_offset[path.l3];
    path.out_mul = out_mul[path.l3];
  }
  const KernelPaths<T> plan(paths, M, cg.data());

  std::vector<int64_t> sender(E);
  for (int64_t& each : sender) each = random.below(n_nodes);
  const auto g = random.draw<T>(n_nodes * dim_in), a = random.draw<T>(n_nodes * dim_in),
             w = random.draw<T>(n_receivers * dim_out), sh = random.draw<T>(E * S),
             c = random.draw<T>(E * M * S), rows = random.draw<T>(M * E * K),
             b = random.draw<T>(M * E * K), table = random.draw<T>(M * N * K),
             xi = random.draw<T>(E * M);
  auto x = random.draw<T>(E);
  for (T& each : x) each = T(0.55) + T(0.55) * each;  // some beyond the cutoff, at 1

  const int64_t n_blocks = std::min<int64_t>(kChunk, E / kLanes + n_receivers);
  std::vector<EdgeBlock> blocks(n_blocks);
  std::vector<T> scratch(n_blocks * scratch_size(S));
  for (const bool tabulated : {false, true})
    for (const int64_t groups : {int64_t{1}, M})
      for (const bool second : {false, true}) {
        if (second && groups != M) continue;
        Arguments<T> args{};
        args.paths = plan.paths.data(), args.n_paths = plan.paths.size();
        args.tables = plan.tables.data(), args.n_tables = plan.tables.size();
        args.sh_dim = S, args.n_groups = groups, args.n_edges = E, args.last_member = M;
        args.sender = sender.data(), args.row_ptr = row_ptr.data();
        args.g = g.data(), args.a = second ? a.data() : g.data();
        args.g_stride = args.a_stride = args.dg_stride = dim_in;
        args.sh = sh.data(), args.sh_stride = S;
        args.c = c.data(), args.c_stride = groups * S;
        args.w = w.data(), args.out_stride = dim_out;
        std::vector<T> out(n_receivers * dim_out), dg(n_nodes * dim_in), dsh(groups * E * S),
            drows(M * E * K), dx(groups * E), dtable(M * N * K);
        args.out = out.data(), args.dg = dg.data(), args.dsh = dsh.data();
        args.radial.n_weights = K;
        args.radial.xi = xi.data(), args.radial.xi_stride = groups, args.radial.xi_group = 1;
        if (tabulated) {
          args.radial.n_rows = N, args.radial.table = table.data();
          args.radial.x = x.data(), args.radial.x_stride = 1;
          args.radial.dx = dx.data(), args.radial.dtable = dtable.data();
        } else {
          args.radial.rows = rows.data(), args.radial.drows = drows.data();
          args.radial.b = b.data(), args.radial.b_stride = K, args.radial.b_member = E * K;
        }
        T* at = scratch.data();
        const auto take = [&](int64_t size) { return std::exchange(at, at + size); };
        args.blocks = blocks.data();
        for (T** each : {&args.y, &args.c_lanes, &args.dy_lanes})
          *each = take(S * n_blocks * kLanes);
        for (T** each : {&args.value, &args.direction, &args.slope, &args.curve})
          *each = take(kRows * n_blocks * kLanes);
        args.dx_lanes = take(n_blocks * kLanes);
        (second ? kernels.second : kernels.first)(args, 0, n_receivers);
        const std::string name = std::string("conv") + (tabulated ? "/table" : "/rows") +
                                 (second ? "/2" : "/1") + "/" + std::to_string(groups);
        print(name + "/out", out);
        print(name + "/dg", dg);
        print(name + "/dsh", dsh);
        if (tabulated) {
          print(name + "/dx", dx);
          print(name + "/dtable", dtable);
        } else {
          print(name + "/drows", drows);
        }
      }
}

template <class T>
void all() {
  linear<T>();
  product<T>();
  convolution<T>();
}

}  // namespace

int main() {
  all<double>();
  all<float>();
}
