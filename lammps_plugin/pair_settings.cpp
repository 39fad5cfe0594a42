#include "pair_settings.h"

#include <algorithm>
#include <cmath>
#include <iterator>
#include <vector>

#include "error.h"
#include "pointers.h"
#include "restart_record.h"

using namespace LAMMPS_NS;

namespace {

constexpr double MiB = 1048576;

constexpr const char* keywords[] = {"device", "dtype", "uq", "lead", "core", "memory", "sha256"};
// `zbl` is the old word for `core`: under hybrid LAMMPS takes it for pair_style zbl. `halo` has one
// remaining value.
constexpr const char* old_keywords[] = {"zbl", "halo"};

bool is_keyword(const std::string& word) {
  const auto has = [&](const auto& words) {
    return std::find(std::begin(words), std::end(words), word) != std::end(words);
  };
  return has(keywords) || has(old_keywords);
}

}  // namespace

PairSettings PairSettings::parse(LAMMPS* lmp, int narg, char** arg,
                                 const std::string& default_device) {
  Error* error = lmp->error;
  PairSettings settings;
  settings.device = default_device;
  int k = 0;
  if (narg > 0 && !is_keyword(arg[0])) settings.file = arg[k++];
  const auto value = [&](int offset) -> std::string {
    if (k + offset >= narg)
      utils::missing_cmd_args(FLERR, fmt::format("pair_style race {}", arg[k]), error);
    return arg[k + offset];
  };
  for (; k < narg; k += 2) {
    const std::string keyword = arg[k];
    if (keyword == "device") {
      settings.device = value(1);
    } else if (keyword == "dtype") {
      const std::string name = value(1);
      if (name != "float32" && name != "float64")
        error->all(FLERR, "pair_style race dtype: expected float32 or float64, got {}", name);
      settings.dtype = name == "float32" ? at::kFloat : at::kDouble;
    } else if (keyword == "uq") {
      if (value(1) != "every")
        error->all(FLERR, "pair_style race uq: expected every N, got {}", value(1));
      settings.uq_every = utils::inumeric(FLERR, value(2), false, lmp);
      if (settings.uq_every < 0)
        error->all(FLERR, "pair_style race uq every: expected a number of steps >= 0, got {}",
                   settings.uq_every);
      ++k;
    } else if (keyword == "lead") {
      settings.lead = value(1);
      const bool is_member = utils::is_integer(settings.lead) && std::stoi(settings.lead) > 0;
      if (!is_member && settings.lead != "mean" && settings.lead != "distilled")
        error->all(FLERR,
                   "pair_style race lead: expected mean, distilled or a member from 1, got {}",
                   settings.lead);
    } else if (keyword == "core" || keyword == "zbl") {
      if (value(1) != "on" && value(1) != "off")
        error->all(FLERR, "pair_style race {}: expected on or off, got {}", keyword, value(1));
      settings.core = value(1) == "on";
    } else if (keyword == "halo") {
      if (value(1) != "exchange")
        error->all(FLERR, "pair_style race halo: expected exchange, got {}", value(1));
    } else if (keyword == "memory") {
      settings.memory_cap = utils::numeric(FLERR, value(1), false, lmp) * MiB;
      if (!(settings.memory_cap > 0 && std::isfinite(settings.memory_cap)))
        error->all(FLERR, "pair_style race memory: expected MiB > 0, got {}", value(1));
    } else if (keyword == "sha256") {
      settings.pin = value(1);
    } else {
      const std::vector<std::string> known(std::begin(keywords), std::end(keywords));
      error->all(FLERR, "pair_style race: expected a keyword of {}, got {}",
                 utils::join_words(known, ", "), keyword);
    }
  }
  return settings;
}

void PairSettings::write(const RestartWriter& restart) const {
  restart.put(file);
  restart.put(device);
  restart.put(dtype ? std::string(*dtype == at::kFloat ? "float32" : "float64") : std::string());
  restart.put(uq_every);
  restart.put(fmt::format("{}", memory_cap));
  restart.put(static_cast<int32_t>(core));
  restart.put(lead);
}

void PairSettings::read(const RestartReader& restart, LAMMPS* lmp) {
  file = restart.text();
  device = restart.text();
  const std::string name = restart.text();
  dtype.reset();
  if (!name.empty()) dtype = name == "float32" ? at::kFloat : at::kDouble;
  uq_every = restart.number();
  memory_cap = utils::numeric(FLERR, restart.text(), false, lmp);
  core = restart.number() != 0;
  lead = restart.text();
}
