#!/usr/bin/env bash
# A potential that learns while its simulation runs.
#   examples/loop/run.sh [OUTPUT FOLDER]     in the environment of `make setup`; ROUNDS=5
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "${1:-$here/output}" && cd "${1:-$here/output}"
cp "$here"/config.yaml "$here"/in.md "$here"/*.py .

python prepare.py
race train config.yaml --out run-0
race export run-0 -o si.race.pt
for round in $(seq 1 "${ROUNDS:-5}"); do
  if race lmp -in in.md; then exit; fi # to its end, and nothing was too unlike the training set
  race select si.race.pt guard.soft.extxyz guard.hard.extxyz --strategy grade --budget 2 --exclude train.extxyz -o picked.extxyz
  python label.py picked.extxyz >> train.extxyz
  race train config.yaml --out "run-$round" --set train.warm_start="run-$((round - 1))"
  race export "run-$round" -o si.race.pt
done
echo "still unlike the training set after ${ROUNDS:-5} rounds"
