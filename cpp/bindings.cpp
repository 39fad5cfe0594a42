// The Python module, a thin layer over librace: tensors in, tensors out. Importing race._race also
// registers the torch operators race::*.
#include <torch/csrc/utils/pybind.h>
#include <pybind11/functional.h>

#include <exception>
#include <thread>

#include "race/allocator.h"
#include "race/error.h"
#include "race/leader.h"
#include "race/memory.h"
#include "race/moments.h"
#include "race/predict.h"
#include "race/quantities.h"
#include "race/recorder.h"

namespace py = pybind11;
using namespace pybind11::literals;

namespace {

py::dict to_dict(const race::Prediction& prediction) {
  py::dict out("node_energy"_a = prediction.node_energy);
  if (prediction.forces.defined()) {
    out["forces"] = prediction.forces;
    out["virial"] = prediction.virial;
  }
  if (prediction.atom_virial.defined()) out["atom_virial"] = prediction.atom_virial;
  if (prediction.node_energy_var.defined()) {
    out["node_energy_var"] = prediction.node_energy_var;
    out["cov_aleatoric"] = prediction.cov_aleatoric;
    out["cov_epistemic"] = prediction.cov_epistemic;
    out["virial_cov"] = prediction.virial_cov;
  }
  if (prediction.grade.defined()) out["grade"] = prediction.grade;
  if (prediction.heat_flux.defined()) out["heat_flux"] = prediction.heat_flux;
  if (prediction.logdet_aleatoric.defined()) out["logdet_aleatoric"] = prediction.logdet_aleatoric;
  return out;
}

race::Graph make_graph(const race::Model& model, at::Tensor species, at::Tensor edge_vector,
                       at::Tensor sender, at::Tensor row_ptr) {
  race::Graph graph;
  graph.n_total = species.size(0);
  graph.n_owned = row_ptr.size(0) - 1;
  graph.species = std::move(species);
  graph.edge_vector = std::move(edge_vector);
  graph.sender = std::move(sender);
  graph.row_ptr = std::move(row_ptr);
  race::check(graph, static_cast<int64_t>(model.metadata().elements.size()));
  return graph;
}

race::PeriodicFoldHalo fold_of(const std::optional<at::Tensor>& owner, int64_t n_ghosts) {
  return race::PeriodicFoldHalo(owner.value_or(at::zeros({n_ghosts}, at::kLong)));
}

/// A recorder written in Python: for tests, which have no device that records.
class PythonRecorder final : public race::Recorder {
 public:
  using Work = std::function<void()>;
  explicit PythonRecorder(py::object recorder) : recorder_(std::move(recorder)) {}
  ~PythonRecorder() override {
    const py::gil_scoped_acquire acquire;
    recorder_ = py::object();
  }
  void rehearse(const Work& work) override { call("rehearse", work); }
  void record(const Work& work) override { call("record", work); }
  void replay(const Work& read) override { call("replay", read); }

