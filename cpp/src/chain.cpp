#include "race/chain.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <algorithm>

#include "check.h"
#include "linear_groups.h"
#include "operators.h"

namespace race {
namespace {

using at::Tensor;
using linear::Block;

constexpr int kFields = 9;
constexpr int64_t kAtoms =
    64;  // taken through the whole chain together: their rows stay in the cache

struct Link {
  int64_t from, to;
  Block block;
  int64_t weight_step;
};

struct Chain {
  std::vector<Tensor> tensors;  // those given, then those made
  std::vector<Link> links;
  int64_t n_given, n_atoms;

  Chain(at::TensorList x, const std::optional<Tensor>& rows, const Tensor& species,
        const Tensor& weight, int64_t n_species, c10::IntArrayRef widths, c10::IntArrayRef blocks)
      : tensors(x.vec()), n_given(x.size()), n_atoms(species.size(0)) {
    RACE_CHECK("chain", weight.dim() == 2 && weight.size(0) >= 1 && weight.is_contiguous(),
               "weight", "contiguous [n_members, numel]", weight.sizes());
    RACE_CHECK("chain", weight.scalar_type() == at::kFloat || weight.scalar_type() == at::kDouble,
               "weight", "float32 or float64", weight.scalar_type());
    RACE_CHECK("chain",
               species.dim() == 1 && species.scalar_type() == at::kLong &&
                   species.device() == weight.device(),
               "species", c10::str("int64 [n] on ", weight.device()), species.scalar_type(), " ",
               species.sizes(), " on ", species.device());
    for (size_t k = 0; k < tensors.size(); ++k)
      check_rows(c10::str("x[", k, "]"), tensors[k], n_atoms, weight);
    int64_t dim_rows = 0;
    for (const int64_t width : widths) {
      RACE_CHECK("chain", width >= 0, "widths", "no negative width", width);
      tensors.push_back(at::empty({n_atoms, width}, weight.options()));
      dim_rows += width;
    }
    if (rows) {
      check_rows("rows", *rows, n_species, weight);
      RACE_CHECK("chain", rows->size(1) == dim_rows, "rows",
                 c10::str("the sum of widths, ", dim_rows, " columns"), rows->size(1));
    }
    RACE_CHECK("chain", blocks.size() % kFields == 0, "blocks",
               c10::str("rows of ", kFields, " integers"), blocks.size(), " integers");
    for (size_t k = 0; k < blocks.size() / kFields; ++k)
      add(k, blocks.data() + k * kFields, weight, n_species);
  }

 private:
  static void check_rows(const std::string& name, const Tensor& t, int64_t n,
                         const Tensor& weight) {
    RACE_CHECK(
        "chain",
        t.dim() == 2 && t.size(0) == n && t.scalar_type() == weight.scalar_type() &&
            t.device() == weight.device() && t.is_contiguous(),
        name,
        c10::str("contiguous ", weight.scalar_type(), " [", n, ", width] on ", weight.device()),
        t.scalar_type(), " ", t.sizes(), " with strides ", t.strides(), " on ", t.device());
  }

