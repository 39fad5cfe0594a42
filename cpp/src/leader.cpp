#include "race/leader.h"

#include <caffe2/serialize/inline_container.h>

#include <sstream>

#include "race/error.h"

namespace race {

Artifact leader_of(const Artifact& artifact, const std::string& name) {
  std::istringstream stream(artifact.bytes);
  caffe2::serialize::PyTorchStreamReader archive(&stream);
  const std::string record = "extra/leaders/" + name;
  if (!archive.hasRecord(record))
    throw Error(artifact.name + ": lead " + name +
                ": the file carries no such member by itself; export it again with --leaders (or "
                "--distilled RUN), or use lead mean");
  const auto [data, size] = archive.getRecord(record);
  return {artifact.name + ", leader " + name,
          std::string(static_cast<const char*>(data.get()), size), artifact.sha256};
}

}  // namespace race