 private:
  template <class... Works>
  void call(const char* name, const Works&... work) {
    const py::gil_scoped_acquire acquire;
    recorder_.attr(name)(work...);
  }
  py::object recorder_;
};

void record_with(const py::object& make) {
  if (make.is_none()) return race::set_recorder({});
  // Never freed: the interpreter may end before the library
  const auto& kept = *new py::object(make);
  race::set_recorder([&kept](at::Device device) {
    const py::gil_scoped_acquire acquire;
    return std::make_unique<PythonRecorder>(kept(device.str()));
  });
}

py::list quantity_rows() {
  py::list rows;
  for (const race::Quantity& row : race::quantities())
    rows.append(py::dict("name"_a = row.name, "per_atom"_a = row.per_atom,
                         "n_columns"_a = row.n_columns,
                         "dimension"_a = race::name_of(row.dimension), "symbol"_a = row.symbol,
                         "property"_a = row.property, "interval_of"_a = row.interval_of,
                         "meaning"_a = row.meaning, "in_lammps"_a = row.of_atoms || row.of_frame));
  return rows;
}

/// Every row of the table by (name, per_atom), for one domain without ghosts.
py::dict quantity_values(const race::Model& model, at::Tensor species, at::Tensor edge_vector,
                         at::Tensor sender, at::Tensor row_ptr) {
  const race::Graph graph = make_graph(model, species, edge_vector, sender, row_ptr);
  race::PeriodicFoldHalo fold(at::zeros({graph.n_total - graph.n_owned}, at::kLong));
  const race::Prediction prediction =
      race::predict(model, graph, fold, {.members = true, .uncertainty = true});
  const race::AtomMoments atoms =
      race::atom_moments(prediction, prediction.forces, model.metadata());
  const race::FrameMoments frame =
      race::frame_moments(race::frame_sums(prediction, atoms), model.metadata());
  py::dict values;
  for (const race::Quantity& row : race::quantities()) {
    const py::tuple key = py::make_tuple(row.name, row.per_atom);
    if (row.of_atoms) values[key] = row.of_atoms(atoms);
    if (row.of_frame) values[key] = row.of_frame(frame);
  }
  return values;
}

std::string missing(const race::Model& model, const std::string& name, bool per_atom) {
  for (const race::Quantity& row : race::quantities())
    if (row.name == name && row.per_atom == per_atom) return race::missing(model.metadata(), row);
  throw race::Error("quantities: expected a name and per_atom of race._race.quantities(), got " +
                    name);
}

/// One domain per thread; a domain is (species, edge_vector, sender, row_ptr, ghost_domain,
/// ghost_row).
using Domain = std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor>;

std::vector<race::Prediction> predict_domains(const race::Model& model,
                                              const std::vector<Domain>& domains,
                                              race::Request request,
                                              const std::vector<at::Tensor>& velocities) {
  std::vector<race::Graph> graphs;
  std::vector<race::DomainsHalo::Ghosts> ghosts;
  for (const auto& [species, edge_vector, sender, row_ptr, ghost_domain, ghost_row] : domains) {
    graphs.push_back(make_graph(model, species, edge_vector, sender, row_ptr));
    ghosts.push_back({graphs.back().n_owned, ghost_domain, ghost_row});
  }
  race::DomainsHalo halo(std::move(ghosts));
  std::vector<race::Prediction> predictions(graphs.size());
  std::exception_ptr failure;
  std::mutex failure_mutex;
  std::vector<std::jthread> threads;
  for (std::size_t rank = 0; rank < graphs.size(); ++rank)
    threads.emplace_back([&, rank] {
      try {
        race::DomainsHalo::Port port = halo.port(static_cast<int64_t>(rank));
        race::Request mine = request;
        if (!velocities.empty()) mine.velocity = velocities.at(rank);
        predictions[rank] = race::predict(model, graphs[rank], port, mine);
        at::Tensor forces = predictions[rank].forces.flatten(1);
        port.reverse(forces);
        if (request.atom_virial) port.reverse(predictions[rank].atom_virial);
      } catch (...) {
        const std::lock_guard lock(failure_mutex);
        if (!failure)
          failure = std::current_exception();  // the first failure is the cause, the others were
                                               // abandoned
        halo.abandon();
      }
    });
  threads.clear();  // joins
  if (failure) std::rethrow_exception(failure);
  return predictions;
}

at::ScalarType dtype_named(const std::string& name) {
  if (name == "float32") return at::kFloat;
  if (name == "float64") return at::kDouble;
  throw race::Error("dtype; expected float32 or float64, got " + name);
}

at::Device device_named(const std::string& name) {
  try {
    return at::Device(name);
  } catch (const std::exception&) {
    throw race::Error("device; expected cpu, cuda or cuda:N, got " + name);
  }
}

}  // namespace

