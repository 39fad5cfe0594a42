// race::gate on the CPU. Torch's vectorised sigmoid gives the only transcendental function; what is
// left is one pass over each atom's row.
#include "race/gate.h"

#include <algorithm>

#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/sigmoid.h>
#include <ATen/ops/zeros_like.h>

#include "gate_problem.h"

namespace race {
namespace {

using at::Tensor;
using gate::Block;
using gate::Problem;

constexpr int64_t kGrain = 1 << 15;  // fewest numbers that pay for waking a thread

// Rows of a tensor [n, width].
template <class T>
struct Rows {
  T* data = nullptr;
  int64_t stride = 0;
  T* operator[](int64_t row) const { return data + row * stride; }
};
template <class T>
Rows<const T> read(const Tensor& t) {
  return {t.const_data_ptr<T>(), t.stride(0)};
}
template <class T>
Rows<T> write(const Tensor& t) {
  return {t.mutable_data_ptr<T>(), t.stride(0)};
}

// One call: its operands, and the sigmoids of the gates and of the scalars, block by block.
struct Call {
  Problem n;
  GateOperands in;
  std::vector<Tensor> sigmoids;  // [n, M K] or, of scalars, [n, M mul]

  Call(const Problem& n, const GateOperands& o) : n(n), in(o) {
    in.u = gate::rows_of(o.u);
    in.gates = gate::rows_of(o.gates);
    Tensor of_gates;
    for (const Block& b : n.blocks) {
      if (b.gate < 0) {
        sigmoids.push_back(at::sigmoid(in.u.narrow(1, b.offset, n.n_members * b.mul)).contiguous());
      } else {
        if (!of_gates.defined()) of_gates = at::sigmoid(in.gates).contiguous();
        sigmoids.push_back(of_gates);
      }
    }
  }

  Tensor like_u() const { return at::empty({n.n_atoms, n.dim}, in.u.options()); }
  Tensor like_gates() const {
    return at::empty({n.n_atoms, n.n_members * n.n_gates}, in.u.options());
  }

