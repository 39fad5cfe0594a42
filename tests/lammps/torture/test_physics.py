"""The physics block with a shorter run, and what its judges must not let pass."""

from dataclasses import replace

import numpy as np

from ..harness import Lammps
from . import physics


def test_physics(tmp_path, plugin, artifact, small_artifact):
    tally = physics.run(Lammps(plugin, tmp_path), artifact, small_artifact, n_steps=2000)
    assert tally.tried == 10 and tally.good == 10, tally.trouble


def test_judges(tmp_path, plugin, artifact, small_artifact, monkeypatch):
    points = np.array([1.0, 2.0, physics.CUTOFF, physics.CUTOFF + 0.05])
    r = (points[:, None] + [-physics.H, 0.0, physics.H]).ravel()
    inside = np.maximum(physics.CUTOFF - r, 0.0)
    right = np.stack([inside**3, 3 * inside**2], axis=1)
    assert physics.judge_dimer(points, right) == ""
    assert "slope" in physics.judge_dimer(points, right * [1.0, 1.0001])
    step = right + np.stack([np.zeros_like(r), 0.02 * (r > 2.0)], axis=1)
    assert "jump" in physics.judge_dimer(points, step)
    assert "beyond" in physics.judge_dimer(
        points, right + np.stack([0 * r, 1e-9 * (r > 3.22)], axis=1)
    )
    assert "no interaction" in physics.judge_dimer(points, 0 * right)

    lammps = Lammps(plugin, tmp_path)
    base = lammps.single_point(physics.molecule(), str(artifact), physics.ELEMENTS)
    same = np.arange(len(base.forces))
    assert physics.judge_symmetry(base, base, np.eye(3), same) == ""
    assert physics.judge_symmetry(
        base, replace(base, energy=base.energy * (1 + 1e-8)), np.eye(3), same
    )
    assert physics.judge_symmetry(base, base, -np.eye(3), same) and physics.judge_symmetry(
        base, base, np.eye(3), same[::-1]
    )

    leaking = physics.LONG.replace("resident = []", "resident, lost = [], []").replace(
        "    lmp.command(", "    lost.append(b'x' * 2**20)\n    lmp.command("
    )
    monkeypatch.setattr(physics, "LONG", leaking)
    assert "MiB in 180 steps" in physics.memory(lammps, small_artifact, 200)