PYBIND11_MODULE(_race, m) {
  m.doc() = "librace: fused operators and the runtime of compiled models";

  // race::Error reaches Python as race.RaceError, the one exception users see.
  py::register_exception_translator([](std::exception_ptr pointer) {
    try {
      if (pointer) std::rethrow_exception(pointer);
    } catch (const race::Error& error) {
      py::set_error(py::module_::import("race.errors").attr("RaceError"), error.what());
    }
  });

  py::class_<race::Artifact>(m, "Artifact", "The verified bytes of an artifact.")
      .def_readonly("name", &race::Artifact::name)
      .def_readonly("sha256", &race::Artifact::sha256);
  m.def("read_artifact", &race::read_artifact, "path"_a, "sha256"_a = "",
        py::call_guard<py::gil_scoped_release>(), "Reads and verifies a file; see artifact.h.");
  m.def("keep_memory", &race::keep_memory,
        "Lets malloc keep large blocks; see allocator.h. Loading a model on the CPU does it too.");
  m.def("sha256", [](const py::bytes& data) {
    const std::string_view view = data;
    return race::sha256_hex(view.data(), view.size());
  });

  py::class_<race::Zbl>(
      m, "Zbl",
      "A repulsive core for `predict` of the model it was made for; see zbl.h. Raises race.RaceError.")
      .def(py::init([](const race::Model& model, const std::string& name) {
             return race::Zbl(model.metadata(), name);
           }),
           "model"_a, "name"_a)
      .def("has", &race::Zbl::has, "a"_a, "b"_a,
           "Whether two elements, by index of the model, have a core.");

  py::class_<race::Topology>(
      m, "Topology",
      "Who is whose neighbour, on the model's device, for `predict` at every step until that changes; see graph.h.")
      .def(py::init([](const race::Model& model, at::Tensor species, at::Tensor sender,
                       at::Tensor row_ptr) {
             const at::Tensor vectors = at::empty({sender.size(0), 3}, at::kDouble);
             return race::Topology(make_graph(model, species, vectors, sender, row_ptr),
                                   model.device());
           }),
           "model"_a, "species"_a, "sender"_a, "row_ptr"_a)
      .def_property_readonly("n_edges", &race::Topology::n_edges);

  py::class_<race::Model>(m, "Model",
                          "A loaded artifact; see model.h and predict.h for shapes and units.")
      .def_property_readonly("metadata",
                             [](const race::Model& model) { return model.metadata().json; })
      .def_property_readonly("sha256", &race::Model::sha256)
      .def(
          "interval_factor",
          [](const race::Model& model, const std::string& target, double level) {
            return model.metadata().interval_factor(target, level);
          },
          "target"_a, "level"_a,
          "Half-width of a calibrated interval in units of the predicted standard deviation; see artifact.h.")
      .def("missing", &missing, "name"_a, "per_atom"_a,
           "Why the model cannot give a quantity of quantities(), in one line; empty where it can.")
      .def(
          "quantities", &quantity_values, "species"_a, "edge_vector"_a, "sender"_a, "row_ptr"_a,
          "Values of the rows of quantities() that LAMMPS has, by (name, per_atom): those of a structure that is one domain without ghosts;\n"
          "intervals are standard deviations, stresses virials in eV.")
      .def_property_readonly("device",
                             [](const race::Model& model) { return model.device().str(); })
      .def_property_readonly("dtype",
                             [](const race::Model& model) {
                               return model.dtype() == at::kDouble ? "float64" : "float32";
                             })
      .def_property_readonly("comm_width_max", &race::Model::comm_width_max)
      .def(
          "predict",
          [](const race::Model& model, at::Tensor species, at::Tensor edge_vector,
             at::Tensor sender, at::Tensor row_ptr, std::optional<at::Tensor> owner, bool members,
             bool uncertainty, bool atom_virial, int64_t n_parts, const race::Zbl* zbl,
             std::optional<at::Tensor> velocity, bool on_device, bool forces) {
            race::Prediction prediction;
            {
              const py::gil_scoped_release release;
              const race::Graph graph = make_graph(model, species, edge_vector, sender, row_ptr);
              race::PeriodicFoldHalo fold = fold_of(owner, graph.n_total - graph.n_owned);
              prediction = race::predict(model, graph, fold,
                                         {.forces = forces,
                                          .members = members,
                                          .uncertainty = uncertainty,
                                          .atom_virial = atom_virial,
                                          .n_parts = n_parts,
                                          .on_device = on_device,
                                          .zbl = zbl,
                                          .velocity = velocity.value_or(at::Tensor())});
            }
            return to_dict(prediction);
          },
          "species"_a, "edge_vector"_a, "sender"_a, "row_ptr"_a, "owner"_a = py::none(),
          py::kw_only(), "members"_a = false, "uncertainty"_a = false, "atom_virial"_a = false,
          "n_parts"_a = 1, "zbl"_a = py::none(), "velocity"_a = py::none(), "on_device"_a = false,
          "forces"_a = true,
          "One domain. species [n_total], edge_vector float64 [E, 3], sender [E], row_ptr [n_owned + 1]; owner [n_total - n_owned]: the\n"
          "owned row of which each ghost is an image; velocity float64 [n_owned, 3]: heat_flux as well; on_device: the results stay on the model's device; forces=False: energies alone. Ghost rows of forces and atom_virial are still to be added to their owners.")
      .def(
          "predict",
          [](const race::Model& model, const race::Topology& topology, at::Tensor edge_vector,
             std::optional<at::Tensor> owner, bool members, bool uncertainty, bool atom_virial,
             const race::Zbl* zbl, bool on_device, bool forces) {
            race::Prediction prediction;
            {
              const py::gil_scoped_release release;
              race::PeriodicFoldHalo fold = fold_of(owner, topology.n_total() - topology.n_owned());
              prediction = race::predict(model, topology, edge_vector, fold,
                                         {.forces = forces,
                                          .members = members,
                                          .uncertainty = uncertainty,
                                          .atom_virial = atom_virial,
                                          .on_device = on_device,
                                          .zbl = zbl});
            }
            return to_dict(prediction);
          },
          "topology"_a, "edge_vector"_a, "owner"_a = py::none(), py::kw_only(), "members"_a = false,
          "uncertainty"_a = false, "atom_virial"_a = false, "zbl"_a = py::none(),
          "on_device"_a = false, "forces"_a = true,
          "The same for a Topology that is kept from step to step; owner: on the model's device, and kept likewise.")
      .def(
          "memory",
          [](const race::Model& model, at::Tensor species, at::Tensor edge_vector,
             at::Tensor sender, at::Tensor row_ptr, bool members, bool uncertainty,
             bool atom_virial, int64_t n_parts) {
            const py::gil_scoped_release release;
            const race::Graph graph = make_graph(model, species, edge_vector, sender, row_ptr);
            const race::Request request{.members = members,
                                        .uncertainty = uncertainty,
                                        .atom_virial = atom_virial,
                                        .n_parts = n_parts};
            const auto per_atom = [n = static_cast<double>(graph.n_owned)](int64_t count) {
              return static_cast<double>(count) / n;
            };
            const race::MemoryEstimate estimate(model, per_atom(graph.n_total - graph.n_owned),
                                                per_atom(edge_vector.size(0)), request,
                                                n_parts > 1);
            const double estimated = estimate.bytes(graph, n_parts);
            race::PeriodicFoldHalo fold(at::zeros({graph.n_total - graph.n_owned}, at::kLong));
            const race::PeakMemory peak(model.device());
            race::predict(model, graph, fold, request);
            return std::make_pair(estimated, static_cast<double>(peak.bytes()));
          },
          "species"_a, "edge_vector"_a, "sender"_a, "row_ptr"_a, py::kw_only(), "members"_a = false,
          "uncertainty"_a = false, "atom_virial"_a = false, "n_parts"_a = 1,
          "Bytes of one domain's evaluation at its peak: (estimated beforehand, measured).")
      .def(
          "predict_domains",
          [](const race::Model& model, const std::vector<Domain>& domains, bool members,
             bool uncertainty, bool atom_virial, const std::vector<at::Tensor>& velocities) {
            std::vector<race::Prediction> predictions;
            {
              const py::gil_scoped_release release;
              const race::Request request{
                  .members = members, .uncertainty = uncertainty, .atom_virial = atom_virial};
              predictions = predict_domains(model, domains, request, velocities);
            }
            py::list out;
            for (const auto& prediction : predictions) out.append(to_dict(prediction));
            return out;
          },
          "domains"_a, py::kw_only(), "members"_a = false, "uncertainty"_a = false,
          "atom_virial"_a = false, "velocities"_a = std::vector<at::Tensor>(),
          "Several domains, each on its own thread, as MPI ranks would; forces and atom_virial complete on owned rows.");

  m.def(
      "load",
      [](const std::string& path, const std::string& device,
         const std::optional<std::string>& dtype, const std::string& sha256, bool selftest,
         const std::string& lead) {
        const py::gil_scoped_release release;
        const std::optional<at::ScalarType> type =
            dtype ? std::optional(dtype_named(*dtype)) : std::nullopt;
        const race::Artifact artifact = race::read_artifact(path, sha256);
        return race::Model::load(lead.empty() ? artifact : race::leader_of(artifact, lead),
                                 device_named(device), type, selftest);
      },
      "path"_a, "device"_a = "cpu", "dtype"_a = py::none(), "sha256"_a = "", "selftest"_a = true,
      "lead"_a = "",
      "Reads, verifies, loads and self-tests an artifact, or with `lead` the one member that it carries by this name. Raises race.RaceError.");
  m.def(
      "quantities", &quantity_rows,
      "The table of what a prediction says of its own error, a dict per row: name (of LAMMPS's computes), per_atom, n_columns (0: one per\n"
      "member), dimension (energy, force, force^2, stress, stress^2, nats), symbol (of extract_peratom), property (of the ASE calculator),\n"
      "interval_of (values are a standard deviation times Model.interval_factor of this target), meaning, in_lammps; see quantities.h.");
  m.def(
      "record_with", &record_with, "make"_a,
      "For tests: make(device) gives an object with rehearse(work), record(work) and replay(), see recorder.h; None: nothing is recorded.");
  m.def("member_covariance", &race::member_covariance, "forces"_a,
        "[n, M, 3] -> [n, 6] spread of the members, mean over M.");
}
