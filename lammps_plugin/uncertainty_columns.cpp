#include "uncertainty_columns.h"

#include <algorithm>
#include <cstring>

#include "atom.h"
#include "fix_race_hold.h"
#include "memory.h"
#include "modify.h"

using namespace LAMMPS_NS;

UncertaintyColumns::UncertaintyColumns(LAMMPS* lmp, const std::string& hold_id)
    : Pointers(lmp), hold_id_(hold_id) {
  for (const race::Quantity& quantity : race::quantities()) {
    if (!quantity.of_atoms) continue;
    columns_.push_back({&quantity});
    n_columns_ += quantity.n_columns;
  }
}

UncertaintyColumns::~UncertaintyColumns() {
  hold(false);
  for (Column& column : columns_) {
    memory->destroy(column.vector);
    memory->destroy(column.array);
  }
}

// Grows the columns with zeros for new atoms, until these are evaluated.
void UncertaintyColumns::grow() {
  if (atom->nmax <= n_max_) return;
  for (Column& column : columns_) {
    const int n = column.quantity->n_columns;
    if (n == 1) {
      memory->grow(column.vector, atom->nmax, "pair:race");
    } else {
      memory->grow(column.array, atom->nmax, n, "pair:race");
    }
    std::fill(column.row(n_max_),
              column.row(n_max_) + static_cast<int64_t>(n) * (atom->nmax - n_max_), 0.0);
  }
  n_max_ = atom->nmax;
}

void UncertaintyColumns::store(const race::AtomMoments& atoms, const std::vector<int>& atom_of_row,
                               const RaceUnits& units) {
  grow();
  clear();
  for (Column& column : columns_) {
    const int n = column.quantity->n_columns;
    const at::Tensor values =
        (column.quantity->of_atoms(atoms) * units.of(column.quantity->dimension))
            .cpu()
            .contiguous();
    const double* value = values.const_data_ptr<double>();
    for (int64_t row = 0; row < values.size(0); ++row, value += n)
      std::copy_n(value, n, column.row(atom_of_row[row]));
  }
}

void UncertaintyColumns::clear() {
  if (n_max_ == 0) return;
  for (Column& column : columns_)
    std::fill_n(column.row(0), static_cast<int64_t>(column.quantity->n_columns) * n_max_, 0.0);
}

const double* UncertaintyColumns::of(const race::Quantity& quantity, int i) const {
  const auto found = std::find_if(columns_.begin(), columns_.end(), [&](const Column& column) {
    return column.quantity == &quantity;
  });
  return found->row(i);
}

void* UncertaintyColumns::extract(const std::string& symbol, int& n_columns) {
  for (Column& column : columns_) {
    if (symbol.empty() || column.quantity->symbol != symbol) continue;
    grow();
    n_columns = column.quantity->n_columns == 1 ? 0 : column.quantity->n_columns;
    return n_columns ? static_cast<void*>(column.array) : column.vector;
  }
  return nullptr;
}

FixRaceHold* UncertaintyColumns::holder() const {
  return dynamic_cast<FixRaceHold*>(modify->get_fix_by_id(hold_id_));
}

void UncertaintyColumns::hold(bool wanted) {
  if (modify && holder()) modify->delete_fix(hold_id_);
  if (wanted) modify->add_fix(fmt::format("{} all RACE/HOLD {}", hold_id_, n_columns_));
}

void UncertaintyColumns::keep() const {
  FixRaceHold* fix = holder();
  if (!fix) return;
  fix->follow();
  for (int i = 0; i < atom->nlocal; ++i) {
    double* to = fix->hold(i);
    for (const Column& column : columns_)
      to = std::copy_n(column.row(i), column.quantity->n_columns, to);
  }
}

bool UncertaintyColumns::recall() {
  const FixRaceHold* fix = holder();
  if (!fix) return false;
  grow();
  for (int i = 0; i < atom->nlocal; ++i) {
    const double* from = fix->held(i);
    for (const Column& column : columns_) {
      const int n = column.quantity->n_columns;
      if (from) {
        std::copy_n(from, n, column.row(i));
        from += n;
      } else {
        std::fill_n(column.row(i), n, 0.0);
      }
    }
  }
  return true;
}

double UncertaintyColumns::memory_usage() const {
  return static_cast<double>(n_max_) * n_columns_ * sizeof(double);
}
