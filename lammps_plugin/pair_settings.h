#pragma once

#include <c10/core/ScalarType.h>

#include <cstdint>
#include <optional>
#include <string>

namespace LAMMPS_NS {

class LAMMPS;
class RestartReader;
class RestartWriter;

/// The arguments of `pair_style race`, and their record in restart files.
struct PairSettings {
  std::string file;  ///< may be given by pair_coeff instead
  std::string pin;   ///< digits of its sha256; restart files have the whole digest instead
  std::string device;
  std::optional<at::ScalarType> dtype;  ///< none: dtype of the export
  std::string lead = "mean";            ///< the model that moves atoms: mean, distilled or a
                                        ///< member, from 1
  int uq_every = 0;
  double memory_cap = 0;  ///< bytes of one evaluation; 0: none
  bool core = false;

  /// pair_style race [file] [device cpu|cuda|cuda:N] [dtype float32|float64] [uq every N]
  ///                 [lead mean|M|distilled] [core on|off] [memory MiB] [sha256 HEX]
  /// A mistake stops every rank with one error that names the argument.
  static PairSettings parse(LAMMPS* lmp, int narg, char** arg, const std::string& default_device);

  /// Version of the whole record of pair_style race; a change of what is written raises it.
  static constexpr int32_t record_version = 4;
  void write(const RestartWriter& restart) const;
  void read(const RestartReader& restart, LAMMPS* lmp);
};

}  // namespace LAMMPS_NS
