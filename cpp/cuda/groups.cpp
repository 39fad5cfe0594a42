#include "groups.h"

#include <list>
#include <mutex>

#include <ATen/ops/arange.h>
#include <ATen/ops/searchsorted.h>
#include <ATen/ops/sort.h>
#include <c10/cuda/CUDAStream.h>

#include "remembered.h"

namespace race::cuda {
namespace {

constexpr size_t kKept =
    16;  // groupings of one rank: the step's species and owners, and a few that alternate

struct Kept {
  Remembered index;
  int64_t n_groups;
  cudaStream_t stream;  // their stream: another one would have to wait for it
  std::shared_ptr<const Groups> groups;
};

std::shared_ptr<const Groups> make(const at::Tensor& index, int64_t n_groups) {
  const auto [key, order] = at::sort(index, /*stable=*/true, 0, /*descending=*/false);
  const at::Tensor each = at::arange(n_groups + 1, key.options());
  return std::make_shared<Groups>(Groups{at::searchsorted(key, each), order});
}

}  // namespace

std::shared_ptr<const Groups> groups_for(const at::Tensor& index, int64_t n_groups) {
  if (index.is_inference()) return make(index, n_groups);  // inference tensors have no versions
  const cudaStream_t stream = c10::cuda::getCurrentCUDAStream();
  static std::mutex mutex;
  static auto& kept = *new std::list<Kept>;  // never destroyed: tensors outlive no CUDA context
  const std::lock_guard lock(mutex);
  kept.remove_if([](const Kept& k) { return k.index.gone(); });
  for (auto k = kept.begin(); k != kept.end(); ++k)
    if (k->n_groups == n_groups && k->stream == stream && k->index.is(index)) {
      kept.splice(kept.begin(), kept, k);
      return k->groups;
    }
  kept.push_front({Remembered(index), n_groups, stream, make(index, n_groups)});
  if (kept.size() > kKept) kept.pop_back();
  return kept.front().groups;
}

}  // namespace race::cuda
