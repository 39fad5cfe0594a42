"""examples/loop, shortened: the guard stops, a frame is picked and labelled, training goes on from
the last weights, LAMMPS from its restart.
"""

import json
import os
import re
import shutil
import sys
from pathlib import Path

import ase.io
import numpy as np
import race._race

from .conftest import ROOT
from .harness import thermo


def test_the_loop(lammps_run, tmp_path, monkeypatch):
    example = tmp_path / "loop"
    shutil.copytree(ROOT / "examples" / "loop", example, ignore=shutil.ignore_patterns("output"))
    shorten(
        example / "config.yaml", ("epochs: 60", "epochs: 2"), ("8x0e+8x1o+8x2e", "4x0e+2x1o+2x2e")
    )
    # The guard looks at every step and forgives little, so that it stops soon, but not before
    # there is a restart.
    shorten(
        example / "in.md",
        ("index 20000", "index 60"),
        ("restart 100", "restart 2"),
        ("guard 10", "guard 4"),
        ("grade 3.0", "grade 1.6"),
        ("temp 300 1500", "temp 3000 3000"),
    )
    monkeypatch.setenv("ROUNDS", "1")
    monkeypatch.setenv("PATH", os.pathsep.join([str(Path(sys.prefix) / "bin"), os.environ["PATH"]]))
    finished = lammps_run.execute(["bash", str(example / "run.sh"), str(tmp_path / "out")], 300)
    out = tmp_path / "out"
    assert finished.status == 0, finished.output
    assert "ERROR: fix hard race/guard: step" in finished.output
    train = ase.io.read(out / "train.extxyz", ":")
    picked = ase.io.read(out / "picked.extxyz", ":")
    assert len(train) == 8 + len(picked) and picked[0].info["race_strategy"] == "grade"
    cut = [atoms for atoms in train if "center" in atoms.info]
    for atoms in cut:
        assert "energy" not in atoms.calc.results and np.isfinite(atoms.get_forces()).all()
        assert set(np.unique(atoms.arrays["weight"])) == {0.0, 1.0}
    for atoms in train[:8]:
        assert atoms.get_potential_energy() < 0
    config = (out / "run-1" / "config.yaml").read_text()
    assert re.search(r"warm_start: .*run-0", config)
    summary = json.loads((out / "run-1" / "summary.json").read_text())
    assert summary
    # The second run of LAMMPS is the user's next: it begins where the first was stopped, with the
    # model that has learned, and goes on to its end if the guard lets it.
    shorten(out / "in.md", ("stop grade 1.6 overlap 0.9", "stop overlap off unseen no"))
    begun = race._race.read_artifact(str(out / "si.race.pt")).sha256
    again = lammps_run.execute(
        ["bash", "-c", f"cd {out} && race lmp -in in.md -log second.log"], timeout=120
    )
    assert again.status == 0, again.output
    assert "Reading restart file" in again.output
    first, *more = (row["Step"] for row in thermo(again.output))
    assert first > 0 and more[-1] == 60
    (line,) = [line for line in again.output.splitlines() if "the restart file was" in line]
    found = re.search(r"has sha256 (\w+), the restart file was written with (\w+)", line)
    assert found and found[1] == begun and found[2] != begun and "WARNING" in line


def shorten(path: Path, *changes: tuple[str, str]) -> None:
    text = path.read_text()
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    path.write_text(text)
