#include "race/artifact.h"

#include <algorithm>
#include <cctype>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <sstream>

#include "json.h"
#include "race/error.h"

namespace race {
namespace {

const std::string trailer_name = "race-artifact/";
constexpr std::size_t digest_size = 64;

/// Position of the trailer's first byte; the trailer is a ZIP archive comment, so it ends the file.
std::size_t find_trailer(const std::string& bytes, const std::string& name) {
  const bool is_zip = bytes.compare(0, 4, "PK\3\4") == 0;
  const std::string make_one = "; make one with `race export`";
  if (bytes.empty()) throw Error(name + ": empty file; expected a RACE artifact" + make_one);
  if (!is_zip) throw Error(name + ": not a RACE artifact (not a zip archive)" + make_one);

  // End of central directory: "PK\5\6", 16 bytes, then the comment's length in two bytes and the
  // comment.
  const std::size_t end = bytes.rfind("PK\5\6");
  if (end == std::string::npos || end + 22 > bytes.size())
    throw Error(
        name +
        ": truncated artifact, or not a RACE artifact (the archive has no end); copy it again");
  const std::size_t stated = static_cast<unsigned char>(bytes[end + 20]) |
                             std::size_t(static_cast<unsigned char>(bytes[end + 21])) << 8;
  const std::size_t comment = end + 22;
  if (comment + stated != bytes.size())
    throw Error(name +
                ": truncated or damaged artifact (the trailer is incomplete); copy it again");
  if (bytes.compare(comment, trailer_name.size(), trailer_name) != 0)
    throw Error(name + ": a zip archive, but not a RACE artifact (no race-artifact trailer)" +
                make_one);
  return comment;
}

/// Returns the text of a possibly damaged file, fit for a message.
std::string printable(std::string text) {
  text.resize(std::min<std::size_t>(text.size(), 40));
  std::replace_if(
      text.begin(), text.end(), [](unsigned char c) { return c < 0x20 || c > 0x7e; }, '?');
  return text;
}

/// N of "race-artifact/N ...", -1 if it is no number.
int64_t format_of(const std::string& trailer) {
  const std::string digits =
      trailer.substr(trailer_name.size(), trailer.find(' ') - trailer_name.size());
  const bool number =
      !digits.empty() && digits.size() < 10 &&
      std::all_of(digits.begin(), digits.end(), [](unsigned char c) { return std::isdigit(c); });
  return number ? std::stoll(digits) : -1;
}

/// Formats of earlier releases are read as they are; parse_metadata() has a default for each field
/// that they lack.
void check_format(int64_t format, const std::string& text, const std::string& name) {
  if (format >= oldest_format && format <= format_version) return;
  const std::string range =
      oldest_format == format_version
          ? std::to_string(format_version)
          : std::to_string(oldest_format) + " to " + std::to_string(format_version);
  throw Error(name + ": artifact format '" + printable(text.substr(0, text.find(' '))) +
              "'; this librace reads " + trailer_name + range +
              (format > format_version ? "; update race, which made this file in a later release"
                                       : "; export the model again"));
}

bool is_hex(const std::string& text) {
  return std::all_of(text.begin(), text.end(),
                     [](unsigned char c) { return std::isdigit(c) || (c >= 'a' && c <= 'f'); });
}

/// z with P(|Z| < z) = probability for a standard normal Z, by bisection: called a few times per
/// run.
double normal_half_width(double probability) {
  double low = 0, high = 9;  // P(|Z| < 9) = 1 - 2e-19
  while (high - low > 1e-15 * high) {
    const double middle = (low + high) / 2;
    if (middle == low || middle == high) break;
    // erfc keeps the digits of 1 - probability where erf has none left
    (std::erfc(middle / std::sqrt(2.0)) > 1 - probability ? low : high) = middle;
  }
  return low;
}

bool ascending(const std::vector<double>& values) {
  return !values.empty() && values.front() > 0 && std::is_sorted(values.begin(), values.end());
}

/// "intervals" of metadata.json: {"levels": [...], "energy": [...], "forces": [...], ...}; absent
/// if uncalibrated.
void parse_intervals(const Json& intervals, const std::string& name, Metadata& data) {
  data.interval_levels = intervals.at("levels").numbers();
  for (const char* target : {"energy", "forces", "stress"})
    if (intervals.has(target)) data.interval_factors[target] = intervals.at(target).numbers();
  bool valid = ascending(data.interval_levels) && data.interval_levels.back() < 1;
  for (const auto& [target, factors] : data.interval_factors)
    valid = valid && ascending(factors) && factors.size() <= data.interval_levels.size();
  if (!valid)
    throw Error(
        name +
        ": metadata.json, intervals: expected ascending levels and factors; calibrate and export again");
}

}  // namespace

Artifact verify_artifact(std::string bytes, const std::string& name,
                         const std::string& expected_sha256) {
  const std::size_t comment = find_trailer(bytes, name);
  const std::string trailer = bytes.substr(comment);
  check_format(format_of(trailer), trailer, name);
  const std::string current = trailer.substr(0, trailer.find(' ') + 1);
  const std::string prefix = current + "sha256:";
  const std::string digest = trailer.substr(std::min(prefix.size(), trailer.size()));
  if (trailer.compare(0, prefix.size(), prefix) != 0 || digest.size() != digest_size ||
      !is_hex(digest))
    throw Error(name + ": damaged artifact (unreadable trailer); copy it again");
  const std::string actual = sha256_hex(bytes.data(), bytes.size() - digest_size);
  if (actual != digest)
    throw Error(name + ": damaged artifact (sha256 " + actual.substr(0, 12) +
                "..., the file says " + digest.substr(0, 12) + "...); copy it again");

  if (!expected_sha256.empty()) {
    std::string expected = expected_sha256;
    std::transform(expected.begin(), expected.end(), expected.begin(),
                   [](unsigned char c) { return std::tolower(c); });
    if (expected.size() < 8 || expected.size() > digest_size || !is_hex(expected))
      throw Error(name + ": the requested sha256 '" + expected_sha256 +
                  "' is not 8 to 64 hex digits");
    if (actual.compare(0, expected.size(), expected) != 0)
      throw Error(name + ": another artifact than requested; expected sha256 " + expected +
                  ", got " + actual);
  }
  return Artifact{name, std::move(bytes), actual};
}

Artifact read_artifact(const std::string& path, const std::string& expected_sha256) {
  if (std::filesystem::is_directory(path))
    throw Error(path + ": cannot read the artifact, this is a folder; expected NAME.race.pt");
  std::ifstream file(path, std::ios::binary);
  if (!file) throw Error(path + ": cannot open the artifact; check the path and its permissions");
  std::ostringstream bytes;
  bytes << file.rdbuf();
  if (file.bad() || (bytes.fail() && !bytes.str().empty()))
    throw Error(path + ": cannot read the artifact");
  return verify_artifact(std::move(bytes).str(), path, expected_sha256);
}

Metadata parse_metadata(const std::string& json, const std::string& name) {
  const Json root = Json::parse(json, name + ", metadata.json");
  Metadata data;
  data.format = root.at("format").integer();
  check_format(data.format, trailer_name + std::to_string(data.format), name);
  data.race_version = root.at("race_version").string();
  data.torch_version = root.at("torch_version").string();
  data.dtype = root.at("dtype").string();
  data.head = root.at("head").string();
  data.stress_head = root.at("stress_head").string();
  data.energy_aggregation = root.at("energy_aggregation").string();
  data.posterior = root.at("posterior").string();
  data.portable = root.at("portable").boolean();
  data.r_max = root.at("r_max").number();
  data.n_layers = root.at("n_layers").integer();
  data.n_members = root.at("n_members").integer();
  data.n_trunks = root.at("n_trunks").integer();
  for (const Json& element : root.at("elements").array()) data.elements.push_back(element.string());
  data.halo_widths = root.at("halo_widths").integers();
  for (const Json& buffer : root.at("keep_float64").array())
    data.keep_float64.push_back(buffer.string());
  for (const auto& [key, value] : root.at("calibration").object())
    data.calibration[key] = value.number();
  if (root.has("intervals")) parse_intervals(root.at("intervals"), name, data);
  data.has_grade = root.has("grade");  // in exports that had the training set
  const Json& training = root.at("training");
  for (const auto& [pair, value] : training.at("min_distance").object())
    data.min_distance[pair] = value.number();
  for (const auto& [element, value] : training.at("max_force").object())
    data.max_force[element] = value.number();
  // Artifacts of earlier exports have neither; their pairs are those within 4 Angstrom.
  if (training.has("cutoff")) data.training_cutoff = training.at("cutoff").number();
  if (training.has("n_neighbors"))
    for (const auto& [element, range] : training.at("n_neighbors").object()) {
      const std::vector<double> limits = range.numbers();
      if (limits.size() != 2)
        throw Error(name + ": n_neighbors of " + element +
                    " in metadata.json; expected [fewest, most]");
      data.n_neighbors[element] = {limits[0], limits[1]};
    }
  data.json = json;

  if (data.dtype != "float32" && data.dtype != "float64")
    throw Error(name + ": dtype '" + data.dtype +
                "' in metadata.json; expected float32 or float64");
  if (!(data.r_max > 0) || data.n_layers < 1 || data.n_members < 1 || data.n_trunks < 1 ||
      data.n_members % data.n_trunks != 0 || data.elements.empty() ||
      data.halo_widths.size() != static_cast<std::size_t>(data.n_layers - 1))
    throw Error(name + ": inconsistent metadata.json; export the model again");
  return data;
}

bool Metadata::is_calibrated(const std::string& target) const {
  return interval_factors.contains(target) ||
         (target == "forces" && calibration.contains("force_std_scale"));
}

std::string Metadata::not_calibrated(const std::string& target) {
  return "interval of " + target +
         ": the model is not calibrated for it; expected an artifact of `race export --calibration`";
}

double Metadata::interval_factor(const std::string& target, double level) const {
  const std::string what = "interval of " + target;
  if (!(level > 0 && level < 1))
    throw Error(what + ": expected a level between 0 and 1, got " + std::to_string(level));
  const double gauss = normal_half_width(level);
  if (!is_calibrated(target)) throw Error(not_calibrated(target));
  const auto table = interval_factors.find(target);
  if (table == interval_factors.end()) return calibration.at("force_std_scale") * gauss;
  const std::vector<double>& factors = table->second;
  // Written with as many digits as it was asked for: 0.95 is 0.95.
  const std::size_t above =
      std::lower_bound(interval_levels.begin(), interval_levels.end(), level - 1e-12) -
      interval_levels.begin();
  if (above >= factors.size())
    throw Error(what + " at level " + std::to_string(level) + ": the calibration reaches " +
                std::to_string(interval_levels[factors.size() - 1]) +
                "; ask for less, or calibrate on more frames");
  const double g1 = normal_half_width(interval_levels[above]), f1 = factors[above];
  const double g0 = above > 0 ? normal_half_width(interval_levels[above - 1]) : 0,
               f0 = above > 0 ? factors[above - 1] : 0;
  return f0 + (f1 - f0) * std::min(1.0, (gauss - g0) / (g1 - g0));
}

}  // namespace race
