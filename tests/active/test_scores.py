"""BALD and variances: against loops and determinants, against the compiled runtime, where
they must vanish and where they are refused.
"""

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from race.active.pool import Candidate
from race.active.scores import (
    FrameScores,
    Scorer,
    open_scorer,
    score_pool,
)
from race.cli import main
from race.data.graph import build_graph
from race.deploy.calculator import Calculator
from race.deploy.export import export_model
from race.errors import RaceError
from race.train.run import load_run

from .conftest import boron_nitride, write_run


def candidates(n: int = 4) -> list[Candidate]:
    return [Candidate(boron_nitride(k, 0.05 * (k + 1)), Path("pool.extxyz"), k) for k in range(n)]


def test_scores_of_frames_do_not_depend_on_the_batch_or_the_orientation(run):
    together = open_scorer(run, batch_size=3).scores(candidates())
    turned = []
    for candidate in candidates():
        atoms = candidate.atoms
        rotation = Rotation.from_rotvec([0.3, -1.1, 0.7]).as_matrix()
        atoms.set_cell(atoms.cell.array @ rotation.T, scale_atoms=False)
        atoms.positions = atoms.positions @ rotation.T
        turned.append(Candidate(atoms, candidate.source, candidate.index))
    for other in (
        open_scorer(run, batch_size=1).scores(candidates()),
        open_scorer(run).scores(turned),
    ):
        for a, b in zip(together, other, strict=True):
            assert (a.variance, a.bald_energy, a.bald_force) == pytest.approx(
                (b.variance, b.bald_energy, b.bald_force), rel=1e-9
            )
    assert len({round(score.bald_force, 9) for score in together}) == 4


@pytest.mark.parametrize(
    "head", ["equivariant", "cholesky", "energy", "point", "evidential", "eip"]
)
def test_an_artifact_scores_as_its_run(head, tmp_path):
    run = write_run(tmp_path / "run", head=head)
    assert main(["export", str(run), "-o", str(tmp_path / "x.race.pt")]) == 0
    for a, b in zip(
        open_scorer(run).scores(candidates()),
        open_scorer(tmp_path / "x.race.pt").scores(candidates()),
        strict=True,
    ):
        assert (a.bald_energy is None) == (head == "point") and (a.bald_force is None) == (
            head in ("point", "energy")
        )
        for name in ("variance", "bald_energy", "bald_force"):
            assert getattr(b, name) == (
                None if getattr(a, name) is None else pytest.approx(getattr(a, name), rel=1e-6)
            ), name


def test_one_member_cannot_disagree(tmp_path):
    run = write_run(tmp_path / "run", n_members=1)
    (score,) = open_scorer(run).scores(candidates(1))
    assert score.bald_energy is None and score.bald_force is None and score.variance > 0
    with pytest.raises(RaceError, match="this model has no bald-force score.*train an ensemble"):
        score_pool(candidates(2), ["bald-force"], open_scorer(run))


class Planted(Scorer):
    name = Path("planted")

    def __init__(self, values):
        self.values = values

    def scores(self, candidates, progress=lambda n: None):
        return [FrameScores(v, v, v) for v in self.values]


def test_the_grade_of_a_frame_is_its_most_unlike_atom(tmp_path, run):
    """As the calculator has it; a run has none, and says what has."""
    model, config, _ = load_run(run)
    seen = [
        build_graph(boron_nitride(seed, 0.05), config.model.elements, 3.0, torch.float64)
        for seed in range(20)
    ]
    path = tmp_path / "x.race.pt"
    export_model(model, path, training_set=seen)
    calculator = Calculator(path)
    want = [calculator.get_property("grade", c.atoms).max() for c in candidates()]
    scores = score_pool(candidates(), ["grade"], open_scorer(path))["grade"]
    np.testing.assert_allclose(scores, want, rtol=1e-9)
    assert np.ptp(scores) > 0.5
    with pytest.raises(RaceError, match=r"has no grade score.*artifact, NAME\.race\.pt"):
        score_pool(candidates(2), ["grade"], open_scorer(run))


def test_an_atom_of_an_element_never_seen_is_the_most_unlike():
    infinite = [FrameScores(None, None, None, grade=grade) for grade in (1.0, np.inf, 2.0)]
    model = Planted([0.0] * 3)
    model.scores = lambda candidates, progress: infinite
    assert score_pool(candidates(3), ["grade"], model)["grade"].tolist() == [1.0, np.inf, 2.0]


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_score_that_is_not_finite_is_refused_with_its_frame(bad):
    with pytest.raises(
        RaceError, match="pool.extxyz, frame 2: the bald-energy score is not finite"
    ):
        score_pool(candidates(4), ["bald-energy"], Planted([1.0, 2.0, bad, 3.0]))


def test_a_frame_of_another_element_is_named(run):
    atoms = boron_nitride(0)
    atoms.symbols[1] = "O"
    with pytest.raises(RaceError, match="frame 1: element O is unknown"):
        open_scorer(run).scores([candidates(1)[0], Candidate(atoms, Path("pool.extxyz"), 1)])
