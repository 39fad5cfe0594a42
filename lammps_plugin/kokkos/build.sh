#!/usr/bin/env bash
# A small LAMMPS with KOKKOS (OpenMP on the host) and PLUGIN, and raceplugin.so with pair_style race/kk for it: what tests/lammps/test_kokkos.py
# runs. Not a LAMMPS to work with: styles that no test needs are left out, so that it builds in minutes.
#
#   lammps_plugin/kokkos/build.sh LAMMPS_SOURCE DESTINATION [options of LAMMPS's CMake ...]
#   RACE_KOKKOS=DESTINATION python -m pytest tests/lammps/test_kokkos.py
#
# LAMMPS_SOURCE  a source tree of 4 Jul 2026 or near it; it is copied, not changed
# DESTINATION    gets lmp and raceplugin.so
# Kokkos_ROOT    (environment) an installed Kokkos >= 5.1 with OpenMP, for a source tree without lib/kokkos, such as Debian's
#                (its packages: apt-get source lammps; apt-get install libkokkos-dev)
# MPICXX         (environment) the compiler wrapper of an MPI; default: mpicxx beside python, else of PATH
# JOBS           (environment) default 2
set -euo pipefail
[ $# -ge 2 ] || { sed -n '2,15s/^# \{0,1\}//p' "$0" >&2; exit 2; }
source=$(realpath "$1") destination=$(realpath -m "$2")
shift 2
[ -f "$source/src/KOKKOS/pair_kokkos.h" ] || { echo "build.sh: no KOKKOS package in $source; expected src/KOKKOS/pair_kokkos.h" >&2; exit 1; }
race=$(realpath "$(dirname "$0")/../..")
python=$(command -v python) jobs=${JOBS:-2}
mpicxx=${MPICXX:-$(dirname "$python")/mpicxx}
[ -x "$mpicxx" ] || mpicxx=$(command -v mpicxx) || { echo "build.sh: no mpicxx; set MPICXX" >&2; exit 1; }

tree=$destination/source
if [ ! -d "$tree" ]; then
  mkdir -p "$tree/lib"
  cp -r "$source"/{cmake,src} "$tree"
  for part in third_party lib/kokkos lib/README; do [ -e "$source/$part" ] && cp -r "$source/$part" "$tree/$part"; done
  for part in LICENSE README doc tools python potentials; do [ -e "$source/$part" ] && ln -sfn "$source/$part" "$tree/$part"; done

  cd "$tree/src"
  # Leaves of LAMMPS's core: nothing else includes them.
  rm -f compute_{angmom,com,dipole,gyration,inertia,msd,omega,property,reduce,temp,torque,vcm}_chunk.* compute_chunk_spread_atom.* \
    compute_{property_grid,rdf,vacf,vacf_chunk,erotate_sphere,erotate_sphere_atom,cna_atom,centro_atom,orientorder_atom,coord_atom,temp_sphere}.* \
    fix_ave_{grid,correlate,histo,histo_weight}.* fix_wall.* fix_wall_* fix_{spring_chunk,heat,thermal_conductivity,nvt_sllod,restrain}.* \
    fix_press_* fix_n{ph,pt,vt,h,ve}_sphere.* dump_{cfg,grid,grid_vtk}.* reader.* reader_* read_dump.* rerun.* \
    region_{cone,cylinder,ellipsoid,plane,sphere,union,intersect}.* reset_atoms_{image,mol}.* write_{dump,molecule}.*
  find . -maxdepth 1 -name 'pair_*' | grep -vE '/pair_(hybrid(|_overlay|_molecular)|lj_cut|zbl|zbl_const|zero|deprecated)\.' | xargs rm -f

  cd KOKKOS
  kept='kokkos|kokkos_(base|base_fft|few|type)|(atom|atom_map|atom_vec|atom_vec_atomic|comm|comm_tiled|compute_temp|domain|fftdata)_kokkos'
  kept+='|fix_(minimize|nh|npt|nve|nvt|property_atom)_kokkos|(grid3d|group|kissfft|math_extra|math_special|memory|min|min_linesearch)_kokkos'
  kept+='|(modify|nbin|neigh_bond|neigh_list|neighbor|npair|npair_copy|npair_halffull|npair_skip|npair_trim|pack)_kokkos'
  kept+='|(pair|pair_hybrid|pair_hybrid_overlay|rand_pool_wrap|remap|transpose_helper|tune|verlet)_kokkos'
  find . -name '*.cpp' -o -name '*.h' | grep -vE "^\./($kept)\.(cpp|h)\$" | xargs rm -f
  sed -i '/fix_nh_sphere_kokkos/d' "$tree/cmake/Modules/Packages/KOKKOS.cmake"
fi

external=()
[ -d "$tree/lib/kokkos" ] || external=(-D EXTERNAL_KOKKOS=ON)
launcher=()
command -v ccache > /dev/null && launcher=(-D CMAKE_CXX_COMPILER_LAUNCHER=ccache)
cmake -S "$tree/cmake" -B "$destination/build" -G Ninja -D CMAKE_BUILD_TYPE=None -D CMAKE_CXX_FLAGS="-O1 -g0" -D CMAKE_CXX_STANDARD=20 \
  -D BUILD_SHARED_LIBS=ON -D BUILD_MPI=ON -D MPI_CXX_COMPILER="$mpicxx" -D BUILD_OMP=ON -D PKG_PLUGIN=ON -D PKG_KOKKOS=ON \
  -D Kokkos_ENABLE_SERIAL=ON -D Kokkos_ENABLE_OPENMP=ON "${external[@]}" "${launcher[@]}" \
  -D WITH_GZIP=OFF -D WITH_JPEG=OFF -D WITH_PNG=OFF -D WITH_FFMPEG=OFF "$@"
cmake --build "$destination/build" -j "$jobs"
ln -sf build/lmp "$destination/lmp"

kokkos=()
[ -d "$tree/lib/kokkos" ] && kokkos=(-D Kokkos_ROOT="$destination/build/lib/kokkos")
cmake -S "$race" -B "$destination/plugin" -G Ninja -D RACE_LAMMPS=ON -D RACE_PYTHON=OFF -D Python_EXECUTABLE="$python" \
  -D RACE_LAMMPS_KOKKOS=ON -D RACE_LAMMPS_HEADERS="$tree/src" "${kokkos[@]}" "${launcher[@]}"
cmake --build "$destination/plugin" -j "$jobs" --target raceplugin
ln -sf plugin/lammps_plugin/raceplugin.so "$destination/raceplugin.so"
echo "$destination: lmp, raceplugin.so"
