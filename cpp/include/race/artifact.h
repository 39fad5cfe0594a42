#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <utility>
#include <vector>

namespace race {

/// The metadata of an artifact (metadata.json). A missing or mistyped field is a race::Error.
struct Metadata {
  int64_t format = 0;  ///< format of the artifact: oldest_format .. format_version
  std::string race_version;
  std::string torch_version;  ///< torch's version at the export
  std::string dtype;  ///< "float32" or "float64": dtype of the stored weights, and the default to
                      ///< run in
  std::string head;   ///< point, energy, cholesky, equivariant, evidential, eip
  std::string stress_head;         ///< none, equivariant: the head of the stress noise
  std::string posterior;           ///< point (one member), ensemble, ...
  std::string energy_aggregation;  ///< "extensive": node_energy_var is in eV^2 and sums to the
                                   ///< frame's variance; "paper": it is s_i, and the frame's
                                   ///< variance is exp(mean_i s_i)
  bool portable = false;           ///< stock ATen operators only
  double r_max = 0;                ///< cutoff, Angstrom
  int64_t n_layers = 0;
  int64_t n_members = 0;  ///< M
  int64_t n_trunks = 0;   ///< number of trunks T, a divisor of M: member m reads the features of
                          ///< trunk m % T; the layers compute trunks alone
  std::vector<std::string> elements;  ///< chemical symbols in species order
  std::vector<int64_t>
      halo_widths;  ///< [n_layers - 1] scalars per atom exchanged before layer 1, 2, ...
  std::vector<std::string>
      keep_float64;  ///< buffers that stay float64 in every dtype of the model (E0, scale)
  std::map<std::string, double>
      calibration;  ///< constants by name, e.g. "force_std_scale"; empty when uncalibrated
  std::vector<double> interval_levels;  ///< ascending, in (0, 1): the levels of the factors below
  std::map<std::string, std::vector<double>>
      interval_factors;  ///< by target (energy, forces, stress); a list may end before the levels
                         ///< do
  std::map<std::string, double> min_distance;  ///< Angstrom, shortest pair seen in training by
                                               ///< "B-O", symbols by atomic number
  std::map<std::string, double>
      max_force;  ///< eV/Angstrom, largest force norm seen in training by element
  std::map<std::string, std::pair<double, double>>
      n_neighbors;  ///< fewest and most neighbours in training by element; may be empty
  double training_cutoff =
      4.0;                 ///< Angstrom: min_distance and n_neighbors count pairs closer than this
  bool has_grade = false;  ///< the artifact grades how unlike its training set an atom's features
                           ///< are
  std::string json;        ///< metadata.json itself

  /// True if the model predicts noise of the stress / an energy variance / a force covariance.
  bool has_stress_cov() const { return stress_head != "none"; }
  bool has_energy_var() const { return head != "point"; }
  bool has_force_cov() const {
    return head == "cholesky" || head == "equivariant" || has_own_epistemic();
  }
  /// One member tells the aleatoric part of the force covariance from the epistemic one.
  bool has_own_epistemic() const { return head == "evidential" || head == "eip"; }

  /// Half-width of the calibrated central interval that holds the true value with probability
  /// `level`. Its unit is the predicted standard deviation (of the energy, or of one component of a
  /// force or a stress). Between the tabulated levels it is linear in the half-width of the normal
  /// distribution. A plain factor on the standard deviation is then exact at every level. Without a
  /// table, forces have the normal distribution with "force_std_scale".
  /// @throws race::Error if the target is not calibrated, or if level is outside (0, 1) or beyond
  /// the range of the calibration.
  double interval_factor(const std::string& target, double level) const;
  bool is_calibrated(const std::string& target) const;  ///< whether the target has such a factor
  static std::string not_calibrated(const std::string& target);  ///< the error message if it has
                                                                 ///< none
};

/// Reads metadata.json. `name` is the file, for messages.
Metadata parse_metadata(const std::string& json, const std::string& name);

/// `race export` writes format_version; oldest_format is the oldest that librace reads. A file of
/// one release runs in every later one (tests/deploy/golden). The number rises if an earlier
/// release would misread a new file; an added field or segment does not change it.
inline constexpr int64_t format_version = 4, oldest_format = 4;

/// A verified artifact: the bytes of the whole file. Rank 0 reads it; the other ranks receive the
/// bytes by broadcast and verify them again.
struct Artifact {
  std::string name;  ///< path, for messages
  std::string bytes;
  std::string sha256;  ///< 64 lower-case hex digits, of all bytes but the last 64
};

/// Verifies bytes *before* anything parses them: torch's zip reader checks no CRC. The file ends in
/// a ZIP archive comment `race-artifact/N sha256:<64 hex>`, the digest being that of every byte
/// before those 64 digits. This is integrity and provenance, not a sandbox: whoever can write the
/// file can write its digest.
/// @param expected_sha256 if not empty, the digest that the file must have (any case, >= 8 leading
/// digits).
/// @throws race::Error for another kind of file, another format version, a truncated or damaged
/// file, another digest.
Artifact verify_artifact(std::string bytes, const std::string& name,
                         const std::string& expected_sha256 = "");

/// Reads a file and verifies it. @throws race::Error also if it cannot be read.
Artifact read_artifact(const std::string& path, const std::string& expected_sha256 = "");

/// SHA-256 (FIPS 180-4) as 64 lower-case hex digits.
std::string sha256_hex(const char* data, std::size_t size);

}  // namespace race
