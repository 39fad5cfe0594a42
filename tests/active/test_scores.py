"""BALD and variances: against loops and determinants, against the compiled runtime, where
they must vanish and where they are refused.
"""

from pathlib import Path

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from race.active.pool import Candidate
from race.active.scores import (
    ArtifactScorer,
    FrameScores,
    RunScorer,
    Scorer,
    bald_energy,
    bald_forces,
    half_logdet,
    score_pool,
)
from race.cli import main
from race.errors import RaceError

from .conftest import boron_nitride, write_run


def covariances(rng: np.random.Generator, *shape: int) -> np.ndarray:
    root = rng.normal(size=(*shape, 3, 3))
    return 0.01 * (root @ np.swapaxes(root, -1, -2) + 0.1 * np.eye(3))


def candidates(n: int = 4) -> list[Candidate]:
    return [Candidate(boron_nitride(k, 0.05 * (k + 1)), Path("pool.extxyz"), k) for k in range(n)]


def test_bald_by_hand():
    rng = np.random.default_rng(0)
    energy, var = rng.normal(size=(5, 4)), rng.uniform(0.1, 2, size=(5, 4))
    forces, cov = rng.normal(size=(5, 4, 3)), covariances(rng, 5, 4)
    for n in range(5):
        total = var[n].mean() + np.mean((energy[n] - energy[n].mean()) ** 2)
        expected = 0.5 * np.log(total) - np.mean([0.5 * np.log(v) for v in var[n]])
        assert bald_energy(energy, var)[n] == pytest.approx(expected, abs=1e-12)
        sigma = (
            sum(cov[n, m] + np.outer(d := forces[n, m] - forces[n].mean(0), d) for m in range(4))
            / 4
        )
        expected = 0.5 * np.log(np.linalg.det(sigma)) - np.mean(
            [0.5 * np.log(np.linalg.det(cov[n, m])) for m in range(4)]
        )
        assert bald_forces(forces, cov)[n] == pytest.approx(expected, abs=1e-10)


def test_agreement_teaches_nothing_and_disagreement_always_does():
    rng = np.random.default_rng(1)
    cov = np.repeat(covariances(rng, 50, 1), 4, axis=1)
    same = np.repeat(rng.normal(size=(50, 1, 3)), 4, axis=1)
    np.testing.assert_allclose(bald_forces(same, cov), 0, atol=1e-12)
    # Noise alone is no information
    np.testing.assert_allclose(bald_forces(same, 100 * cov), 0, atol=1e-12)
    assert (bald_forces(same + 0.1 * rng.normal(size=(50, 4, 3)), cov) > 1e-4).all()
    assert (
        bald_forces(same, covariances(rng, 50, 4)) > 0
    ).all()  # members that differ in their noise only disagree too


def test_an_evidential_member_disagrees_with_itself():
    cov = covariances(np.random.default_rng(2), 6, 1)
    np.testing.assert_allclose(
        bald_forces(np.zeros((6, 1, 3)), cov, cov / 0.5), 1.5 * np.log(3), rtol=1e-12
    )


def test_tiny_covariances_do_not_underflow():
    assert np.linalg.det(1e-120 * np.eye(3)) == 0
    assert half_logdet(1e-120 * np.eye(3)) == pytest.approx(1.5 * np.log(1e-120), rel=1e-12)
    mixed = np.stack([np.eye(3), -np.eye(3), np.full((3, 3), np.nan)])
    np.testing.assert_array_equal(np.isnan(half_logdet(mixed)), [False, True, True])


def test_scores_of_frames_do_not_depend_on_the_batch_or_the_orientation(run):
    together = RunScorer(run, batch_size=3).scores(candidates())
    turned = []
    for candidate in candidates():
        atoms = candidate.atoms
        rotation = Rotation.from_rotvec([0.3, -1.1, 0.7]).as_matrix()
        atoms.set_cell(atoms.cell.array @ rotation.T, scale_atoms=False)
        atoms.positions = atoms.positions @ rotation.T
        turned.append(Candidate(atoms, candidate.source, candidate.index))
    for other in (RunScorer(run, batch_size=1).scores(candidates()), RunScorer(run).scores(turned)):
        for a, b in zip(together, other, strict=True):
            assert (a.variance, a.bald_energy, a.bald_force) == pytest.approx(
                (b.variance, b.bald_energy, b.bald_force), rel=1e-9
            )
    assert len({round(score.bald_force, 9) for score in together}) == 4


@pytest.mark.parametrize("head", ["equivariant", "cholesky", "energy", "point", "evidential"])
def test_an_artifact_scores_as_its_run(head, tmp_path):
    run = write_run(tmp_path / "run", head=head)
    assert main(["export", str(run), "-o", str(tmp_path / "x.race.pt")]) == 0
    for a, b in zip(
        RunScorer(run).scores(candidates()),
        ArtifactScorer(tmp_path / "x.race.pt").scores(candidates()),
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
    (score,) = RunScorer(run).scores(candidates(1))
    assert score.bald_energy is None and score.bald_force is None and score.variance > 0
    with pytest.raises(RaceError, match="this model has no bald-force score.*train an ensemble"):
        score_pool(candidates(2), ["bald-force"], RunScorer(run))


class Planted(Scorer):
    name = Path("planted")

    def __init__(self, values):
        self.values = values

    def scores(self, candidates, progress=lambda n: None):
        return [FrameScores(v, v, v) for v in self.values]


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
        RunScorer(run).scores([candidates(1)[0], Candidate(atoms, Path("pool.extxyz"), 1)])
