#include "race/baseline.h"

#include "json.h"
#include "race/artifact.h"

namespace race {

std::string baseline_of(const Metadata& metadata) {
  const Json root = Json::parse(metadata.json, "metadata.json");
  if (!root.has("baseline")) return "";
  std::string commands;
  for (const Json& command : root.at("baseline").at("lammps").array())
    commands += (commands.empty() ? "" : "; ") + command.string();
  return commands.empty() ? root.at("baseline").at("calculator").string() : commands;
}

}  // namespace race
