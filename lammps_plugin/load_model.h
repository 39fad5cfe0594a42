#pragma once

#include <mpi.h>

#include <optional>
#include <string>

#include "race/model.h"

/// What a rank says of an exception, in one line.
std::string one_line(const std::exception& error);

/// Whether it says that an allocation failed: C++'s own, torch's on the CPU or on a GPU, or either
/// by way of TorchScript.
bool is_out_of_memory(const std::exception& error);

/// Collective: the message of the lowest rank that has one, in every rank; empty when none has. So
/// all ranks end together.
std::string agree(MPI_Comm world, const std::string& message);

/// Collective: rank 0 reads the file and verifies it before anything parses it, the others get its
/// bytes and verify them again.
/// @param device cpu, cuda (one GPU per rank of a node, in turn) or cuda:N.
/// @throws race::Error, the same in every rank.
race::Model load_model(MPI_Comm world, const std::string& path, const std::string& device,
                       std::optional<at::ScalarType> dtype, const std::string& sha256);
