#pragma once

#include <string>
#include <vector>

#include "pointers.h"
#include "race/quantities.h"
#include "units.h"

namespace LAMMPS_NS {

class FixRaceHold;

/// The per-atom columns of the table of quantities for a rank's owned atoms, in LAMMPS's units and
/// order; 0 for atoms of other pair styles. With `uq every N` a fix holds them between evaluations.
class UncertaintyColumns : protected Pointers {
 public:
  /// @param hold_id ID of the fix that holds values, while one does.
  UncertaintyColumns(LAMMPS*, const std::string& hold_id);
  ~UncertaintyColumns() override;

  /// @param atom_of_row local index in LAMMPS of each row of `atoms`.
  void store(const race::AtomMoments& atoms, const std::vector<int>& atom_of_row,
             const RaceUnits& units);

  /// The values of atom i: quantity.n_columns numbers.
  const double* of(const race::Quantity& quantity, int i) const;

  void clear();  ///< All zeros.

  /// LAMMPS's Pair::extract_peratom, by symbol; nullptr for other names. The array is long enough
  /// for all atoms.
  void* extract(const std::string& symbol, int& n_columns);

  /// Before a run: makes a fix anew to hold values, or none. The fix of an earlier run may have
  /// lost its atoms to a command in between.
  void hold(bool wanted);
  void keep() const;  ///< Puts the columns into the fix, whose values go with their atoms.
  /// Gets the columns back. False if there is no fix, for example because the user deleted it.
  bool recall();

  double memory_usage() const;

 private:
  struct Column {
    const race::Quantity* quantity;
    double* vector = nullptr;  ///< [n_max], one column
    double** array = nullptr;  ///< [n_max, n_columns], several
    double* row(int i) const { return array ? array[i] : vector + i; }
  };
  void grow();
  FixRaceHold* holder() const;

  std::string hold_id_;
  std::vector<Column> columns_;
  int n_columns_ = 0;  ///< number of columns of all quantities
  int n_max_ = 0;
};

}  // namespace LAMMPS_NS
