#pragma once
// Values that depend on a model or on a step alone: made once, and kept while they are used.
#include <any>
#include <cstddef>
#include <list>
#include <mutex>
#include <utility>
#include <vector>

namespace race {

/// While one lives, every value that a Recent gives on this thread is kept in `values` as well:
/// for a recording, which reads them after a Recent has dropped them.
class Holding {
 public:
  explicit Holding(std::vector<std::any>& values) { values_ = &values; }
  ~Holding() { values_ = nullptr; }
  Holding(const Holding&) = delete;
  Holding& operator=(const Holding&) = delete;

  template <class Value>
  static const Value& hold(const Value& value) {
    if (values_) values_->emplace_back(value);
    return value;
  }

 private:
  static inline thread_local std::vector<std::any>* values_ = nullptr;
};

/// The values of the most recently used keys. Thread safe. To be kept as a reference to an object
/// that is never destroyed: at the end of a process, CUDA may end before it.
template <class Key, class Value>
class Recent {
 public:
  explicit Recent(size_t n_kept) : n_kept_(n_kept) {}

  /// Returns the value whose key `matches`, or that of make(), which gives a new key and its value.
  /// Keys with a method gone() are dropped once it is true.
  template <class Matches, class Make>
  Value get(const Matches& matches, const Make& make) {
    const std::lock_guard lock(mutex_);
    if constexpr (requires(const Key& key) { key.gone(); })
      entries_.remove_if([](const auto& entry) { return entry.first.gone(); });
    for (auto k = entries_.begin(); k != entries_.end(); ++k)
      if (matches(k->first)) {
        entries_.splice(entries_.begin(), entries_, k);
        return Holding::hold(k->second);
      }
    entries_.push_front(make());
    if (entries_.size() > n_kept_) entries_.pop_back();
    return Holding::hold(entries_.front().second);
  }

 private:
  const size_t n_kept_;
  std::mutex mutex_;
  std::list<std::pair<Key, Value>> entries_;
};

}  // namespace race
