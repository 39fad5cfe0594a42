#!/bin/bash
# Compiles the CUDA kernels for every architecture that RACE supports, and checks the syntax of the code around them against the
# headers of the installed torch: all that a machine without a GPU can do. Prints file, architecture, registers and
# spilled bytes of each kernel; registers.py refuses a spill.
#   cpp/cuda/compile.sh [folder for the objects]
set -euo pipefail
source=$(cd "$(dirname "$0")" && pwd)
objects=${1:-$source/../../build/cuda-compile}
if ! command -v nvcc > /dev/null; then
  echo "cuda-compile: nvcc is not installed: the CUDA kernels were NOT compiled"
  exit 0
fi
mkdir -p "$objects"
nvcc --version | sed -n 's/.*release .*, V//p' > "$objects/registers"
for architecture in 80 90; do
  for file in "$source"/*.cu; do
    echo "== $(basename "$file") sm_$architecture"
    nvcc -std=c++20 -O3 -Xcompiler -fPIC -gencode "arch=compute_$architecture,code=sm_$architecture" -Xptxas -v \
      -c "$file" -o "$objects/$(basename "$file" .cu).sm_$architecture.o" 2> "$objects/log" || { cat "$objects/log"; exit 1; }
    grep -E "warning|error" "$objects/log" && exit 1
    awk -v file="$(basename "$file" .cu)" -v architecture=$architecture \
      '/Compiling entry function/ { split($0, q, "\047"); name = q[2] } /bytes spill/ { spill = $5 } /Used/ { print file, architecture, $5, spill, name }' \
      "$objects/log" | c++filt | tee -a "$objects/registers"
  done
done
python3 "$source/registers.py" "$objects/registers"
headers=$(python3 -c 'import pathlib, torch; print(pathlib.Path(torch.__file__).parent / "include")') || { echo "no torch: .cpp not checked"; exit 0; }
toolkit=$(nvcc --dryrun -x cu /dev/null 2>&1 | sed -n 's/^#$ TOP=//p')
for file in "$source"/*.cpp; do
  echo "== $(basename "$file") syntax"
  configured=$([ -e "$headers/c10/cuda/impl/cuda_cmake_macros.h" ] || echo -DC10_CUDA_NO_CMAKE_CONFIGURE_FILE)
  g++ -std=c++20 -fsyntax-only -Wall -Wextra -Wno-unused-parameter -Werror $configured -I "$source/../include" \
    -isystem "$headers" -isystem "$headers/torch/csrc/api/include" -isystem "$toolkit/include" "$file"
done
echo "cuda-compile: everything compiles for sm_80 and sm_90"
