"""The algebra of uncertainty: against loops, determinants and draws, and against its compiled
twin.
"""

import numpy as np
import pytest
import race._race
import torch

from race.deploy.export import export_model
from race.predict.artifact import ArtifactPredictor
from race.predict.moments import (
    bald,
    log_determinant,
    mahalanobis,
    spread_of_independent,
    total_variance,
)

from ..deploy.conftest import make_model, triclinic


def covariances(rng: np.random.Generator, *shape: int) -> np.ndarray:
    root = rng.normal(size=(*shape, 3, 3))
    return 0.01 * (root @ np.swapaxes(root, -1, -2) + 0.1 * np.eye(3))


def bald_energy(energy: np.ndarray, var: np.ndarray) -> np.ndarray:
    energy, var = torch.from_numpy(energy), torch.from_numpy(var)
    return bald(total_variance(energy, var.mean(1)).total, var.log().mean(1)).numpy()


def bald_forces(forces, cov, epistemic=None) -> np.ndarray:
    forces, cov = torch.from_numpy(forces), torch.from_numpy(cov)
    own = None if epistemic is None else torch.from_numpy(epistemic).mean(1)
    total = total_variance(forces, cov.mean(1), own).total
    return bald(total, log_determinant(cov).mean(1)).numpy()


def test_law_of_total_variance_is_that_of_the_mixture():
    """Against the moments of draws from the equal mixture of Gaussian members."""
    rng = np.random.default_rng(0)
    mean = rng.standard_normal((1, 4, 3))
    root = rng.standard_normal((1, 4, 3, 3))
    cov = root @ np.swapaxes(root, -1, -2)
    estimate = total_variance(torch.from_numpy(mean), torch.from_numpy(cov).mean(1))
    draws = np.concatenate(
        [rng.multivariate_normal(mean[0, m], cov[0, m], 100000) for m in range(4)]
    )
    np.testing.assert_allclose(estimate.mean[0], draws.mean(0), atol=0.03)
    np.testing.assert_allclose(estimate.total[0], np.cov(draws.T), atol=0.1)
    # 1/M, not 1/(M - 1)
    np.testing.assert_allclose(estimate.epistemic[0], np.cov(mean[0].T, bias=True), atol=1e-12)
    scalar = total_variance(torch.from_numpy(mean[..., 0]))
    np.testing.assert_allclose(scalar.epistemic, mean[..., 0].var(axis=1))
    assert (scalar.aleatoric == 0).all()


@pytest.mark.parametrize("n_members", [2, 3, 8])
def test_the_spread_of_independent_members_is_the_error_of_their_mean(n_members):
    """Truth and members are draws from one distribution, its width another for each row: by the
    factor the error is neither under- nor overstated. 1/M falls short by 67 % for two members.
    """
    rng = np.random.default_rng(n_members)
    width = rng.uniform(0.5, 2, size=(200_000, 1))
    members, truth = (
        width * rng.normal(size=(200_000, n_members)),
        width * rng.normal(size=(200_000, 1)),
    )
    moments = total_variance(torch.from_numpy(members), spread=spread_of_independent(n_members))
    error = truth[:, 0] - moments.mean.numpy()
    assert np.mean(error**2) == pytest.approx(moments.epistemic.mean().item(), rel=0.01)
    vectors = torch.from_numpy(members.reshape(-1, n_members, 1) * np.ones(3))
    of_vectors = total_variance(vectors, spread=spread_of_independent(n_members)).epistemic
    np.testing.assert_allclose(of_vectors[:, 1, 2], moments.epistemic, rtol=1e-12)


def test_one_member_has_no_spread():
    assert spread_of_independent(1) == 1.0


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
    tiny = 1e-120 * torch.eye(3, dtype=torch.float64)
    assert log_determinant(tiny).item() == pytest.approx(3 * np.log(1e-120), rel=1e-12)
    mixed = torch.stack([torch.eye(3), -torch.eye(3), torch.full((3, 3), torch.nan)])
    assert log_determinant(mixed).isnan().tolist() == [False, True, True]


