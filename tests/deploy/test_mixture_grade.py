"""The grade by a Gaussian mixture: its likelihood written out, one component against the
distance, and what lies between the clusters of a training set.
"""

import numpy as np
import pytest
import race._race
import torch
from scipy.special import logsumexp
from scipy.stats import multivariate_normal

from race.data.graph import build_graph
from race.deploy.artifact import read_metadata
from race.deploy.export import export_model, fold
from race.deploy.grade import last_features
from race.model import grade, mixture
from race.model.grade import QUANTILE, Grade
from race.model.mixture import MixtureGrade
from tests.deploy.conftest import (
    ELEMENTS,
    R_MAX,
    difference,
    folded,
    graph_of,
    make_model,
    triclinic,
)

from .test_grade import grades, training_frames

CENTRES = 6.0 * torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.5]], dtype=torch.float64)


def clusters(n: int = 900) -> torch.Tensor:
    """Features [n, 6] in three clusters, which two of them tell apart."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(n, 6, generator=generator, dtype=torch.float64)
    x[:, :2] += CENTRES[torch.arange(n) % 3]
    return x


def fitted(x: torch.Tensor) -> tuple[MixtureGrade, dict]:
    found = MixtureGrade()
    return found, mixture.fit(found, x, torch.zeros(len(x), dtype=torch.long), 1)


def test_rises_with_the_negative_log_likelihood():
    """SciPy's of the same mixture; 1 is the quantile."""
    x = clusters()
    found, about = fitted(x)
    (K,) = about["components"]
    assert K >= 3 and about["kind"] == "gmm" and about["n_atoms"] == 900
    y = (x @ found.projection).numpy()
    whiten = found.whiten[0].numpy()
    covariances = [np.linalg.inv(w.T @ w) for w in whiten]
    peaks = [0.5 * np.linalg.slogdet(2 * np.pi * cov)[1] for cov in covariances]
    weights = np.exp(found.log_share[0].numpy() + peaks)  # up to a factor
    logs = [
        np.log(weight) + multivariate_normal(mean, cov).logpdf(y)
        for weight, mean, cov in zip(weights, found.mean[0].numpy(), covariances, strict=True)
    ]
    nll = -logsumexp(logs, axis=0)
    got = found(x, torch.zeros(len(x), dtype=torch.long)).numpy()
    np.testing.assert_allclose(got, np.sqrt(2 * nll) / found.quantile.numpy(), rtol=1e-7)
    assert np.quantile(got, QUANTILE) == pytest.approx(1, abs=1e-9)
    own = mixture.chosen(torch.from_numpy(y)).log_density(torch.from_numpy(y)).numpy()
    np.testing.assert_allclose(nll + own, (nll + own)[0], rtol=1e-7)


def test_between_the_clusters_is_unlike_them():
    """The distance takes it for the middle of the training set."""
    x, species = clusters(), torch.zeros(1, dtype=torch.long)
    between = torch.zeros(1, 6, dtype=torch.float64)
    between[0, 1] = 3.0
    found, _ = fitted(x)
    by_distance = Grade()
    grade.fit(by_distance, x, torch.zeros(len(x), dtype=torch.long), 1)
    assert by_distance(between, species) < 0.5 < 1 < found(between, species)


def test_one_component_is_the_distance(monkeypatch):
    monkeypatch.setattr(mixture, "COMPONENTS", (1,))
    x, species = clusters(), torch.zeros(900, dtype=torch.long)
    by_distance = Grade()
    grade.fit(by_distance, x, species, 1)
    torch.testing.assert_close(fitted(x)[0](x, species), by_distance(x, species), rtol=1e-9, atol=0)


def test_one_gaussian_is_not_divided():
    """Held-out likelihood chooses: more components would only follow the sample."""
    x = torch.randn(300, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert fitted(x)[1]["components"] == [1]
    assert fitted(x[:60])[1]["components"] == [1]  # too few to divide


@pytest.fixture(scope="module")
def model():
    return make_model(n_layers=2)


@pytest.fixture(scope="module")
def batches():
    return [build_graph(frame, ELEMENTS, R_MAX, torch.float64) for frame in training_frames(60)]


def test_in_the_artifact(model, batches, tmp_path):
    """As in Python; rotated, in parts; 1 at the quantile, infinite where nothing is known."""
    export_model(model, tmp_path / "x.race.pt", training_set=batches, grade="gmm")
    runtime = race._race.load(str(tmp_path / "x.race.pt"))
    metadata, _ = read_metadata(tmp_path / "x.race.pt")
    assert metadata["grade"]["kind"] == "gmm"
    deployed, _ = fold(model, torch.float64)
    deployed.prepare()
    z, species = last_features(deployed, batches)
    found = MixtureGrade()
    assert mixture.fit(found, z, species, 2) == metadata["grade"]
    frame = triclinic((2, 2, 1))
    frame.rattle(0.1, seed=77)
    new = last_features(deployed, [graph_of(frame)])
    got = torch.from_numpy(grades(runtime, frame))
    torch.testing.assert_close(got, found(*new), rtol=1e-8, atol=0)
    parts = runtime.predict(*folded(graph_of(frame)), uncertainty=True, n_parts=4)["grade"]
    assert difference(parts, got) < 1e-10
    seen = np.concatenate([grades(runtime, atoms) for atoms in training_frames(60)])
    assert np.quantile(seen, QUANTILE) == pytest.approx(1.0, abs=0.05)
    squeezed = triclinic((2, 2, 1))
    squeezed.set_cell(squeezed.cell * 0.85, scale_atoms=True)
    assert grades(runtime, squeezed).min() > 1.5
    turned = frame.copy()
    turned.rotate(40, (1, 2, 3), rotate_cell=True)
    assert difference(torch.from_numpy(grades(runtime, turned)), got) < 1e-8


def test_an_element_that_was_not_there(model, batches, tmp_path):
    frame = triclinic((2, 2, 1))
    frame.symbols[:] = "B"
    batch = build_graph(frame, ELEMENTS, R_MAX, torch.float64)
    export_model(model, tmp_path / "x.race.pt", training_set=[batch], grade="gmm", dtype="float32")
    found = grades(race._race.load(str(tmp_path / "x.race.pt")), triclinic((2, 2, 1)))
    nitrogen = triclinic((2, 2, 1)).symbols == "N"
    assert np.isinf(found[nitrogen]).all() and np.isfinite(found[~nitrogen]).all()
