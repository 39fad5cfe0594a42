#pragma once

#include <memory>
#include <string>
#include <vector>

#include "fix.h"

namespace race {
struct Quantity;
}

namespace LAMMPS_NS {

class PairRace;
struct UncertaintyReader;

/// `fix ID group race/guard N warn|dump|stop ...`: watches, on all ranks together, for cases that
/// the model cannot be trusted on.
class FixRaceGuard : public Fix {
 public:
  FixRaceGuard(LAMMPS*, int, char**);
  int setmask() override;
  void init() override;
  void setup(int) override { check(); }
  void min_setup(int) override { check(); }
  void end_of_step() override { check(); }
  void min_post_force(int) override;
  double compute_scalar() override;
  double compute_vector(int) override;

 private:
  enum class Action { warn, dump, stop };
  enum Kind { not_finite, overlap, unseen, density, force_std, grade, n_kinds };
  static constexpr int first_quantity = force_std;  ///< this kind and later ones are quantities of
                                                    ///< compute race/atom

  /// The findings of one rank of one kind: their number, and the worst case.
  struct Finding {
    int count = 0;
    double severity = 0;
    std::string text;  ///< description of the worst case
    tagint tag = 0;    ///< its atom; 0: none in particular
    void add(double how_bad, tagint atom, const std::string& what);
  };
  struct Range {
    double min = 0, max = 0;
  };

  bool reads_quantities() const;
  bool looks_at(bigint step) const;
  void check();
  void look();
  void find_not_finite(Finding&) const;
  void find_pairs(Finding& overlaps, Finding& unseen_pairs) const;
  void find_densities(Finding&) const;
  void find_above(const race::Quantity&, double limit, Finding&) const;
  std::string reduce(std::vector<Finding>& findings, std::vector<tagint>& atoms);
  tagint tag_of(int64_t row) const;
  std::string name_of(int i) const;
  bool in_group(int64_t row) const;

  Action action_;
  double overlap_factor_ = 1, density_factor_ = 1;  ///< 0: off
  double limits_[n_kinds] = {};                     ///< limits of quantities, in LAMMPS's units; 0:
                                                    ///< off
  bool unseen_ = true, density_asked_ = false;
  double environment_ = 0;  ///< radius of the environment written around an offender, length units;
                            ///< 0: the whole configuration
  std::string file_;
  bool written_ = false;

  std::vector<double> shortest_;  ///< [n_species, n_species] Angstrom; 0: a pair never seen
  std::vector<Range> neighbors_;  ///< [n_species] in training; empty: not known
  double seen_within_ = 0;        ///< Angstrom: how far the training set was searched for pairs
  int counts_[n_kinds] = {};      ///< number of findings at the last check, over all ranks
  PairRace* pair_ = nullptr;
  std::shared_ptr<UncertaintyReader> reader_;
};

}  // namespace LAMMPS_NS
