#include "compatible.h"

#include <dlfcn.h>

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <memory>
#include <new>

#include "atom.h"
#include "comm.h"
#include "compute.h"
#include "domain.h"
#include "fix.h"
#include "force.h"
#include "lammps.h"
#include "library.h"
#include "pair.h"
#include "update.h"

using namespace LAMMPS_NS;

namespace {

// ---- the two versions --------------------------------------------------------------------------

std::string date(int number) {
  constexpr const char* months[] = {"Jan", "Feb", "Mar", "Apr", "May", "Jun",
                                    "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"};
  const int month = number / 100 % 100;
  if (month < 1 || month > 12) return std::to_string(number);
  return std::to_string(number % 100) + " " + months[month - 1] + " " +
         std::to_string(number / 10000) + " (" + std::to_string(number) + ")";
}

std::string with_update(int number, int update) {
  return "LAMMPS " + date(number) + (update > 0 ? " update " + std::to_string(update) : "");
}

// -1: not known. A release describes itself as stable_22Jul2025 or stable_22Jul2025_update4.
int update_of(const std::string& git_descriptor) {
  char date_text[16];
  int update = 0, end = 0;
  if (std::sscanf(git_descriptor.c_str(), "stable_%15[0-9A-Za-z]%n", date_text, &end) != 1)
    return -1;
  if (git_descriptor.size() == static_cast<std::size_t>(end)) return 0;
  return std::sscanf(git_descriptor.c_str() + end, "_update%d", &update) == 1 ? update : -1;
}

#if defined(MPI_STUBS)
constexpr const char* mpi_here = "no MPI";
#elif defined(OPEN_MPI)
constexpr const char* mpi_here = "Open MPI";
#else
constexpr const char* mpi_here = "MPICH";  // this MPI, and any that shares its binary interface
#endif

const char* mpi_there() {
  if (!lammps_config_has_mpi_support()) return "no MPI";
  const auto ask =
      reinterpret_cast<int (*)(char*, int*)>(dlsym(RTLD_DEFAULT, "MPI_Get_library_version"));
  if (!ask) return mpi_here;
  std::string text(65536, '\0');  // more than any MPI_MAX_LIBRARY_VERSION_STRING
  int length = 0;
  ask(text.data(), &length);
  return text.find("Open MPI") != std::string::npos ? "Open MPI" : "MPICH";
}

// ---- addresses of members ----------------------------------------------------------------------

// Members that LAMMPS's C functions give the address of.
std::string moved_global(LAMMPS* lmp) {
  const struct {
    const char* name;
    const void* here;
  } members[] = {
      {"ntimestep", &lmp->update->ntimestep},
      {"firststep", &lmp->update->firststep},
      {"dt", &lmp->update->dt},
      {"units", lmp->update->unit_style},
      {"boxlo", lmp->domain->boxlo},
      {"boxhi", lmp->domain->boxhi},
      {"periodicity", lmp->domain->periodicity},
      {"natoms", &lmp->atom->natoms},
      {"ntypes", &lmp->atom->ntypes},
      {"nlocal", &lmp->atom->nlocal},
      {"nghost", &lmp->atom->nghost},
      {"nmax", &lmp->atom->nmax},
      {"special_lj", lmp->force->special_lj},
      {"special_coul", lmp->force->special_coul},
      {"nktv2p", &lmp->force->nktv2p},
      {"angstrom", &lmp->force->angstrom},
  };
  for (const auto& [name, here] : members)
    if (const void* there = lammps_extract_global(lmp, name); there && there != here) return name;
  const struct {
    const char* name;
    int here;
  } settings[] = {
      {"world_rank", lmp->comm->me},         {"world_size", lmp->comm->nprocs},
      {"nthreads", lmp->comm->nthreads},     {"dimension", lmp->domain->dimension},
      {"triclinic", lmp->domain->triclinic}, {"newton_pair", lmp->force->newton_pair},
  };
  for (const auto& [name, here] : settings)
    if (const int there = lammps_extract_setting(lmp, name); there != -1 && there != here)
      return name;
  return "";
}

// ---- values that constructors write ------------------------------------------------------------

constexpr unsigned char fill_byte = 0xA5;
constexpr auto every_bit = ~decltype(Pair::datamask_read){0};  // ALL_MASK: 32 bits, since 2026 64
constexpr std::size_t room = 16384;  // large enough for a class that is larger there

struct PairProbe final : Pair {
  explicit PairProbe(LAMMPS* lmp) : Pair(lmp) {}
  void compute(int, int) override {}
  void settings(int, char**) override {}
  void coeff(int, char**) override {}
  std::string moved() const;
};

struct FixProbe final : Fix {
  FixProbe(LAMMPS* lmp, int narg, char** arg) : Fix(lmp, narg, arg) {}
  int setmask() override { return 0; }
  std::string moved() const;
};

struct ComputeProbe final : Compute {
  ComputeProbe(LAMMPS* lmp, int narg, char** arg) : Compute(lmp, narg, arg) {}
  void init() override {}
  std::string moved() const;
};

// The first listed member that does not hold the constructor's value; `names` as written in the
// list.
template <std::size_t n>
std::string first_other(const bool (&as_expected)[n], const char* names) {
  for (const bool expected : as_expected) {
    const char* end = std::strchr(names, ';');
    if (!expected) return {names, end};
    names = end + 1;
  }
  return "";
}

std::string PairProbe::moved() const {
  const bool expected[] = {eng_vdwl == 0,
                           eatom == nullptr,
                           cvatom == nullptr,
                           comm_forward == 0,
                           comm_reverse_off == 0,
                           single_enable == 1,
                           born_matrix_enable == 0,
                           restartinfo == 1,
                           one_coeff == 0,
                           manybody_flag == 0,
                           no_virial_fdotr_compute == 0,
                           ghostneigh == 0,
                           reinitflag == 1,
                           centroidstressflag == CENTROID_SAME,
                           tail_flag == 0,
                           ncoultablebits == 12,
                           ndisptablebits == 12,
                           allocated == 0,
                           compute_flag == 1,
                           mixed_flag == 1,
                           datamask_read == every_bit,
                           datamask_modify == every_bit,
                           kokkosable == 0,
                           instance_me == instance_total - 1,
                           std::abs(tabinner - std::sqrt(2.0)) < 1e-12,
                           std::abs(tabinner_disp - std::sqrt(2.0)) < 1e-12,
                           map == nullptr,
                           maxeatom == 0,
                           maxcvatom == 0,
                           copymode == 0};
  return first_other(
      expected,
      "eng_vdwl;eatom;cvatom;comm_forward;comm_reverse_off;single_enable;born_matrix_enable;"
      "restartinfo;one_coeff;manybody_flag;no_virial_fdotr_compute;ghostneigh;reinitflag;"
      "centroidstressflag;tail_flag;ncoultablebits;ndisptablebits;allocated;compute_flag;"
      "mixed_flag;datamask_read;datamask_modify;kokkosable;instance_me;tabinner;tabinner_disp;"
      "map;maxeatom;maxcvatom;copymode;");
}

std::string FixProbe::moved() const {
  const bool expected[] = {igroup == 0,
                           groupbit == 1,
                           restart_global == 0,
                           force_reneighbor == 0,
                           thermo_energy == 0,
                           maxexchange == 0,
                           scalar_flag == 0,
                           vector_flag == 0,
                           peratom_flag == 0,
                           vector_atom == nullptr,
                           array_atom == nullptr,
                           comm_forward == 0,
                           eatom == nullptr,
                           cvatom == nullptr,
                           centroidstressflag == CENTROID_SAME,
                           kokkosable == 0,
                           datamask_read == every_bit,
                           datamask_modify == every_bit,
                           instance_me == instance_total - 1,
                           maxeatom == 0,
                           copymode == 0};
  return first_other(
      expected,
      "igroup;groupbit;restart_global;force_reneighbor;thermo_energy;maxexchange;scalar_flag;"
      "vector_flag;peratom_flag;vector_atom;array_atom;comm_forward;eatom;cvatom;"
      "centroidstressflag;kokkosable;datamask_read;datamask_modify;instance_me;maxeatom;copymode;");
}

std::string ComputeProbe::moved() const {
  const bool expected[] = {igroup == 0,
                           groupbit == 1,
                           vector == nullptr,
                           vector_atom == nullptr,
                           array_atom == nullptr,
                           scalar_flag == 0,
                           vector_flag == 0,
                           peratom_flag == 0,
                           pressflag == 0,
                           timeflag == 0,
                           tlist == nullptr,
                           invoked_scalar == -1,
                           invoked_vector == -1,
                           invoked_peratom == -1,
                           comm_forward == 0,
                           datamask_read == every_bit,
                           datamask_modify == every_bit,
                           copymode == 0,
                           kokkosable == 0,
                           instance_me == instance_total - 1};
  return first_other(
      expected,
      "igroup;groupbit;vector;vector_atom;array_atom;scalar_flag;vector_flag;peratom_flag;pressflag;"
      "timeflag;tlist;invoked_scalar;invoked_vector;invoked_peratom;comm_forward;datamask_read;"
      "datamask_modify;copymode;kokkosable;instance_me;");
}

// A function of its own, whose memory the compiler must take for written. Else it would discard the
// contents that an object has before its constructor runs.
[[gnu::noinline]] unsigned char* room_for_probe() {
  auto* memory = static_cast<unsigned char*>(::operator new(room, std::align_val_t(64)));
  std::memset(memory, fill_byte, room);
  asm volatile("" : "+r"(memory) : : "memory");
  return memory;
}

// ---- virtual tables ----------------------------------------------------------------------------

struct Slot {
  const char* function;  ///< mangled
  std::ptrdiff_t at;
};

// Place of a virtual function in its table: a pointer to member holds it (Itanium C++ ABI, 2.3).
template <class Function>
std::ptrdiff_t place_of(Function member) {
  std::uintptr_t words[2];
  static_assert(sizeof words == sizeof member);
  std::memcpy(words, &member, sizeof words);
#if defined(__aarch64__) || defined(__arm__)
  return static_cast<std::ptrdiff_t>(words[0] / sizeof(void*));
#else
  return static_cast<std::ptrdiff_t>((words[0] - 1) / sizeof(void*));
#endif
}

// A function that stands elsewhere in the table of this LAMMPS. Symbols that LAMMPS does not export
// are skipped.
template <std::size_t n>
std::string moved_function(const char* table, const Slot (&slots)[n]) {
  const void* symbol = dlsym(RTLD_DEFAULT, table);
  if (!symbol) return "";
  const auto* functions = static_cast<void* const*>(symbol) + 2;  // offset to top, type
  for (const Slot& slot : slots) {
    const void* function = dlsym(RTLD_DEFAULT, slot.function);
    if (function && functions[slot.at] != function) return slot.function;
  }
  return "";
}

#define RACE_SLOT(Class, function, mangled) \
  Slot { "_ZN9LAMMPS_NS" mangled, place_of(&Class::function) }

std::string moved_virtual() {
  const Slot pair[] = {
      RACE_SLOT(Pair, init_one, "4Pair8init_oneEii"),
      RACE_SLOT(Pair, init_style, "4Pair10init_styleEv"),
      RACE_SLOT(Pair, write_restart, "4Pair13write_restartEP8_IO_FILE"),
      RACE_SLOT(Pair, read_restart, "4Pair12read_restartEP8_IO_FILE"),
      RACE_SLOT(Pair, read_restart_settings, "4Pair21read_restart_settingsEP8_IO_FILE"),
      RACE_SLOT(Pair, pack_forward_comm, "4Pair17pack_forward_commEiPiPdiS1_"),
      RACE_SLOT(Pair, unpack_reverse_comm, "4Pair19unpack_reverse_commEiPiPd"),
      RACE_SLOT(Pair, memory_usage, "4Pair12memory_usageEv"),
      RACE_SLOT(Pair, extract, "4Pair7extractEPKcRi"),
      RACE_SLOT(Pair, extract_peratom, "4Pair15extract_peratomEPKcRi"),
  };
  if (std::string name = moved_function("_ZTVN9LAMMPS_NS4PairE", pair); !name.empty()) return name;
  const Slot fix[] = {
      RACE_SLOT(Fix, init, "3Fix4initEv"),
      RACE_SLOT(Fix, setup, "3Fix5setupEi"),
      RACE_SLOT(Fix, min_setup, "3Fix9min_setupEi"),
      RACE_SLOT(Fix, post_force, "3Fix10post_forceEi"),
      RACE_SLOT(Fix, end_of_step, "3Fix11end_of_stepEv"),
      RACE_SLOT(Fix, grow_arrays, "3Fix11grow_arraysEi"),
      RACE_SLOT(Fix, copy_arrays, "3Fix11copy_arraysEiii"),
      RACE_SLOT(Fix, unpack_exchange, "3Fix15unpack_exchangeEiPd"),
      RACE_SLOT(Fix, min_post_force, "3Fix14min_post_forceEi"),
      RACE_SLOT(Fix, compute_scalar, "3Fix14compute_scalarEv"),
      RACE_SLOT(Fix, compute_vector, "3Fix14compute_vectorEi"),
      RACE_SLOT(Fix, memory_usage, "3Fix12memory_usageEv"),
  };
  if (std::string name = moved_function("_ZTVN9LAMMPS_NS3FixE", fix); !name.empty()) return name;
  const Slot compute[] = {
      RACE_SLOT(Compute, compute_scalar, "7Compute14compute_scalarEv"),
      RACE_SLOT(Compute, compute_vector, "7Compute14compute_vectorEv"),
      RACE_SLOT(Compute, compute_peratom, "7Compute15compute_peratomEv"),
      RACE_SLOT(Compute, memory_usage, "7Compute12memory_usageEv"),
  };
  return moved_function("_ZTVN9LAMMPS_NS7ComputeE", compute);
}

/// The first difference found in the layout of a class; empty if there is none.
template <class Probe, class... Arguments>
std::string moved_member(const char* name, std::size_t size, Arguments... arguments) {
  unsigned char* memory = room_for_probe();
  Probe* probe = new (memory) Probe(arguments...);
  const std::string moved = probe->moved();
  std::size_t written = room;
  while (written > 0 && memory[written - 1] == fill_byte) --written;
  probe->~Probe();
  ::operator delete(memory, std::align_val_t(64));
  const std::string prefix = std::string(name) + "::";
  if (!moved.empty()) return prefix + moved;
  if (written > size)
    return "the size of " + std::string(name) + " (" + std::to_string(written) +
           " bytes or more, not " + std::to_string(size) + ")";
  return "";
}

std::string difference_of_layout(LAMMPS* lmp) {
  if (lmp->num_ver != lammps_version(lmp)) return "LAMMPS::num_ver";
  if (std::string name = moved_global(lmp); !name.empty()) return name;
  if (std::string name = moved_virtual(); !name.empty()) return name;
  if (std::string name = moved_member<PairProbe>("Pair", sizeof(Pair), lmp); !name.empty())
    return name;
  char id[] = "race_probe", group[] = "all", style[] = "race/probe";
  char* words[] = {id, group, style};
  if (std::string name = moved_member<FixProbe>("Fix", sizeof(Fix), lmp, 3, &words[0]);
      !name.empty())
    return name;
  return moved_member<ComputeProbe>("Compute", sizeof(Compute), lmp, 3, &words[0]);
}

std::string other_integers(LAMMPS* lmp) {
  const struct {
    const char* name;
    int here;
  } integers[] = {
      {"tagint", sizeof(tagint)}, {"bigint", sizeof(bigint)}, {"imageint", sizeof(imageint)}};
  for (const auto& [name, here] : integers)
    if (const int there = lammps_extract_setting(lmp, name); there != here)
      return std::string(name) + " has " + std::to_string(there) + " bytes here, not " +
             std::to_string(here);
  return "";
}

}  // namespace

