#pragma once

#include <stdexcept>
#include <string>

namespace race {

/// The one exception librace throws for a user's mistake. what() is one line: what is wrong, where,
/// what was expected, what came and how to mend it. Callers show it as it is (LAMMPS: error->one /
/// error->all; Python: race.RaceError).
class Error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

}  // namespace race
