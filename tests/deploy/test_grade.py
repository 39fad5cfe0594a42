"""The grade: a Mahalanobis distance, against scikit-learn-free numpy and on what is unlike."""

import numpy as np
import pytest
import race._race
import torch

from race.data.dataset import Dataset
from race.data.graph import build_graph
from race.deploy.export import export_model, fold
from race.deploy.grade import last_features
from race.model import grade
from race.model.grade import QUANTILE, SHRINKAGE, Sample
from tests.deploy.conftest import (
    ELEMENTS,
    R_MAX,
    difference,
    domains_of,
    folded,
    graph_of,
    make_model,
    triclinic,
)


def training_frames(n=40):
    frames = []
    for seed in range(n):
        frame = triclinic((2, 2, 1))
        frame.rattle(0.05, seed=seed)
        frames.append(frame)
    return frames


@pytest.fixture(scope="module")
def model():
    return make_model(n_layers=2)


@pytest.fixture(scope="module")
def batches():
    return [build_graph(frame, ELEMENTS, R_MAX, torch.float64) for frame in training_frames()]


@pytest.fixture(scope="module")
def graded(model, batches, tmp_path_factory):
    path = tmp_path_factory.mktemp("grade") / "x.race.pt"
    export_model(model, path, training_set=batches)
    return race._race.load(str(path))


def grades(runtime, frame) -> np.ndarray:
    return runtime.predict(*folded(graph_of(frame)), uncertainty=True)["grade"].numpy()


def distance(rows, mean, inverse) -> np.ndarray:
    """Mahalanobis."""
    return np.sqrt(np.einsum("na,ab,nb->n", rows - mean, inverse, rows - mean))


def test_is_the_distance_that_numpy_gives(model, batches, graded):
    """Written out: a projection of features of unit scale, mean and covariance per element."""
    deployed, _ = fold(model, torch.float64)
    deployed.prepare()
    z, species = (t.numpy() for t in last_features(deployed, batches))
    generator = torch.Generator().manual_seed(0)
    shape = (z.shape[1], min(32, z.shape[1]))
    projection = torch.randn(*shape, generator=generator, dtype=torch.float64).numpy()
    x = (z / z.std(0, ddof=1)) @ projection
    frame = triclinic((2, 2, 1))
    frame.rattle(0.1, seed=77)
    batch = build_graph(frame, ELEMENTS, R_MAX, torch.float64)
    new, of_new = (t.numpy() for t in last_features(deployed, [batch]))
    y = (new / z.std(0, ddof=1)) @ projection
    want = np.zeros(len(y))
    for k in (0, 1):
        mine = x[species == k]
        covariance = np.cov(mine.T, bias=True)
        covariance += SHRINKAGE * covariance.diagonal().mean() * np.eye(len(covariance))

        mean, inverse = mine.mean(0), np.linalg.inv(covariance)
        scale = np.quantile(distance(mine, mean, inverse), QUANTILE)
        want[of_new == k] = distance(y[of_new == k], mean, inverse) / scale
    np.testing.assert_allclose(grades(graded, frame), want, rtol=1e-7)


def test_training_set_and_what_is_unlike(graded):
    seen = np.concatenate([grades(graded, frame) for frame in training_frames()])
    assert np.quantile(seen, QUANTILE) == pytest.approx(1.0, abs=0.05) and np.median(seen) < 0.9
    squeezed = triclinic((2, 2, 1))
    squeezed.set_cell(squeezed.cell * 0.85, scale_atoms=True)
    assert grades(graded, squeezed).min() > 1.5


def test_domains_parts_and_rotation(graded):
    frame = triclinic((2, 2, 2))
    want = torch.from_numpy(grades(graded, frame))
    domain = np.arange(len(frame)) % 3
    domains, owned = domains_of(frame, domain, 3)
    several = graded.predict_domains(domains, uncertainty=True)
    order = np.argsort(np.concatenate(owned))
    parts = torch.cat(
        [part["grade"][: len(rows)] for part, rows in zip(several, owned, strict=True)]
    )
    assert difference(parts[order], want) < 1e-10
    in_parts = graded.predict(*folded(graph_of(frame)), uncertainty=True, n_parts=4)["grade"]
    assert difference(in_parts, want) < 1e-10
    frame.rotate(40, (1, 2, 3), rotate_cell=True)
    assert difference(torch.from_numpy(grades(graded, frame)), want) < 1e-8


def test_without_a_training_set(model, tmp_path):
    export_model(model, tmp_path / "x.race.pt")
    runtime = race._race.load(str(tmp_path / "x.race.pt"))
    out = runtime.predict(*folded(graph_of(triclinic())), uncertainty=True)
    assert "grade" not in out


def test_an_element_that_was_not_there(model, tmp_path):
    """Infinite: nothing is known of it."""
    frame = triclinic((2, 2, 1))
    frame.symbols[:] = "B"
    batch = build_graph(frame, ELEMENTS, R_MAX, torch.float64)
    export_model(model, tmp_path / "x.race.pt", training_set=[batch])
    found = grades(race._race.load(str(tmp_path / "x.race.pt")), triclinic((2, 2, 1)))
    nitrogen = triclinic((2, 2, 1)).symbols == "N"
    assert np.isinf(found[nitrogen]).all() and np.isfinite(found[~nitrogen]).all()


def boron_then_nitrogen() -> list:
    """Frames of boron; the last alone has an atom of nitrogen."""
    frames = training_frames(12)
    for frame in frames:
        frame.symbols[:] = "B"
    frames[-1].symbols[3] = "N"
    return frames


def test_a_rare_element_is_seen_beyond_the_first_atoms(model):
    """And of the others no more is kept."""
    batches = [graph_of(frame) for frame in boron_then_nitrogen()]
    deployed, _ = fold(model, torch.float64)
    deployed.prepare()
    every, _ = last_features(deployed, batches)
    n = len(batches[0].species)
    z, species = last_features(deployed, batches, Sample(n_atoms=n + 3, n_rare=2))
    assert species.tolist() == [0] * (n + 3) + [1]
    assert torch.equal(z, torch.cat([every[: n + 3], every[11 * n + 3 : 11 * n + 4]]))
    found = grade.Grade()
    grade.fit(found, z, species, 2)
    assert torch.isfinite(found(z, species)).all()


def test_frames_of_a_sample():
    """In the order of training; after enough atoms those with what is lacking, and no further
    ones are looked at.
    """
    frames = boron_then_nitrogen()
    dataset = Dataset(frames, ELEMENTS, R_MAX, torch.float64)
    n, order = len(frames[0]), list(dataset.order(0, 0))
    looked = []

    class Frame(type(frames[0])):
        @property
        def numbers(self):
            looked.append(1)
            return self.arrays["numbers"]

    dataset.frames = [Frame(frame) for frame in frames]
    looked.clear()

    def sampled(*arguments):
        return [int(k) for batch in dataset.sampled(2, *arguments) for k in batch.index]

    first = [k for k in order if k != 11][: 2 - (11 in order[:2])]
    want = [k for k in order if k in (*first, 11)]
    assert sampled(2 * n, 1) == want
    assert sampled(10**9, 0) == order
    looked.clear()
    assert dataset._sample(2 * n, 0).tolist() == order[:2] and len(looked) == 2