std::string incompatibility(LAMMPS* lmp) {
  const int number = lammps_version(lmp);
  const std::string git = LAMMPS::has_git_info() ? LAMMPS::git_descriptor() : "";
  const int update = update_of(git);
  const std::string mpi = mpi_there();
  std::string difference;
  if (number != RACE_LAMMPS_NUMBER) {
    difference = "the version";
  } else if (difference = other_integers(lmp); !difference.empty()) {
  } else if (mpi != mpi_here) {
    difference = "the MPI library";
  } else if (difference = difference_of_layout(lmp); !difference.empty()) {
    difference = "the place of " + difference;
  } else if (update >= 0 && RACE_LAMMPS_UPDATE >= 0 && update != RACE_LAMMPS_UPDATE) {
    difference = "the update";
  }
  if (difference.empty()) return "";
  return "raceplugin.so: built for " + with_update(RACE_LAMMPS_NUMBER, RACE_LAMMPS_UPDATE) +
         " with " + mpi_here + ", this is " + with_update(number, update) + " with " + mpi +
         (git.empty() || update >= 0 ? "" : " (" + git + ")") + "; they differ in " + difference +
         "; build it again: cmake -B build -DRACE_LAMMPS=ON -DRACE_LAMMPS_HEADERS=DIR -DRACE_LAMMPS_DEFINITIONS=LAMMPS_SMALLBIG "
         "(or LAMMPS_BIGBIG) -DRACE_MPI_INCLUDE=DIR of this LAMMPS, cmake --build build --target raceplugin";
}
