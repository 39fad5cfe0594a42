#include "compute_race.h"

#include <cmath>

#include "domain.h"
#include "error.h"
#include "force.h"
#include "pair_race.h"
#include "uncertainty_readers.h"
#include "update.h"

using namespace LAMMPS_NS;

ComputeRace::ComputeRace(LAMMPS* lmp, int narg, char** arg)
    : Compute(lmp, narg, arg), where_(fmt::format("compute {} race", arg[0])) {
  if (narg < 4) utils::missing_cmd_args(FLERR, "compute race", error);
  if (igroup != 0) error->all(FLERR, "{}: expected group all, got {}", where_, arg[1]);
  asked_ = read_quantities(lmp, where_, /*per_atom=*/false, narg - 3, arg + 3);
  for (const AskedQuantity& each : asked_)
    if (each.quantity->n_columns == 0) size_vector_variable = 1;
  // Columns of members: as many as a model has that is already read, since thermo_style looks at
  // once.
  const PairRace* pair = PairRace::find(lmp);
  resize(pair ? static_cast<int>(pair->metadata()->n_members) : 1);
  scalar_flag = vector_flag = 1;
  extscalar = extvector = 0;
  timeflag = 1;
  reader_ = std::make_shared<UncertaintyReader>();
  reader_->wants = [this](bigint step) { return matchstep(step) != 0; };
}

ComputeRace::~ComputeRace() { delete[] vector; }

void ComputeRace::resize(int n_members) {
  int n = 0;
  for (const AskedQuantity& each : asked_)
    n += each.quantity->n_columns ? each.quantity->n_columns : n_members;
  if (vector && n == size_vector) return;
  delete[] vector;
  vector = new double[n]();
  size_vector = n;
}

void ComputeRace::init() {
  pair_ = PairRace::need(lmp, where_);
  resolve_quantities(lmp, where_, *pair_, asked_);
  resize(static_cast<int>(pair_->metadata()->n_members));
  pair_->add_reader(reader_);
}

double ComputeRace::compute_scalar() {
  compute_vector();
  invoked_scalar = update->ntimestep;
  return scalar = vector[0];
}

// In two dimensions a pressure is a force per length, like that of compute pressure.
double ComputeRace::pressure_per_virial() const {
  const double area = domain->xprd * domain->yprd;
  return force->nktv2p / (domain->dimension == 2 ? area : area * domain->zprd);
}

void ComputeRace::compute_vector() {
  if (invoked_vector == update->ntimestep) return;
  invoked_vector = update->ntimestep;
  race::FrameMoments frame;
  pair_->guarded([&] { frame = pair_->frame(); });
  double* next = vector;
  for (const AskedQuantity& each : asked_) {
    const race::Quantity& quantity = *each.quantity;
    double unit = pair_->uncertainty_units().of(quantity.dimension) * each.factor;
    if (quantity.dimension == race::Dimension::stress) unit *= pressure_per_virial();
    if (quantity.n_columns)
      unit = std::abs(unit);  // only members keep the sign of a negative scale
    const at::Tensor values = (quantity.of_frame(frame) * unit).contiguous();
    next = std::copy_n(values.const_data_ptr<double>(), values.numel(), next);
  }
}
