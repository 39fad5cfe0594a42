#include "json.h"

#include <charconv>
#include <cmath>

#include "race/error.h"

namespace race {

class JsonParser {
 public:
  JsonParser(const std::string& text, const std::string& where) : text_(text), where_(where) {}

  Json document() {
    Json value = parse_value(where_, 0);
    skip_space();
    if (at_ != text_.size()) fail("text after the end");
    return value;
  }

 private:
  static constexpr int max_depth = 32;

  [[noreturn]] void fail(const std::string& what) const {
    throw Error(where_ + ": not valid JSON at byte " + std::to_string(at_) + ": " + what);
  }
  void skip_space() {
    while (at_ < text_.size() &&
           (text_[at_] == ' ' || text_[at_] == '\n' || text_[at_] == '\r' || text_[at_] == '\t'))
      ++at_;
  }
  bool take(char c) {
    skip_space();
    if (at_ >= text_.size() || text_[at_] != c) return false;
    ++at_;
    return true;
  }
  bool take_word(const char* word) {
    const std::string_view view(word);
    if (text_.compare(at_, view.size(), view) != 0) return false;
    at_ += view.size();
    return true;
  }

  // Arrays pass their own path on: a path per element would cost more than the element.
  Json parse_value(const std::string& where, int depth) {
    if (depth > max_depth) fail("nested too deep");
    skip_space();
    Json value;
    value.where_ = where;
    if (take('{')) {
      value.type_ = Json::Type::object;
      if (take('}')) return value;
      do {
        skip_space();
        std::string key = parse_string();
        if (!take(':')) fail("expected ':'");
        Json member = parse_value(where + ", " + key, depth + 1);
        if (!value.object_.emplace(std::move(key), std::move(member)).second) fail("a key twice");
      } while (take(','));
      if (!take('}')) fail("expected ',' or '}'");
    } else if (take('[')) {
      value.type_ = Json::Type::array;
      if (take(']')) return value;
      do value.array_.push_back(parse_value(where, depth + 1));
      while (take(','));
      if (!take(']')) fail("expected ',' or ']'");
    } else if (at_ < text_.size() && text_[at_] == '"') {
      value.type_ = Json::Type::string;
      value.string_ = parse_string();
    } else if (take_word("true") || take_word("false")) {
      value.type_ = Json::Type::boolean;
      value.boolean_ = text_[at_ - 2] == 'u';
    } else if (take_word("null")) {
      value.type_ = Json::Type::null;
    } else {
      value.type_ = Json::Type::number;
      const auto [end, error] =
          std::from_chars(text_.data() + at_, text_.data() + text_.size(), value.number_);
      if (error != std::errc() || !std::isfinite(value.number_)) fail("expected a value");
      at_ = static_cast<std::size_t>(end - text_.data());
    }
    return value;
  }

  std::string parse_string() {
    if (at_ >= text_.size() || text_[at_] != '"') fail("expected a string");
    std::string out;
    for (++at_; at_ < text_.size() && text_[at_] != '"'; ++at_) {
      if (static_cast<unsigned char>(text_[at_]) < 0x20) fail("control character in a string");
      if (text_[at_] != '\\') {
        out += text_[at_];
        continue;
      }
      if (++at_ >= text_.size()) break;
      switch (text_[at_]) {
        case '"':
        case '\\':
        case '/': out += text_[at_]; break;
        case 'b': out += '\b'; break;
        case 'f': out += '\f'; break;
        case 'n': out += '\n'; break;
        case 'r': out += '\r'; break;
        case 't': out += '\t'; break;
        default:
          fail("an escape that artifacts do not use");  // they are written as UTF-8, without \u
      }
    }
    if (at_ >= text_.size()) fail("unfinished string");
    ++at_;
    return out;
  }

  const std::string& text_;
  const std::string& where_;
  std::size_t at_ = 0;
};

Json Json::parse(const std::string& text, const std::string& where) {
  return JsonParser(text, where).document();
}

const Json& Json::expect(Type type, const char* name) const {
  if (type_ != type) throw Error(where_ + ": expected " + name);
  return *this;
}

bool Json::has(const std::string& key) const {
  return expect(Type::object, "an object").object_.contains(key);
}

const Json& Json::at(const std::string& key) const {
  const auto found = expect(Type::object, "an object").object_.find(key);
  if (found == object_.end())
    throw Error(where_ + ": no field '" + key +
                "'; export the model again with this version of race");
  return found->second;
}

const std::map<std::string, Json>& Json::object() const {
  return expect(Type::object, "an object").object_;
}
const std::vector<Json>& Json::array() const { return expect(Type::array, "an array").array_; }
const std::string& Json::string() const { return expect(Type::string, "a string").string_; }
double Json::number() const { return expect(Type::number, "a number").number_; }
bool Json::boolean() const { return expect(Type::boolean, "true or false").boolean_; }

int64_t Json::integer() const {
  const double value = number();
  if (value != std::floor(value) || std::abs(value) > 9007199254740992.0)
    throw Error(where_ + ": expected an integer");
  return static_cast<int64_t>(value);
}

std::vector<double> Json::numbers() const {
  std::vector<double> out;
  for (const Json& item : array()) {
    if (item.type_ == Type::array) {
      const auto inner = item.numbers();
      out.insert(out.end(), inner.begin(), inner.end());
    } else {
      out.push_back(item.number());
    }
  }
  return out;
}

std::vector<int64_t> Json::integers() const {
  std::vector<int64_t> out;
  for (const Json& item : array()) out.push_back(item.integer());
  return out;
}

}  // namespace race
