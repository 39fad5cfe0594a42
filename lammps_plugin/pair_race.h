#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "lammps_halo.h"
#include "local_graph.h"
#include "memory_budget.h"
#include "pair.h"
#include "pair_settings.h"
#include "race/predict.h"
#include "race/quantities.h"
#include "uncertainty_columns.h"
#include "uncertainty_readers.h"
#include "units.h"

namespace LAMMPS_NS {

/// `pair_style race`: librace on LAMMPS's atoms, ghosts and communication. README.md is the
/// reference of the command.
class PairRace : public Pair {
 public:
  explicit PairRace(LAMMPS*);
  ~PairRace() override;

  /// The race pair style in use, with a model; nullptr where there is none, or more than one.
  static PairRace* find(LAMMPS* lmp);
  /// The same; an error that names the `reader` ("compute ID race") where there is not one.
  static PairRace* need(LAMMPS* lmp, const std::string& reader);

  void settings(int, char**) override;
  void coeff(int, char**) override;
  void init_style() override;
  double init_one(int, int) override;
  void setup() override;
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
  /// one rank's ends all ranks with one line, as do LAMMPS's own errors of one rank, and the
  /// message is flushed before the abort.
  void guarded(const std::function<void()>& work);

  // What the computes and fixes ask.

  /// Has uncertainties evaluated on the steps on which the reader wants them.
  void add_reader(const std::shared_ptr<const UncertaintyReader>& reader);
  /// Stops where the model cannot give a quantity. @param where "compute ID race", for messages.
  void require(const std::string& where, const race::Quantity& quantity) const;

  /// Collective: sees that what follows is of this step, evaluating once more when this step's
  /// forces came without uncertainties. With `uq every N`: of the last step that was evaluated.
  void require_uncertainty();
  const UncertaintyColumns& columns() const { return columns_; }
  race::FrameMoments frame();  ///< Collective. In model units.

  /// The members of this step, in model units.
  struct Members {
    double n_atoms;       ///< of this style, over all ranks
    at::Tensor energies;  ///< [M] eV, over all ranks
    at::Tensor forces;    ///< [n_owned, M, 3] eV/Angstrom, complete, of this rank's rows
    at::Tensor virials;   ///< [M, 9] eV, this rank's part
  };
  Members members();  ///< Collective. Needs an ensemble, and a step evaluated with its uncertainty.

  struct HeatFlux {
    at::Tensor total;      ///< [G, 3] of the model's mean (G = 1) or of each member, over all ranks
    double convective[3];  ///< of the mean: what atoms carry with them
  };
  /// Collective: the heat flux times the volume, without kinetic energy, at this step's positions
  /// and velocities; energy units times velocity units. One more evaluation.
  HeatFlux heat_flux(bool members);

  const race::Metadata* metadata() const { return model_ ? &model_->metadata() : nullptr; }
  const std::string& file() const { return settings_.file; }
  const std::string& element(int type) const { return elements_[type]; }  ///< or NULL
  virtual const LocalGraph& local() { return local_; }  ///< of the last forces, in host memory
  bool finite() const { return finite_; }               ///< this rank's energy, of the last forces
  const RaceUnits& units() const { return units_; }
  /// Of frame() and members(): with the `scale` that the step was evaluated with.
  const RaceUnits& uncertainty_units() const { return uncertainty_units_; }

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

  RaceUnits scaled_units() const { return units_.scaled(scale_); }

  PairSettings settings_;
  std::optional<race::Model> model_;
  RaceUnits units_;
  LocalGraph local_;
  HaloTotals exchanged_;

 private:
  void read_model();
  void read_model_of_restart();
  void read_elements(const std::vector<std::string>& names);
  void set_flags();
  void check_special_bonds() const;
  void warn_of_exclusions();
  void warn_of_heat_flux() const;
  void check_masses() const;
  void warn_without_core() const;
  void warn_unscaled();
  bool uncertainty_wanted() const;
  int excluded_groups() const;
  std::vector<int> present_species() const;
  const race::Model& leader() const { return leader_ ? *leader_ : *model_; }
  race::Prediction predict(const race::Model& model, race::Request request);
  void make_graph();
  at::Tensor owner_rows();
  at::Tensor completed(const at::Tensor& rows);
  void tally(const race::Prediction& prediction);
  void store_uncertainty(const race::Prediction& prediction);
  race::FrameSums all_sums() const;

  std::optional<race::Model> leader_;  ///< what moves atoms, unless all members do
  std::optional<race::Zbl> core_;      ///< of the model, with `core on`
  std::vector<std::string>
      elements_;                ///< by LAMMPS type, from 1: of pair_coeff, or of a restart file
  std::vector<int> species_;    ///< the same as rows of the model; -1: NULL
  std::string restart_sha256_;  ///< of the model that a restart file was written with
  double scale_ = 1;            ///< on energy and forces, of fix adapt

  LammpsHalo halo_;
  MemoryBudget budget_;

  bool finite_ = true;
  bigint step_ = -1;  ///< of the last forces

  UncertaintyReaders readers_;
  UncertaintyColumns columns_;
  int uq_flag_ = 0;               ///< set by fix pair through extract(), for one step
  bigint uncertainty_step_ = -1;  ///< of the columns
  race::FrameSums rank_sums_;
  at::Tensor member_forces_;  ///< [n_owned, M, 3] eV/Angstrom, complete
  RaceUnits uncertainty_units_;
  bool warned_unscaled_ = false;
  HaloTotals shown_;  ///< what extract() gives: LAMMPS may write to it
};

}  // namespace LAMMPS_NS
