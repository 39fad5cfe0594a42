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

  /// The race pair style in use, with a model; nullptr if there is none, or more than one.
  static PairRace* find(LAMMPS* lmp);
  /// Likewise, but stops with an error that names the `reader` ("compute ID race") if there is not
  /// exactly one.
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

  /// Runs `work`, as every step of the plugin's styles does. No exception of torch or librace
  /// leaves it. An exception on one rank ends all ranks with one line, as do LAMMPS's own errors of
  /// one rank. The message is flushed before the abort.
  void guarded(const std::function<void()>& work);

  // The interface to computes and fixes.

  /// Has uncertainties evaluated on the steps on which the reader needs them.
  void add_reader(const std::shared_ptr<const UncertaintyReader>& reader);
  /// Stops if the model cannot give a quantity. @param where "compute ID race", for messages.
  void require(const std::string& where, const race::Quantity& quantity) const;

  /// Collective: ensures that the following calls give values of this step. It evaluates once more
  /// if this step's forces came without uncertainties. With `uq every N` the values are those of
  /// the last evaluated step.
  void require_uncertainty();
  const UncertaintyColumns& columns() const { return columns_; }
  race::FrameMoments frame();  ///< Collective, in model units.

  /// The members of this step, in model units.
  struct Members {
    double n_atoms;       ///< number of atoms of this style, over all ranks
    at::Tensor energies;  ///< [M] eV, over all ranks
    at::Tensor forces;    ///< [n_owned, M, 3] eV/Angstrom, complete, of this rank's rows
    at::Tensor virials;   ///< [M, 9] eV, this rank's part
  };
  Members members();  ///< Collective. Needs an ensemble, and a step evaluated with its uncertainty.

  struct HeatFlux {
    at::Tensor total;       ///< [3] of the energy that moves the atoms, over all ranks
    at::Tensor convective;  ///< [3] the part of it that atoms carry with them
    at::Tensor members;     ///< [M, 3] of each member; undefined unless requested
  };
  /// Collective: the heat flux times the volume, without kinetic energy, at this step's positions
  /// and velocities, in energy units times velocity units. It takes one more evaluation, and two
  /// if a leader moves the atoms and members are requested.
  HeatFlux heat_flux(bool members);

  const race::Metadata* metadata() const { return model_ ? &model_->metadata() : nullptr; }
  const std::string& file() const { return settings_.file; }
  /// The element of a type, or NULL.
  const std::string& element(int type) const { return elements_[type]; }
  /// The graph of the last forces, in host memory, with vectors at the present positions.
  virtual const LocalGraph& local();
  /// Its rows alone, see LocalGraph.
  virtual const std::vector<int>& atom_of_row() { return local_.atom_of_row(); }
  /// Whether this rank's energy of the last forces is finite.
  bool finite() const { return finite_; }
  const RaceUnits& units() const { return units_; }
  /// Units of frame() and members(), with the `scale` of the step that they were evaluated on.
  const RaceUnits& uncertainty_units() const { return uncertainty_units_; }

 protected:
  // The functions that pair_style race/kk replaces: they build the graph, exchange its rows and add
  // the forces.
  virtual std::string default_device() const { return "cpu"; }
  /// Whether add_forces() gets forces on the model's device instead of in host memory.
  virtual bool on_device() const { return false; }
  /// Builds the graph of a step. Returns whether its rows, their species or LAMMPS's list are
  /// others than those of the step before.
  virtual bool build_graph(const LocalGraph::Options& options);
  virtual const race::Graph& built_graph() const { return local_.graph(); }
  /// Edge vectors of a topology that build_graph() did not change, on any device.
  virtual at::Tensor moved_vectors(const race::Topology& topology);
  virtual race::HaloExchange& halo() { return halo_; }
  virtual void add_forces(const at::Tensor& forces);

  const race::Graph& graph() const { return topology_ ? kept_graph_ : built_graph(); }
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
  bool forces_unread(int eflag, int vflag) const;
  bool uncertainty_wanted() const;
  int excluded_groups() const;
  std::vector<int> present_species() const;
  const race::Model& leader() const { return leader_ ? *leader_ : *model_; }
  race::Prediction predict(const race::Model& model, race::Request request);
  void make_graph();
  bool keeps_topology() const;
  bool list_is_new();
  at::Tensor owner_rows();
  at::Tensor completed(const at::Tensor& rows);
  at::Tensor heat_flux_rows(const race::Model& model, const at::Tensor& velocity, bool each);
  void tally(const race::Prediction& prediction);
  void store_uncertainty(const race::Prediction& prediction);
  race::FrameSums all_sums() const;

  std::optional<race::Model> leader_;  ///< the model that moves atoms, unless all members do
  std::optional<race::Zbl> core_;      ///< the model's core, with `core on`
  std::vector<std::string> elements_;  ///< by LAMMPS type, from 1: given by pair_coeff or by a
                                       ///< restart file
  std::vector<int> species_;           ///< the same as indices of the model's elements; -1: NULL
  std::string restart_sha256_;         ///< digest of the model that a restart file was written with
  double scale_ = 1;                   ///< factor on energy and forces, set by fix adapt

  LammpsHalo halo_;
  MemoryBudget budget_;

  std::optional<race::Topology> topology_;  ///< on the model's device, if that is a GPU: kept as
                                            ///< long as LAMMPS's neighbour list
  race::Graph kept_graph_;                  ///< topology_ at this step
  at::Tensor positions_;                    ///< of its rows; pinned if the model is on a GPU
  std::optional<at::Tensor> owner_;  ///< owner_rows() of these ghosts; none until they are asked
  /// What tells LAMMPS's neighbour list from the last one, beside neighbor->ago
  struct ListBuild {
    const void* list = nullptr;
    bigint n_builds = -1, step = -1;
    bool operator==(const ListBuild&) const = default;
  } list_build_;

  bool finite_ = true;
  bigint step_ = -1;  ///< step of the last forces

  UncertaintyReaders readers_;
  UncertaintyColumns columns_;
  int uq_flag_ = 0;               ///< set by fix pair through extract(), for one step
  bigint uncertainty_step_ = -1;  ///< step of the columns
  race::FrameSums rank_sums_;
  at::Tensor member_forces_;  ///< [n_owned, M, 3] eV/Angstrom, complete
  RaceUnits uncertainty_units_;
  bool warned_unscaled_ = false;
  HaloTotals shown_;  ///< the values that extract() gives: LAMMPS may write to them
};

}  // namespace LAMMPS_NS