def test_mahalanobis_by_inverse():
    rng = np.random.default_rng(3)
    error, cov = rng.normal(size=(7, 3)), covariances(rng, 7)
    q, logdet = mahalanobis(torch.from_numpy(error), torch.from_numpy(cov))
    want = np.einsum("na,nab,nb->n", error, np.linalg.inv(cov), error)
    np.testing.assert_allclose(q, want, rtol=1e-10)
    np.testing.assert_allclose(logdet, np.linalg.slogdet(cov)[1], rtol=1e-10)


# By name and per_atom: the same quantity from Prediction and Members, without the compiled
# algebra.
SIX = (slice(None), [0, 1, 2, 0, 0, 1], [0, 1, 2, 1, 2, 2])


def twin(predictor, atoms) -> dict[tuple[str, bool], np.ndarray]:
    members = predictor.members(atoms)
    moments = predictor.moments(members)
    forces, energy, volume = moments.forces, moments.energy, atoms.get_volume()
    virial = moments.stress.total[0] * volume**2
    out = {
        ("force/std", True): np.sqrt(np.trace(forces.total, axis1=1, axis2=2) / 3),
        ("force/cov", True): forces.total[SIX],
        ("force/aleatoric", True): forces.aleatoric[SIX],
        ("force/epistemic", True): forces.epistemic[SIX],
        ("interval", True): forces.std,
        ("max/force/std", False): np.sqrt(np.trace(forces.total, axis1=1, axis2=2).max() / 3),
        ("energy/std", False): energy.std,
        ("energy/interval", False): energy.std,
        ("energy/members", False): members.energy.numpy(),
        ("stress/std", False): np.sqrt(np.diagonal(virial)),
        ("stress/interval", False): np.sqrt(np.diagonal(virial)),
        ("pressure/std", False): np.sqrt(virial[:3, :3].sum()) / 3,
    }
    if moments.energy_bald is not None:
        out["energy/bald", False] = moments.energy_bald
    if moments.forces_bald is not None:
        out["bald", True] = moments.forces_bald
        out["bald", False] = moments.forces_bald.mean()
        out["max/bald", False] = moments.forces_bald.max()
    return out


@pytest.mark.parametrize(
    "head, n_members, stress_head, spread",
    [
        ("point", 3, "none", (1.4, 2.0)),
        ("energy", 3, "none", (1.0, 1.0)),
        ("cholesky", 2, "none", (3**0.5, 3**0.5)),
        ("equivariant", 3, "equivariant", (1.4, 2.0)),
        ("equivariant", 1, "none", (1.0, 1.0)),
        ("evidential", 1, "none", (1.0, 1.0)),
        ("evidential", 3, "none", (1.4, 2.0)),
        ("eip", 1, "none", (1.0, 1.0)),
        ("eip", 2, "equivariant", (1.4, 2.0)),
    ],
)
def test_equals_the_compiled_twin(head, n_members, stress_head, spread, tmp_path):
    """Every row of the table of quantities that the model can give, by both."""
    model = make_model(head=head, n_members=n_members, stress_head=stress_head)
    export_model(model.scale_spread(*spread), tmp_path / "x.race.pt")
    predictor, atoms = ArtifactPredictor(tmp_path / "x.race.pt"), triclinic()
    mine, compiled = twin(predictor, atoms), predictor.model.quantities(*predictor.graph(atoms))
    rows = [(row["name"], row["per_atom"]) for row in race._race.quantities() if row["in_lammps"]]
    given = {row for row in rows if "interval" in row[0] or not predictor.model.missing(*row)} - {
        ("energy/std", True)
    }  # of atoms: the runtime's alone
    assert given <= set(mine)
    for row in given:
        want = np.asarray(compiled[row])
        scale = max(np.abs(want).max(), 1e-12)
        np.testing.assert_allclose(
            np.ravel(mine[row]), want.ravel(), rtol=0, atol=1e-9 * scale, err_msg=str(row)
        )
