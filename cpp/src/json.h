#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

namespace race {

/// A JSON value (RFC 8259), read strictly: the small part of it that metadata.json and
/// selftest.json need. Accessors throw race::Error naming `where`, the path to the value
/// ("x.race.pt, metadata.json, elements").
class Json {
 public:
  static Json parse(const std::string& text, const std::string& where);

  bool has(const std::string& key) const;
  const Json& at(const std::string& key) const;  ///< member of an object that must be there
  const std::map<std::string, Json>& object() const;
  const std::vector<Json>& array() const;
  const std::string& string() const;
  double number() const;
  int64_t integer() const;
  bool boolean() const;

  std::vector<double> numbers() const;    ///< array of numbers, nested arrays flattened in order
  std::vector<int64_t> integers() const;  ///< likewise of integers

 private:
  friend class JsonParser;
  enum class Type { null, boolean, number, string, array, object };
  const Json& expect(Type type, const char* name) const;

  Type type_ = Type::null;
  bool boolean_ = false;
  double number_ = 0;
  std::string string_;
  std::vector<Json> array_;
  std::map<std::string, Json> object_;
  std::string where_;
};

}  // namespace race
