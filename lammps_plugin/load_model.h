#pragma once

#include <mpi.h>

#include <optional>
#include <string>

#include "pair_settings.h"
#include "race/model.h"

/// An exception's message, in one line.
std::string one_line(const std::exception& error);

/// Whether an exception reports a failed allocation: C++'s own, torch's on the CPU or on a GPU, or
/// either through TorchScript.
bool is_out_of_memory(const std::exception& error);

/// Collective: returns on every rank the message of the lowest rank that has one; empty if none
/// has. So all ranks end together.
std::string agree(MPI_Comm world, const std::string& message);

struct LoadedModel {
  race::Model model;
  std::optional<race::Model> leader;  ///< with `lead` other than mean, if there are several members
};

/// Collective: rank 0 reads the file and verifies it before anything parses it. The other ranks
/// receive its bytes and verify them again.
/// @param universe all ranks of all partitions. With device cuda these share the GPUs of a node in
/// turn, and every partition must call this.
/// @throws race::Error, the same in every rank.
LoadedModel load_model(MPI_Comm world, MPI_Comm universe, const LAMMPS_NS::PairSettings& settings);
