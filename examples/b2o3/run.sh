#!/usr/bin/env bash
# Train on liquid B2O3, judge on liquid and on crystals never seen, export, and run 2120 atoms on two ranks.
#   RACE_DATA=/path/to/data examples/b2o3/run.sh [OUTPUT FOLDER]     in the environment of `make setup`; resumes where it stopped
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
: "${RACE_DATA:?the folder that holds b2o3/*.extxyz}"
plugin=$(python -c 'import race._race; print(race._race.__file__.rpartition("/")[0])')/raceplugin.so
out=${1:-$here/output}
data=$RACE_DATA/b2o3
mkdir -p "$out"

python "$here/prepare.py" "$data" "$out"
race train "$here/config.yaml" --out "$out/run" --resume
race evaluate "$out/run" liquid="$out/liquid_test.extxyz" glass="$data/B2O3_glass_300K_val.extxyz" \
  alpha="$data/B2O3_crystal_alpha_val.extxyz" beta="$data/B2O3_crystal_beta_val.extxyz" \
  high_pressure="$data/B2O3_crystal_highP_40GPa_val.extxyz" \
  --ood alpha beta high_pressure --calibrate "$out/liquid_calibration.extxyz" --out "$out/evaluation"
race export "$out/run" -o "$out/b2o3.race.pt" --calibration "$out/evaluation/calibration.json"
race info "$out/b2o3.race.pt"
cd "$out"
mpirun -np 2 lmp -in "$here/in.nvt" -log nvt.log -var model b2o3.race.pt -var plugin "$plugin" -var data liquid.data
