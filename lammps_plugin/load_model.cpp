#include "load_model.h"

#include <ATen/Context.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <climits>
#include <functional>
#include <new>
#include <sstream>

#include "lmptype.h"
#include "race/artifact.h"
#include "race/error.h"
#include "race/leader.h"

std::string one_line(const std::exception& error) {
  const auto* torch_error = dynamic_cast<const c10::Error*>(&error);
  std::string text = torch_error ? torch_error->what_without_backtrace() : error.what();
  // TorchScript prints the stack first and the reason last.
  const auto reason = text.rfind("RuntimeError: ");
  if (text.find("Traceback of TorchScript") != std::string::npos && reason != std::string::npos)
    text = text.substr(reason);
  std::istringstream words(text);
  std::string line, word;
  while (words >> word) line += (line.empty() ? "" : " ") + word;
  return line;
}

bool is_out_of_memory(const std::exception& error) {
  if (dynamic_cast<const std::bad_alloc*>(&error)) return true;
  const std::string text = error.what();
  const auto says = [&](const char* words) { return text.find(words) != std::string::npos; };
  return says("bad_alloc") || says("allocate memory") || says("not enough memory") ||
         says("out of memory");
}

std::string agree(MPI_Comm world, const std::string& message) {
  int me, first, mine;
  MPI_Comm_rank(world, &me);
  mine = message.empty() ? INT_MAX : me;
  MPI_Allreduce(&mine, &first, 1, MPI_INT, MPI_MIN, world);
  if (first == INT_MAX) return "";
  int size = static_cast<int>(message.size());
  MPI_Bcast(&size, 1, MPI_INT, first, world);
  std::string text = message;
  text.resize(size);
  MPI_Bcast(text.data(), size, MPI_CHAR, first, world);
  return text;
}

namespace {

// Does `work` in this rank; if it failed on any rank, throws on every rank.
void together(MPI_Comm world, const std::function<void()>& work) {
  std::string message;
  try {
    work();
  } catch (const std::exception& error) {
    message = one_line(error);
  }
  message = agree(world, message);
  if (!message.empty()) throw race::Error(message);
}

void broadcast(MPI_Comm world, std::string& bytes) {
  LAMMPS_NS::bigint size = static_cast<LAMMPS_NS::bigint>(bytes.size());
  MPI_Bcast(&size, 1, MPI_LMP_BIGINT, 0, world);
  bytes.resize(size);
  constexpr int64_t chunk = 1 << 30;  // counts are int in MPI
  for (int64_t at = 0; at < size; at += chunk)
    MPI_Bcast(bytes.data() + at, static_cast<int>(std::min(chunk, size - at)), MPI_CHAR, 0, world);
}

int rank_on_node(MPI_Comm universe) {
#ifdef MPI_STUBS  // a serial LAMMPS: it has no nodes
  return 0;
#else
  MPI_Comm node;
  int rank;
  MPI_Comm_split_type(universe, MPI_COMM_TYPE_SHARED, 0, MPI_INFO_NULL, &node);
  MPI_Comm_rank(node, &rank);
  MPI_Comm_free(&node);
  return rank;
#endif
}

// `cuda` shares the GPUs of a node among the ranks on it.
at::Device pick_device(const std::string& name, int rank_on_node) {
  if (name == "cpu") return at::kCPU;
  const bool known = name == "cuda" || (name.size() > 5 && name.compare(0, 5, "cuda:") == 0 &&
                                        std::all_of(name.begin() + 5, name.end(),
                                                    [](char c) { return c >= '0' && c <= '9'; }));
  if (!known)
    throw race::Error("pair_style race device: expected cpu, cuda or cuda:N, got " + name);
  if (!at::hasCUDA())
    throw race::Error("pair_style race device " + name + ": torch finds no CUDA device for rank " +
                      std::to_string(rank_on_node) + " of this node; use device cpu");
  if (name != "cuda") return at::Device(name);
  const auto count = static_cast<int>(at::detail::getCUDAHooks().deviceCount());
  return at::Device(at::kCUDA, static_cast<c10::DeviceIndex>(rank_on_node % std::max(count, 1)));
}

}  // namespace

LoadedModel load_model(MPI_Comm world, MPI_Comm universe, const LAMMPS_NS::PairSettings& settings) {
  int me;
  MPI_Comm_rank(world, &me);
  race::Artifact artifact;
  together(world, [&] {
    if (me == 0) artifact = race::read_artifact(settings.file, settings.pin);
  });
  broadcast(world, artifact.bytes);
  const int local_rank = settings.device == "cuda" ? rank_on_node(universe) : 0;

  std::optional<race::Model> model, leader;
  together(world, [&] {
    if (me != 0)
      artifact = race::verify_artifact(std::move(artifact.bytes), settings.file, settings.pin);
    const at::Device device = pick_device(settings.device, local_rank);
    model = race::Model::load(artifact, device, settings.dtype);
    if (model->metadata().energy_aggregation == "mean")
      throw race::Error(
          settings.file +
          ": predicts a mean over atoms (model.pooling mean), which is no energy of a "
          "simulation; expected a model of pooling sum");
    const bool one = model->metadata().n_members == 1 && settings.lead == "1";
    if (settings.lead == "mean" || one) return;
    leader = race::Model::load(race::leader_of(artifact, settings.lead), device, settings.dtype);
  });
  return {*std::move(model), std::move(leader)};
}
