#!/bin/bash
# Everything that needs a GPU, in one call on a machine with python3 (torch for CUDA), nvcc, g++ and no network: builds with
# RACE_CUDA=ON, runs tests/gpu, times kernels, models and LAMMPS (benchmarks/gpu.py). Goes on after a failure, and says at the end
# what failed and which packages were missing.
#
#   benchmarks/gpu.sh [options of gpu.py]       RACE_GPU_STEPS="build test bench" picks some of them; results in benchmarks/results
#   benchmarks/gpu.sh --fetch                   on a machine with a network: fills .wheels/ with what such machines lack
set -uo pipefail
cd "$(dirname "$0")/.."
steps=${RACE_GPU_STEPS:-build test bench}
python=${PYTHON:-python3}
build=build/gpu
needed="e3nn pydantic ase vesin yaml scipy rich pybind11 pytest lammps"

if [ "${1:-}" = --fetch ]; then
  version=${2:-3.12}
  # Versions from constraints.txt; without dependencies, which such machines have (numpy, torch) or which are listed here.
  packages="ase vesin pydantic pydantic_core annotated-types typing-inspection typing_extensions e3nn opt-einsum-fx lammps mpich pybind11 pytest iniconfig pluggy Pygments"
  platforms=""
  for tag in 39 35 34 31 28 27 24 17; do platforms+=" --platform manylinux_2_${tag}_x86_64"; done
  for package in $packages; do
    $python -m pip download -q --disable-pip-version-check --no-deps --only-binary=:all: --python-version "$version" --implementation cp \
      $platforms --platform manylinux2014_x86_64 --platform manylinux1_x86_64 -c constraints.txt -d .wheels "$package" || echo "NOT FETCHED: $package"
  done
  du -sh .wheels
  exit 0
fi

failed=()
say() { echo; echo "==== $* ($(date +%H:%M:%S))"; }
$python -c 'import torch; print("torch", torch.__version__, "CUDA", torch.version.cuda, "GPU", torch.cuda.get_device_name() if torch.cuda.is_available() else "NONE")' || exit 1

# An environment over the machine's own: it sees all that python3 sees (which may itself be a venv), and .wheels/ where that lacks it.
if [ ! -x $build/venv/bin/python ]; then
  mkdir -p $build
  $python -m venv --without-pip $build/venv || exit 1
  $python - > "$($build/venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/outer.pth" <<'PYTHON'
import sys
print(*[path for path in sys.path if path.endswith(("site-packages", "dist-packages"))], sep="\n")
PYTHON
  shopt -s nullglob
  for wheel in .wheels/*.whl; do
    name=$(basename "$wheel" | cut -d- -f1)
    $build/venv/bin/python -c "import importlib.metadata as m; m.version('$name')" 2> /dev/null && continue
    $python -m pip --python $build/venv/bin/python install -q --disable-pip-version-check --no-index --no-deps --no-compile "$wheel" || failed+=("install $name")
  done
fi
outer=$($python -c 'import sys; print(sys.prefix)')
export PATH="$PWD/$build/venv/bin:$outer/bin:$PATH" LD_LIBRARY_PATH="$PWD/$build/venv/lib:$outer/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}" PYTHONPATH="$PWD/python"
missing=()
for module in $needed; do python -c "import $module" 2> /dev/null || missing+=("$module"); done
[ ${#missing[@]} = 0 ] || echo "MISSING PACKAGES: ${missing[*]} (benchmarks/gpu.sh --fetch, on a machine with a network); going on without"
lammps=$([[ " ${missing[*]} " == *" lammps "* ]] && echo OFF || echo ON)
cmake=$(command -v cmake || echo "python -m cmake")

if [[ $steps == *build* ]]; then
  say "build (RACE_LAMMPS=$lammps)"
  architectures=$(python -c 'import torch; print("%d%d" % torch.cuda.get_device_capability())' 2> /dev/null || echo "80;90")
  generator=$(command -v ninja > /dev/null && echo Ninja || echo "Unix Makefiles")
  targets="_race"; [ $lammps = ON ] && targets+=" raceplugin"
  $cmake -S . -B $build/cmake -G "$generator" -DRACE_CUDA=ON -DCMAKE_CUDA_ARCHITECTURES="$architectures" -DRACE_LAMMPS=$lammps \
    -DPython_EXECUTABLE="$PWD/$build/venv/bin/python" > $build/configure.log 2>&1 || { tail -30 $build/configure.log; failed+=(configure); }
  $cmake --build $build/cmake -j "$(nproc)" --target $targets > $build/build.log 2>&1 || { grep -E "error|Error" -A3 $build/build.log | head -60; failed+=(build); }
  cp -f $build/cmake/cpp/_race*.so python/race/ || failed+=("no _race")
  [ $lammps = OFF ] || cp -f $build/cmake/lammps_plugin/raceplugin.so python/race/ || failed+=("no raceplugin")
fi
if [[ $steps == *test* ]]; then
  say "tests/gpu"
  python -m pytest -q -p no:cacheprovider tests/gpu -rs --durations=3 || failed+=(tests)
fi
if [[ $steps == *bench* ]]; then
  say "benchmarks/gpu.py $*"
  python benchmarks/gpu.py "$@" || failed+=(benchmarks)
fi
say "done"
[ ${#missing[@]} = 0 ] || echo "missing packages: ${missing[*]}"
[ ${#failed[@]} = 0 ] || { echo "FAILED: ${failed[*]}"; exit 1; }
