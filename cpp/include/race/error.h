#pragma once

#include <stdexcept>
#include <string>

namespace race {

/// The one exception that librace throws for a user's mistake. what() is one line: the fault, its
/// place, the expected and the received value, and the remedy. Callers show it unchanged (LAMMPS:
/// error->one / error->all; Python: race.RaceError).
class Error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

}  // namespace race
