"""The block of invariants on a few structures, and what its checks must not let pass."""

from dataclasses import replace

import numpy as np
import pytest

from . import invariants


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return invariants.predictors(tmp_path_factory.mktemp("invariants"))


def test_all_hold(models):
    tally = invariants.run(models, n_structures=12)
    assert tally.tried == 60 and tally.good == 60, tally.trouble


@pytest.fixture
def asked(models):
    head, predictor = models[0]
    rng = np.random.default_rng(3)
    atoms = invariants.random_structure(rng)
    members = predictor.members(atoms)
    return invariants.Asked(head, predictor, atoms, members, predictor.moments(members), rng)


def test_planted_errors_are_found(asked, monkeypatch):
    forces = asked.moments.forces

    def with_forces(**changes):
        return replace(asked, moments=replace(asked.moments, forces=replace(forces, **changes)))

    lifted = forces.aleatoric + 1e-8 * np.eye(3)
    assert "eigenvalue" in invariants.positive(with_forces(aleatoric=-lifted))
    skew = forces.aleatoric + 1e-8 * np.triu(np.ones((3, 3)), 1)
    assert "not symmetric" in invariants.positive(with_forces(aleatoric=skew))
    assert "spread of the members" in invariants.total(with_forces(epistemic=lifted))
    assert "covariance differs" in invariants.rotation(with_forces(aleatoric=lifted))
    assert "covariance differs" in invariants.permutation(with_forces(aleatoric=lifted))
    energy = replace(asked.moments.energy, aleatoric=1.001 * asked.moments.energy.aleatoric)
    wrong = replace(asked, moments=replace(asked.moments, energy=energy))
    assert "variance of the energy" in invariants.total(wrong)

    cut = invariants.domains_of

    def moved(*arguments):
        parts, owned = cut(*arguments)
        parts[0][1].mul_(1 + 1e-8)  # edge vectors of one domain
        return parts, owned

    monkeypatch.setattr(invariants, "domains_of", moved)
    assert "domains differs" in invariants.domains(asked)