  void add(size_t k, const int64_t* row, const Tensor& weight, int64_t n_species) {
    const auto where = [k](const char* field) { return c10::str("blocks row ", k, ", ", field); };
    const Link link{row[0], row[1], {row[2], row[3], row[4], row[5], row[6], row[7]}, row[8]};
    const Block& b = link.block;
    const int64_t n = tensors.size(), M = weight.size(0),
                  last =
                      b.weight_offset + (n_species - 1) * link.weight_step + b.mul_in * b.mul_out;
    RACE_CHECK("chain",
               std::min(link.from, link.to) >= 0 && std::max(link.from, link.to) < n &&
                   link.from != link.to,
               where("from to"), c10::str("two of ", n, " tensors"), link.from, " ", link.to);
    RACE_CHECK("chain", std::min({b.d, b.mul_in, b.mul_out}) >= 1, where("d mul_in mul_out"),
               "at least 1", b.d, " ", b.mul_in, " ", b.mul_out);
    const int64_t dim_in = tensors[link.from].size(1), dim_out = tensors[link.to].size(1);
    RACE_CHECK(
        "chain", b.in_offset >= 0 && b.in_offset + b.d * M * b.mul_in <= dim_in, where("in_offset"),
        c10::str("a block of ", b.d * M * b.mul_in, " inside ", dim_in, " columns"), b.in_offset);
    RACE_CHECK("chain", b.out_offset >= 0 && b.out_offset + b.d * M * b.mul_out <= dim_out,
               where("out_offset"),
               c10::str("a block of ", b.d * M * b.mul_out, " inside ", dim_out, " columns"),
               b.out_offset);
    RACE_CHECK("chain", b.weight_offset >= 0 && link.weight_step >= 0 && last <= weight.size(1),
               where("weight_offset weight_step"),
               c10::str("matrices inside weight's ", weight.size(1), " numbers"), b.weight_offset,
               " ", link.weight_step);
    links.push_back(link);
  }
};

template <class T>
void run(const Chain& chain, const std::optional<Tensor>& rows, const Tensor& species,
         const Tensor& weight, int64_t n_species) {
  const linear::Groups groups(chain.n_atoms, n_species, species);
  const int64_t* order = groups.order.empty() ? nullptr : groups.order.data();
  const int64_t M = weight.size(0);
  std::vector<linear::Product<T>> jobs;
  int64_t work = 1;  // multiply-adds per atom
  for (const Link& link : chain.links) {
    const Tensor &from = chain.tensors[link.from], &to = chain.tensors[link.to];
    linear::Product<T> job{};
    job.blocks = &link.block;
    job.n_blocks = 1;
    job.n_members = M;
    job.n_species = n_species;
    job.order = order;
    job.begin = groups.begin.data();
    job.x = from.const_data_ptr<T>();
    job.x_stride = from.size(1);
    job.y = to.data_ptr<T>();
    job.y_stride = to.size(1);
    job.accumulate = true;
    job.weight = weight.const_data_ptr<T>();
    job.weight_member = weight.size(1);
    job.weight_species = link.weight_step;
    jobs.push_back(job);
    work += link.block.d * M * link.block.mul_in * link.block.mul_out;
  }
  const Tensor z = species.contiguous();
  const int64_t* of = z.const_data_ptr<int64_t>();
  const auto start = [&](int64_t first, int64_t last) {
    const T* row = rows ? rows->const_data_ptr<T>() : nullptr;
    const int64_t dim_rows = rows ? rows->size(1) : 0;
    for (size_t k = chain.n_given; k < chain.tensors.size(); ++k) {
      const int64_t width = chain.tensors[k].size(1);
      T* to = chain.tensors[k].template data_ptr<T>();
      for (int64_t p = first; p < last; ++p) {
        const int64_t i = order ? order[p] : p;
        if (row)
          std::copy_n(row + of[i] * dim_rows, width, to + i * width);
        else
          std::fill_n(to + i * width, width, T(0));
      }
      if (row) row += width;
    }
  };
  at::parallel_for(0, chain.n_atoms, std::max<int64_t>(1, linear::kGrain / work),
                   [&](int64_t begin, int64_t end) {
                     for (int64_t first = begin; first < end; first += kAtoms) {
                       const int64_t last = std::min(end, first + kAtoms);
                       start(first, last);
                       for (const auto& job : jobs) linear::kernels<T>().product(job, first, last);
                     }
                   });
}

std::vector<Tensor> made(const Chain& chain) {
  return {chain.tensors.begin() + chain.n_given, chain.tensors.end()};
}

}  // namespace

std::vector<Tensor> chain_cpu(at::TensorList x, const std::optional<Tensor>& rows,
                              const Tensor& species, const Tensor& weight, int64_t n_species,
                              c10::IntArrayRef widths, c10::IntArrayRef blocks) {
  const Chain chain(x, rows, species, weight, n_species, widths, blocks);
  AT_DISPATCH_FLOATING_TYPES(weight.scalar_type(), "race::chain",
                             [&] { run<scalar_t>(chain, rows, species, weight, n_species); });
  return made(chain);
}

std::vector<Tensor> chain_aten(at::TensorList x, const std::optional<Tensor>& rows,
                               const Tensor& species, const Tensor& weight, int64_t n_species,
                               c10::IntArrayRef widths, c10::IntArrayRef blocks) {
  const Chain chain(x, rows, species, weight, n_species, widths, blocks);
  int64_t column = 0;
  for (size_t k = chain.n_given; k < chain.tensors.size(); ++k) {
    const Tensor& t = chain.tensors[k];
    if (rows)
      t.copy_(rows->narrow(1, column, t.size(1)).index_select(0, species));
    else
      t.zero_();
    column += t.size(1);
  }
  const int64_t M = weight.size(0);
  for (const Link& link : chain.links) {
    const Block& b = link.block;
    const int64_t S = link.weight_step ? n_species : 1;
    const Tensor matrices =
        weight.as_strided({M, S, b.mul_in * b.mul_out}, {weight.stride(0), link.weight_step, 1},
                          weight.storage_offset() + b.weight_offset);
    const Tensor part = chain.tensors[link.from].narrow(1, b.in_offset, b.d * M * b.mul_in);
    const std::optional<Tensor> of = S > 1 ? std::optional<Tensor>(species) : std::nullopt;
    const int64_t width = b.d * M * b.mul_out;
    chain.tensors[link.to]
        .narrow(1, b.out_offset, width)
        .add_(linear_aten(part, matrices, of, {b.d, b.mul_in, b.mul_out, 0, 0, 0}, width));
  }
  return made(chain);
}

namespace {

const bool registered =
    register_operators("race::chain", __FILE__, __LINE__, [](torch::Library* library) {
      Operator(library,
               "chain(Tensor(a!)[] x, Tensor? rows, Tensor species, Tensor weight, int n_species, "
               "int[] widths, int[] blocks) -> Tensor[]")
          .cpu(TORCH_FN(chain_cpu))
          .portable(TORCH_FN(chain_aten));
    });

}  // namespace
}  // namespace race
