#!/usr/bin/env bash
# Train on liquid B2O3, judge on liquid and on crystals never seen, export, and run 2120 atoms on two ranks.
#   RACE_DATA=/path/to/data RACE_PLUGIN=/path/to/raceplugin.so examples/b2o3/run.sh [OUTPUT FOLDER]
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
: "${RACE_DATA:?the folder that holds b2o3/*.extxyz}" "${RACE_PLUGIN:?path of raceplugin.so}"
out=${1:-$here/output}
data=$RACE_DATA/b2o3
mkdir -p "$out"

race train "$here/config.yaml" --out "$out/run" $([ -e "$out/run/config.yaml" ] && echo --resume)
race evaluate "$out/run" \
  liquid="$data/B2O3_liquid_3000K_val.extxyz,$data/B2O3_liquid_1600K_val.extxyz" \
  glass="$data/B2O3_glass_300K_val.extxyz" \
  alpha="$data/B2O3_crystal_alpha_val.extxyz" beta="$data/B2O3_crystal_beta_val.extxyz" \
  high_pressure="$data/B2O3_crystal_highP_40GPa_val.extxyz" \
  --out "$out/evaluation"
race export "$out/run" -o "$out/b2o3.race.pt"
race info "$out/b2o3.race.pt"
python - "$data/B2O3_liquid_1600K_val.extxyz" "$out/liquid.data" <<'PYTHON'
import sys
import ase.io
ase.io.write(sys.argv[2], ase.io.read(sys.argv[1], index=0), format="lammps-data", specorder=["B", "O"])
PYTHON
cd "$out"
mpirun -np 2 lmp -in "$here/in.nvt" -log nvt.log -var model b2o3.race.pt -var plugin "$RACE_PLUGIN" -var data liquid.data
