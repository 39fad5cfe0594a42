#include "groups.h"

#include <utility>

#include <ATen/ops/arange.h>
#include <ATen/ops/searchsorted.h>
#include <ATen/ops/sort.h>
#include <c10/cuda/CUDAStream.h>

#include "../src/recent.h"
#include "remembered.h"

namespace race::cuda {
namespace {

// Groupings of one rank: the step's species and owners, and a few that alternate.
constexpr size_t kKept = 16;

struct Key {
  Remembered index;
  int64_t n_groups;
  cudaStream_t stream;  // that of the sorting: another one would have to wait for it

  bool gone() const { return index.gone(); }
};

std::shared_ptr<const Groups> make(const at::Tensor& index, int64_t n_groups) {
  const auto [key, order] = at::sort(index, /*stable=*/true, 0, /*descending=*/false);
  const at::Tensor each = at::arange(n_groups + 1, key.options());
  return std::make_shared<const Groups>(
      Groups{.begin = at::searchsorted(key, each), .order = order});
}

}  // namespace

std::shared_ptr<const Groups> groups_for(const at::Tensor& index, int64_t n_groups) {
  if (index.is_inference()) return make(index, n_groups);  // inference tensors have no versions
  const cudaStream_t stream = c10::cuda::getCurrentCUDAStream();
  static auto& groups = *new Recent<Key, std::shared_ptr<const Groups>>(kKept);
  return groups.get(
      [&](const Key& key) {
        return key.n_groups == n_groups && key.stream == stream && key.index.is(index);
      },
      [&] { return std::pair{Key{Remembered(index), n_groups, stream}, make(index, n_groups)}; });
}

}  // namespace race::cuda
