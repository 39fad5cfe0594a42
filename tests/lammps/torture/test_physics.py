"""The physics block with fewer models and a shorter run, and what its judges must not let pass."""

from dataclasses import replace

import numpy as np
import pytest

from ..harness import Lammps, Snapshot
from . import bulk, pairs, physics
from .subjects import KINDS, subjects

FAST = ("products and gate", "float32")


def test_there_are_as_many_as_promised():
    names = [name for kind in KINDS.values() for name in physics.names(kind)]
    assert len(KINDS) == 8 and len(names) + 1 == 219


def test_physics(tmp_path, plugin, small_artifact):
    models = subjects(tmp_path, FAST)
    tally = physics.run(Lammps(plugin, tmp_path), models, small_artifact, n_steps=2000)
    assert tally.tried == 45 and tally.good == 45, "\n".join(tally.trouble)


def test_a_memory_that_grows(tmp_path, plugin, small_artifact, monkeypatch):
    leaking = physics.LONG.replace("resident = []", "resident, lost = [], []").replace(
        "    lmp.command(", "    lost.append(b'x' * 2**20)\n    lmp.command("
    )
    monkeypatch.setattr(physics, "LONG", leaking)
    said = physics.memory(Lammps(plugin, tmp_path), small_artifact, 200)
    assert "MiB in 180 steps" in said


def test_judges_of_pairs():
    points = np.array([1.0, 2.0, pairs.CUTOFF, pairs.CUTOFF + 0.05])
    r = (points[:, None] + [-pairs.H, 0.0, pairs.H]).ravel()
    inside = np.maximum(pairs.CUTOFF - r, 0.0)
    right = np.stack([inside**3, 3 * inside**2], axis=1)
    assert pairs.judge_dimer(points, right) == ""
    assert "slope" in pairs.judge_dimer(points, right * [1.0, 1.0001])
    step = right + np.stack([np.zeros_like(r), 0.02 * (r > 2.0)], axis=1)
    assert "jump" in pairs.judge_dimer(points, step)
    assert "beyond" in pairs.judge_dimer(
        points, right + np.stack([0 * r, 1e-9 * (r > 3.22)], axis=1)
    )
    assert "no interaction" in pairs.judge_dimer(points, 0 * right)

    assert pairs.judge_same(right, right, 1e-9) == ""
    assert "force" in pairs.judge_same(right * [1, 1 + 1e-8], right, 1e-9)

    r = (pairs.CLOSE[:, None] + [-pairs.H, 0.0, pairs.H]).ravel()
    core = np.stack([360 / r, 360 / r**2], axis=1)
    assert pairs.judge_core(pairs.CLOSE, core) == ""
    assert "repel" in pairs.judge_core(pairs.CLOSE, -core)
    assert "only" in pairs.judge_core(pairs.CLOSE, 0.01 * core)
    assert "derivative" in pairs.judge_core(pairs.CLOSE, core * [1, 1 + 1e-4])
    assert "finite" in pairs.judge_core(pairs.CLOSE, core * np.nan)


class Recorded(Lammps):
    """LAMMPS's answers of one model, to be spoilt."""

    found: dict[str, Snapshot]

    def single_points(self, *arguments, **options) -> dict[str, Snapshot]:
        return self.found


@pytest.fixture(scope="module")
def answers(tmp_path_factory, plugin):
    """What bulk.checks asks for and is told, of a model of one layer."""
    folder = tmp_path_factory.mktemp("answers")
    (model,) = subjects(folder, ["one layer"])
    found: dict[str, Snapshot] = {}

    class Recording(Lammps):
        def single_points(self, *arguments, **options):
            found.update(super().single_points(*arguments, **options))
            return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bulk, "dynamics", lambda *arguments: iter(()))
        verdicts = dict(bulk.checks(Recording(plugin, folder), model))
    assert set(verdicts) == set(SPOILT) and not any(verdicts.values()), verdicts
    return model, found


# By check: an answer of LAMMPS, and what of it is off by how much of its largest value
SPOILT = {
    "objectivity": ("turned", "forces", 1e-8),
    "inversion": ("mirrored", "energy", 1e-8),
    "permutation": ("permuted", "columns", 1e-8),
    "translation": ("moved", "forces", 1e-8),
    "supercell": ("supercell", "virial", 1e-8),
    "sums": ("crystal", "atom_virial", 1e-6),
    "Python": ("crystal", "energy_std", 1e-6),
    "gradient": ("displaced_1_1", "energy", 1e-8),
    "stress": ("strained_3_1", "energy", 1e-8),
}


@pytest.mark.parametrize("name", SPOILT)
def test_judges_of_the_bulk(name, answers, plugin, tmp_path, monkeypatch):
    model, found = answers
    system, what, off = SPOILT[name]
    value = getattr(found[system], what)
    if what == "columns":
        value = {key: each + off * np.abs(each).max() for key, each in value.items()}
    else:
        value = value + off * np.abs(value).max()
    lammps = Recorded(plugin, tmp_path)
    lammps.found = found | {system: replace(found[system], **{what: value})}
    monkeypatch.setattr(bulk, "dynamics", lambda *arguments: iter(()))
    failed = [check for check, verdict in bulk.checks(lammps, model) if verdict]
    assert failed == [name]


def test_judges_of_dynamics():
    time = np.linspace(0, 0.4, 81)
    energy = 1e-3 * np.sin(300 * time)
    assert bulk.judge_drift(time, energy) == ""
    assert "drift" in bulk.judge_drift(time, energy + 0.005 * time)
    assert bulk.judge_order((time, energy), (time, 4 * energy)) == ""
    assert "2.00 times" in bulk.judge_order((time, energy), (time, 2 * energy))
