#!/usr/bin/env bash
# Train on 3BPA at 300 K and judge at 300, 600 and 1200 K.
#   RACE_DATA=/path/to/data examples/3bpa/run.sh [OUTPUT FOLDER]     in the environment of `make setup`; resumes where it stopped
# The test frames here are mixed-temperature draws (`mixedT`), not the 1669/2138/2139 frames of the published test sets.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
: "${RACE_DATA:?the folder that holds 3bpa/*.xyz}"
out=${1:-$here/output}
mkdir -p "$out"

race train "$here/config.yaml" --out "$out/run" --resume
python "$here/prepare.py" "$RACE_DATA/3bpa" "$out"
race evaluate "$out/run" 300K="$out/300K.extxyz" 600K="$out/600K.extxyz" 1200K="$out/1200K.extxyz" \
  --ood 600K 1200K --out "$out/evaluation"
race export "$out/run" -o "$out/3bpa.race.pt"
