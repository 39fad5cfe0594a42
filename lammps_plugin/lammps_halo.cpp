#include "lammps_halo.h"

#include <cstring>

#include "comm.h"
#include "pair.h"
#include "platform.h"

namespace {

// Adds a row stored bit for bit in doubles, by memcpy, since float and double may not alias.
template <typename T>
void add_row(char* row, const double* buffer, int64_t width) {
  for (int64_t k = 0; k < width; ++k) {
    T mine, theirs;
    std::memcpy(&mine, row + k * sizeof(T), sizeof(T));
    std::memcpy(&theirs, reinterpret_cast<const char*>(buffer) + k * sizeof(T), sizeof(T));
    mine += theirs;
    std::memcpy(row + k * sizeof(T), &mine, sizeof(T));
  }
}

}  // namespace

int LammpsHalo::wire_doubles(int64_t width, at::ScalarType dtype) {
  return static_cast<int>((width * static_cast<int64_t>(c10::elementSize(dtype)) + 7) / 8);
}

void LammpsHalo::forward(at::Tensor& rows) { exchange(rows, true); }
void LammpsHalo::reverse(at::Tensor& rows) { exchange(rows, false); }

void LammpsHalo::exchange(at::Tensor& rows, bool forward) {
  width_ = rows.size(1);
  if (width_ == 0) return;  // in every rank: LAMMPS takes a size of 0 for its default
  const double start = LAMMPS_NS::platform::walltime();
  host_ = rows.is_cpu() ? rows.contiguous() : rows.cpu();
  data_ = static_cast<char*>(host_.data_ptr());
  row_bytes_ = width_ * host_.element_size();
  doubles_ = wire_doubles(width_, host_.scalar_type());
  if (forward) {
    comm_->forward_comm(&pair_, doubles_);
  } else {
    comm_->reverse_comm(&pair_, doubles_);
  }
  if (!host_.is_same(rows)) rows.copy_(host_);
  host_.reset();
  totals_.seconds += LAMMPS_NS::platform::walltime() - start;
}

void LammpsHalo::put(int atom, double* buffer) const {
  const int row = row_of_atom_[atom];
  if (row < 0 || row_bytes_ % 8) buffer[doubles_ - 1] = 0;
  if (row < 0) {
    std::memset(buffer, 0, doubles_ * sizeof(double));
  } else {
    std::memcpy(buffer, data_ + row * row_bytes_, row_bytes_);
  }
}

// The transpose of forward() adds up, for each row, who reads it: on its way back every rank sees
// which rows of a list are read beyond.
void LammpsHalo::find_readers(const race::Graph& graph) {
  n_readers_.assign(graph.n_total, 0);
  const int64_t* sender = graph.sender.data_ptr<int64_t>();
  for (int64_t edge = 0; edge < graph.sender.numel(); ++edge) n_readers_[sender[edge]] = 1;
  for (auto& [list, read] : read_by_receiver_) read.clear();  // keeps its memory
  knows_readers_ = false;
  finds_readers_ = true;
  at::Tensor rows = at::from_blob(n_readers_.data(), {graph.n_total, 1}, at::kDouble);
  reverse(rows);
  finds_readers_ = false;
  knows_readers_ = true;
}

int LammpsHalo::counted(int64_t n_doubles) {
  totals_.bytes += static_cast<double>(sizeof(double)) * n_doubles;
  return static_cast<int>(n_doubles);
}

int LammpsHalo::pack_forward(int n, const int* atoms, double* buffer) {
  const char* read = knows_readers_ ? read_by_receiver_.at(atoms).data() : nullptr;
  double* to = buffer;
  for (int k = 0; k < n; ++k) {
    if (read && !read[k]) continue;
    put(atoms[k], to);
    to += doubles_;
  }
  return counted(to - buffer);
}

void LammpsHalo::unpack_forward(int n, int first, const double* buffer) {
  for (int k = 0; k < n; ++k) {
    const int row = row_of_atom_[first + k];
    char* to = data_ + row * row_bytes_;
    if (is_read(row)) {
      if (row >= 0) std::memcpy(to, buffer, row_bytes_);
      buffer += doubles_;
    } else if (row >= 0) {
      std::memset(to, 0, row_bytes_);
    }
  }
}

int LammpsHalo::pack_reverse(int n, int first, double* buffer) {
  double* to = buffer;
  for (int k = 0; k < n; ++k) {
    if (!is_read(row_of_atom_[first + k])) continue;
    put(first + k, to);
    to += doubles_;
  }
  return counted(to - buffer);
}

void LammpsHalo::unpack_reverse(int n, const int* atoms, const double* buffer) {
  const bool is_float = host_.scalar_type() == at::kFloat;
  const char* read = knows_readers_ ? read_by_receiver_.at(atoms).data() : nullptr;
  if (finds_readers_) {  // a row of the message is the number of its readers
    std::vector<char>& receiver_reads = read_by_receiver_[atoms];
    for (int k = 0; k < n; ++k) receiver_reads.push_back(buffer[k] > 0);
  }
  for (int k = 0; k < n; ++k) {
    if (read && !read[k]) continue;
    const int row = row_of_atom_[atoms[k]];
    if (row >= 0) {
      if (is_float) {
        add_row<float>(data_ + row * row_bytes_, buffer, width_);
      } else {
        add_row<double>(data_ + row * row_bytes_, buffer, width_);
      }
    }
    buffer += doubles_;
  }
}