  // Calls each(atom, block, the block's sigmoids) with the numbers of one atom and one block.
  template <class T, class F>
  void over_atoms(const F& each) const {
    std::vector<Rows<const T>> s;
    for (const Tensor& t : sigmoids) s.push_back(read<T>(t));
    at::parallel_for(0, n.n_atoms, std::max<int64_t>(1, kGrain / std::max<int64_t>(n.dim, 1)),
                     [&](int64_t begin, int64_t end) {
                       for (int64_t i = begin; i < end; ++i)
                         for (size_t k = 0; k < n.blocks.size(); ++k) each(i, n.blocks[k], s[k][i]);
                     });
  }
};

}  // namespace

Tensor gate_cpu(const GateOperands& operands) {
  const Call call(Problem(operands), operands);
  const Tensor out = call.like_u();
  AT_DISPATCH_FLOATING_TYPES(out.scalar_type(), "race::gate", [&] {
    using T = scalar_t;
    const T of_silu = static_cast<T>(operands.silu_norm),
            of_sigmoid = static_cast<T>(operands.sigmoid_norm);
    const auto u = read<T>(call.in.u);
    const auto y = write<T>(out);
    const int64_t M = call.n.n_members, K = call.n.n_gates;
    call.over_atoms<T>([=](int64_t i, const Block& b, const T* sigmoid) {
      const T* __restrict x = u[i] + b.offset;
      T* __restrict to = y[i] + b.offset;
      if (b.gate < 0) {
        for (int64_t c = 0; c < M * b.mul; ++c) to[c] = of_silu * x[c] * sigmoid[c];
        return;
      }
      for (int64_t k = 0; k < b.d; ++k)
        for (int64_t m = 0; m < M; ++m, x += b.mul, to += b.mul) {
          const T* __restrict s = sigmoid + m * K + b.gate;
          for (int64_t c = 0; c < b.mul; ++c) to[c] = of_sigmoid * s[c] * x[c];
        }
    });
  });
  return out;
}

std::array<Tensor, 2> gate_backward_cpu(const Tensor& grad, const GateOperands& operands) {
  const Call call(Problem(grad, operands), operands);
  const Tensor g = gate::rows_of(grad), du = call.like_u(), dgates = call.like_gates();
  AT_DISPATCH_FLOATING_TYPES(g.scalar_type(), "race::gate_backward", [&] {
    using T = scalar_t;
    const T of_silu = static_cast<T>(operands.silu_norm),
            of_sigmoid = static_cast<T>(operands.sigmoid_norm);
    const auto u = read<T>(call.in.u), bar = read<T>(g);
    const auto to_u = write<T>(du), to_gates = write<T>(dgates);
    const int64_t M = call.n.n_members, K = call.n.n_gates;
    call.over_atoms<T>([=](int64_t i, const Block& b, const T* sigmoid) {
      const T* __restrict x = u[i] + b.offset;
      const T* __restrict w = bar[i] + b.offset;
      T* __restrict dx = to_u[i] + b.offset;
      if (b.gate < 0) {
        for (int64_t c = 0; c < M * b.mul; ++c)
          dx[c] = of_silu * sigmoid[c] * (1 + x[c] * (1 - sigmoid[c])) * w[c];
        return;
      }
      for (int64_t m = 0; m < M; ++m) {
        const T* __restrict s = sigmoid + m * K + b.gate;
        T* __restrict dz = to_gates[i] + m * K + b.gate;
        std::fill_n(dz, b.mul, T(0));
        for (int64_t k = 0; k < b.d; ++k) {
          const int64_t at = (k * M + m) * b.mul;
          for (int64_t c = 0; c < b.mul; ++c) {
            dx[at + c] = of_sigmoid * s[c] * w[at + c];
            dz[c] += x[at + c] * w[at + c];
          }
        }
        for (int64_t c = 0; c < b.mul; ++c) dz[c] *= of_sigmoid * s[c] * (1 - s[c]);
      }
    });
  });
  return {du, dgates};
}

std::array<Tensor, 3> gate_double_backward_cpu(const GateBars& bars, const Tensor& grad,
                                               const GateOperands& operands) {
  const Call call(Problem(bars, grad, operands), operands);
  const auto cotangent = [](const Tensor& bar, const Tensor& like) {
    return bar.defined() ? gate::rows_of(bar) : at::zeros_like(like);
  };
  const Tensor g = gate::rows_of(grad), bar_u = cotangent(bars.u, call.in.u),
               bar_gates = cotangent(bars.gates, call.in.gates);
  const Tensor dgrad = call.like_u(), du = call.like_u(), dgates = call.like_gates();
  AT_DISPATCH_FLOATING_TYPES(g.scalar_type(), "race::gate_double_backward", [&] {
    using T = scalar_t;
    const T of_silu = static_cast<T>(operands.silu_norm),
            of_sigmoid = static_cast<T>(operands.sigmoid_norm);
    const auto u = read<T>(call.in.u), bar = read<T>(g), v = read<T>(bar_u),
               vz = read<T>(bar_gates);
    const auto to_grad = write<T>(dgrad), to_u = write<T>(du), to_gates = write<T>(dgates);
    const int64_t M = call.n.n_members, K = call.n.n_gates;
    call.over_atoms<T>([=](int64_t i, const Block& b, const T* sigmoid) {
      const T* __restrict x = u[i] + b.offset;
      const T* __restrict w = bar[i] + b.offset;
      const T* __restrict vx = v[i] + b.offset;
      T* __restrict dw = to_grad[i] + b.offset;
      T* __restrict dx = to_u[i] + b.offset;
      if (b.gate < 0) {
        for (int64_t c = 0; c < M * b.mul; ++c) {
          const T s = sigmoid[c], slope = s * (1 - s);
          dw[c] = of_silu * (s + x[c] * slope) * vx[c];
          dx[c] = of_silu * slope * (2 + x[c] * (1 - 2 * s)) * vx[c] * w[c];
        }
        return;
      }
      for (int64_t m = 0; m < M; ++m) {
        const T* __restrict s = sigmoid + m * K + b.gate;
        const T* __restrict z = vz[i] + m * K + b.gate;
        T* __restrict dz = to_gates[i] + m * K + b.gate;
        std::fill_n(dz, b.mul, T(0));
        for (int64_t k = 0; k < b.d; ++k) {
          const int64_t at = (k * M + m) * b.mul;
          for (int64_t c = 0; c < b.mul; ++c) {
            const T slope = of_sigmoid * s[c] * (1 - s[c]) * z[c];
            dw[at + c] = of_sigmoid * s[c] * vx[at + c] + slope * x[at + c];
            dx[at + c] = slope * w[at + c];
            dz[c] += (vx[at + c] + (1 - 2 * s[c]) * z[c] * x[at + c]) * w[at + c];
          }
        }
        for (int64_t c = 0; c < b.mul; ++c) dz[c] *= of_sigmoid * s[c] * (1 - s[c]);
      }
    });
  });
  return {dgrad, du, dgates};
}

}  // namespace race
