#!/usr/bin/env bash
# Compiles pair_style race/kk for CUDA where there is no GPU and no Kokkos built for one: nvcc, and the headers of a Kokkos for the
# host with CUDA switched on in a copy of their configuration. Nothing is linked and nothing runs.
#
#   lammps_plugin/kokkos/cuda_compile.sh LAMMPS_SOURCE KOKKOS_HEADERS [OBJECTS]
#
# LAMMPS_SOURCE   a source tree of 4 Jul 2026 or near it
# KOKKOS_HEADERS  the folder with Kokkos_Core.hpp of a Kokkos >= 5.1, installed or unpacked (Debian: libkokkos-dev)
# OBJECTS         folder for the objects; default build/kokkos-cuda
# MPI_INCLUDE     (environment) folder with mpi.h; default: include/ of the environment of python
set -euo pipefail
[ $# -ge 2 ] || { sed -n '2,11s/^# \{0,1\}//p' "$0" >&2; exit 2; }
here=$(realpath "$(dirname "$0")") lammps=$(realpath "$1") kokkos=$(realpath "$2")
objects=$(realpath -m "${3:-$here/../../build/kokkos-cuda}")
[ -f "$lammps/src/KOKKOS/pair_kokkos.h" ] || { echo "cuda_compile.sh: no KOKKOS package in $lammps; expected src/KOKKOS/pair_kokkos.h" >&2; exit 1; }
[ -f "$kokkos/Cuda/Kokkos_Cuda.hpp" ] || { echo "cuda_compile.sh: no headers of Kokkos in $kokkos; expected Cuda/Kokkos_Cuda.hpp" >&2; exit 1; }
command -v nvcc > /dev/null || { echo "cuda_compile.sh: nvcc is not installed: race/kk was NOT compiled for CUDA" >&2; exit 1; }
torch=$(python -c 'import pathlib, torch; print(pathlib.Path(torch.__file__).parent / "include")')
mpi=${MPI_INCLUDE:-$(python -c 'import sys; print(sys.prefix)')/include}
toolkit=$(nvcc --dryrun -x cu /dev/null 2>&1 | sed -n 's/^#$ TOP=//p')

for architecture in "80 AMPERE" "90 HOPPER"; do
  read -r number name <<< "$architecture"
  # Only the configuration is copied; everything that it includes is the original.
  configured=$objects/configured-$number
  mkdir -p "$configured/desul/atomics"
  sed -e "s~/\* #undef \(KOKKOS_ENABLE_CUDA\|KOKKOS_ENABLE_SERIAL\|KOKKOS_ARCH_$name$number\|KOKKOS_ARCH_$name\) \*/~#define \1~" \
    -e 's|#define KOKKOS_ENABLE_OPENMP||' "$kokkos/KokkosCore_config.h" > "$configured/KokkosCore_config.h"
  sed "s~/\* #undef \(DESUL_ATOMICS_ENABLE_CUDA\) \*/~#define \1~" "$kokkos/desul/atomics/Config.hpp" \
    > "$configured/desul/atomics/Config.hpp"
  for backend in Serial:SERIAL Cuda:CUDA; do
    echo "#include <decl/Kokkos_Declare_${backend#*:}.hpp>" >> "$configured/declare"
    echo "#include <fwd/Kokkos_Fwd_${backend#*:}.hpp>" >> "$configured/forward"
  done
  mv "$configured/declare" "$configured/KokkosCore_Config_DeclareBackend.hpp"
  mv "$configured/forward" "$configured/KokkosCore_Config_FwdBackend.hpp"
  echo "#include <setup/Kokkos_Setup_Cuda.hpp>" > "$configured/KokkosCore_Config_SetupBackend.hpp"
  for file in "$here"/*.cpp; do
    echo "== $(basename "$file") sm_$number"
    nvcc -x cu -std=c++20 -O1 --extended-lambda --expt-relaxed-constexpr -Xcompiler -fPIC \
      -gencode "arch=compute_$number,code=sm_$number" -I "$configured" -I "$here" -I "$here/.." -I "$here/../../cpp/include" \
      -isystem "$lammps/src" -isystem "$lammps/src/KOKKOS" -isystem "$kokkos" -isystem "$mpi" -isystem "$toolkit/include" \
      -isystem "$torch" -isystem "$torch/torch/csrc/api/include" \
      -DRACE_KOKKOS -DLMP_KOKKOS -DLMP_KOKKOS_DOUBLE_DOUBLE -DLAMMPS_SMALLBIG \
      -c "$file" -o "$objects/$(basename "$file" .cpp).sm_$number.o"
  done
done
echo "cuda_compile.sh: race/kk compiles for sm_80 and sm_90"
