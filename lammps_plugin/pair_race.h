#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "lammps_halo.h"
#include "local_graph.h"
#include "pair.h"
#include "race/memory.h"
#include "race/predict.h"
#include "uncertainty.h"
#include "units.h"

namespace LAMMPS_NS {

class FixRaceHold;

/// `pair_style race`: librace on LAMMPS's atoms, ghosts and communication. README.md is the
/// reference of the command.
class PairRace : public Pair {
 public:
  explicit PairRace(LAMMPS*);
  ~PairRace() override;

  void settings(int, char**) override;
  void coeff(int, char**) override;
  void init_style() override;
  double init_one(int, int) override;
  void compute(int, int) override;

  int pack_forward_comm(int, int*, double*, int, int*) override;
  void unpack_forward_comm(int, int, double*) override;
  int pack_reverse_comm(int, int, double*) override;
  void unpack_reverse_comm(int, int*, double*) override;

  void write_restart(FILE*) override;
  void read_restart(FILE*) override;
  void write_restart_settings(FILE*) override;
  void read_restart_settings(FILE*) override;

  void* extract(const char*, int&) override;
  void* extract_peratom(const char*, int&) override;
  double memory_usage() override;

  /// What every step of the plugin's styles runs in. No exception of torch or librace leaves it:
  /// one rank's ends all ranks with one line, as do LAMMPS's own errors of one rank, and the line
  /// has time to come out.
  void guarded(const std::function<void()>& work);

  // What the computes and fixes ask. LAMMPS's units.

  /// Collective: sees that the arrays below hold this step's values, evaluating once more when this
  /// step's forces came without. With `uq every N`: the values of the last step that was evaluated.
  void require_uncertainty();

  /// One per-atom quantity: `vector` or `array` with `columns`, over owned atoms; 0 for atoms of
  /// other pair styles.
  struct PerAtom {
    double* vector = nullptr;
    double** array = nullptr;
    int columns = 0;  ///< 0: vector
  };
  PerAtom e_std, f_std, bald, f_cov{.columns = 6}, f_aleatoric{.columns = 6},
      f_epistemic{.columns = 6};

  struct Totals {
    double energy_std;
    double mean_bald;  ///< over the atoms of this pair style
    double max_bald;
    double max_force_std;
    double virial_std[6];
    double trace_std;  ///< of a third of the virial's trace
  };
  Totals totals();  ///< Collective. Of this step.

  /// The members of this step, in model units (eV, Angstrom).
  struct Members {
    double n_atoms;       ///< of this style, over all ranks
    at::Tensor energies;  ///< [M], over all ranks
    at::Tensor forces;    ///< [n_owned, M, 3] complete, of this rank's rows
    at::Tensor virials;   ///< [M, 9], this rank's part
  };
  Members members();  ///< Collective. Needs an ensemble, and a step evaluated with its uncertainty.

  const race::Metadata* metadata() const { return model_ ? &model_->metadata() : nullptr; }
  const std::string& file() const { return file_; }
  const std::string& element(int type) const { return elements_[type]; }  ///< or NULL
  virtual const LocalGraph& local() { return local_; }  ///< of the last forces, in host memory
  bool finite() const { return finite_; }               ///< this rank's energy, of the last forces
  const RaceUnits& units() const { return units_; }

 protected:
  // What pair_style race/kk replaces: where the graph is made, how its rows travel, where the
  // forces are added.
  virtual std::string default_device() const { return "cpu"; }
  virtual bool on_device() const {
    return false;
  }  ///< forces come to add_forces() on the model's device, not in host memory
  virtual void build_graph(const LocalGraph::Options& options) {
    local_.build(*list, *atom, options);
  }
  virtual const race::Graph& graph() const { return local_.graph(); }
  virtual race::HaloExchange& halo() { return halo_; }
  virtual void add_forces(const at::Tensor& forces);

  std::string device_;
  std::optional<race::Model> model_;
  RaceUnits units_;
  LocalGraph local_;
  HaloTotals exchanged_;

 private:
  void read_settings(int narg, char** arg);
  void read_model();
  void refuse_other_than_restart();
  void hold(bool wanted);
  void read_elements(const std::vector<std::string>& names);
  void set_flags();
  void check_special_bonds() const;
  void check_masses() const;
  void warn_without_core() const;
  bool uncertainty_wanted() const;
  void estimate_memory();
  int64_t parts(const race::Request& request) const;
  std::string out_of_memory(const std::string& what) const;
  int excluded_groups() const;
  std::vector<int> present_species() const;
  race::Prediction predict(bool uncertainty, bool atom_virial);
  at::Tensor owner_rows();
  at::Tensor completed(const at::Tensor& rows);
  void tally(const race::Prediction& prediction);
  void store_uncertainty(const race::Prediction& prediction);
  void store(PerAtom& quantity, const at::Tensor& values, double unit);
  void keep();
  void recall();
  at::Tensor reduced_sums() const;
  static constexpr int n_held = 21;  ///< columns of the six quantities

  std::string file_, pin_;
  std::optional<at::ScalarType> dtype_;
  int uq_every_ = 0;
  double memory_cap_ = 0;          ///< bytes of one evaluation; 0: none
  bool zbl_ = false;               ///< asked for
  std::optional<race::Zbl> core_;  ///< of the model, with `zbl on`
  std::vector<std::string>
      elements_;                 ///< by LAMMPS type, from 1: of pair_coeff, or of a restart file
  std::vector<int> species_;     ///< the same as rows of the model; -1: NULL
  std::string restart_sha256_;   ///< of the model that a restart file was written with
  FixRaceHold* hold_ = nullptr;  ///< with `uq every N`
  std::string hold_id_;

  LammpsHalo halo_;
  std::optional<race::MemoryEstimate> memory_,
      memory_uncertain_;  ///< without and with uncertainties

  bool finite_ = true;
  int uq_flag_ = 0;               ///< set by fix pair through extract(), for one step
  bigint step_ = -1;              ///< of the last forces
  bigint uncertainty_step_ = -1;  ///< of the arrays
  RankTotals rank_totals_;
  at::Tensor member_forces_;  ///< [n_owned, M, 3] eV/Angstrom, complete
};

}  // namespace LAMMPS_NS
