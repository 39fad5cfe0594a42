"""The factors on noise and spread: against the likelihood written out, on errors that are drawn,
and after a training.
"""

import json

import ase.io
import numpy as np
import pytest
import scoringrules
import torch
from scipy.linalg import eigh

from race.config import FITTED_FACTORS
from race.data import Dataset
from race.model.race import RACE
from race.posterior.ensemble import fit as stack
from race.posterior.fit import fit
from race.posterior.protocol import Run
from race.predict.moments import spread_of_independent, total_variance
from race.predict.predictor import predict_dataset
from race.train import noise
from race.train.noise import LARGEST, PRIOR_ERRORS, fit_noise, width_factors
from race.train.run import load_run
from race.train.training import continue_config, train

from .conftest import make_config

RNG = np.random.RandomState(0)


@pytest.fixture(scope="module", autouse=True)
def few_frames_will_do():
    """The validation sets here are small."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(noise, "MIN_ENERGIES", 2)
        yield


def covariances(n: int, d: int, scale: float) -> np.ndarray:
    root = RNG.standard_normal((n, d, d))
    return scale * (root @ root.swapaxes(1, 2) / d + 0.3 * np.eye(d))


def drawn(cov: np.ndarray) -> np.ndarray:
    return (np.linalg.cholesky(cov) @ RNG.standard_normal((*cov.shape[:2], 1)))[..., 0]


def score_written_out(
    error: np.ndarray, aleatoric: np.ndarray | None, epistemic: np.ndarray, a: float, b: float
) -> float:
    """What the factors minimise, row by row with another package's CRPS."""
    rows = []
    for k, e in enumerate(error):
        if aleatoric is None:
            unit = np.trace(epistemic, axis1=1, axis2=2).mean() / error.shape[1]
            rows += [
                (x / np.sqrt(unit), 0.0, w / unit)
                for x, w in zip(e, np.diag(epistemic[k]), strict=True)
            ]
        else:
            # axes^T noise axes = 1, axes^T spread axes diagonal
            spread, axes = eigh(epistemic[k], aleatoric[k])
            rows += [(x, 1.0, w) for x, w in zip(axes.T @ e, spread, strict=True)]
    errors, noise, spread = np.array(rows).T
    std = np.sqrt(a**2 * noise + b**2 * spread)
    x, weight = np.polynomial.hermite_e.hermegauss(80)

    def expected(factor: float) -> float:
        return float(weight @ scoringrules.crps_normal(x, 0.0, factor) / weight.sum())

    score = float(scoringrules.crps_normal(errors, 0.0, std).sum())
    score += PRIOR_ERRORS * np.sqrt(spread.mean()) * expected(b)
    return score + (PRIOR_ERRORS * expected(a) if aleatoric is not None else 0.0)


@pytest.mark.parametrize("d", [1, 3])
@pytest.mark.parametrize("noisy", [True, False])
def test_factors_are_the_minimum_of_the_score_written_out(d, noisy):
    aleatoric, epistemic = covariances(60, d, 1.0), covariances(60, d, 0.5)
    epistemic *= RNG.uniform(0, 4, (60, 1, 1))
    error = drawn(0.5 * noisy * aleatoric + 4.0 * epistemic)
    noise = aleatoric if noisy else None
    found = width_factors(error, noise, epistemic)
    if noisy:
        assert found.noise != 1
    else:
        assert found.noise == 1
    assert found.spread > 1.2  # within its bound, so that it is a minimum
    best = score_written_out(error, noise, epistemic, *found)
    for a in (0.98, 1, 1.02) if noisy else (1,):
        for b in (0.98, 1, 1.02):
            if (a, b) != (1, 1):
                other = (a * found.noise, b * found.spread)
                assert score_written_out(error, noise, epistemic, *other) > best


@pytest.mark.parametrize("a, b", [(0.7, 1.0), (1.5, 1.0), (0.7, 1.8), (2.0, 3.0)])
def test_factors_are_found_again_from_errors_that_are_drawn(a, b):
    """20,000 vectors, whose spread is from none to four times the noise."""
    aleatoric = covariances(20000, 3, 1.0)
    epistemic = covariances(20000, 3, 1.0) * RNG.uniform(0, 2, (20000, 1, 1)) ** 2
    found = width_factors(drawn(a**2 * aleatoric + b**2 * epistemic), aleatoric, epistemic)
    assert found == pytest.approx((a, b), rel=0.02)


def test_the_spread_of_gaussian_members_is_found():
    """Truth and thirty members are draws from one distribution, another for each row, and the
    label has noise: the spread wants what training starts from, and no more; of members that
    share half of their variance, 1.71 times that.

    The spread of M members scatters by sqrt(2 / M) from row to row, and the truth does not:
    the noise takes a part of the few-member spread, and is found too wide.
    """
    n, M = 20000, 30
    width, noise = RNG.uniform(0.5, 3, (n, 1, 1)), 0.8
    shared, own = RNG.standard_normal((2, n, 1, 1)), RNG.standard_normal((n, M + 1, 1))
    for common, wanted in ((0.0, 1.0), (1.0, ((3 + 1 / M) / (1 + 1 / M)) ** 0.5)):
        members = width * (own[:, :M] + common * shared[0])
        truth = width * (own[:, M:] + common * shared[1])
        label = truth[:, 0] + noise * RNG.standard_normal((n, 1))
        spread = total_variance(torch.from_numpy(members), spread=spread_of_independent(M))
        found = width_factors(label - members.mean(1), np.ones((n, 1, 1)), spread.epistemic.numpy())
        assert found.spread == pytest.approx(wanted, rel=0.05) and found.spread >= 1
        assert found.noise == pytest.approx(noise, rel=0.3)


def test_a_spread_is_never_narrowed():
    aleatoric, epistemic = covariances(5000, 3, 1.0), covariances(5000, 3, 2.0)
    epistemic *= RNG.uniform(0, 2, (5000, 1, 1))
    found = width_factors(drawn(aleatoric + 0.2 * epistemic), aleatoric, epistemic)
    assert found.spread == 1
    assert width_factors(drawn(0.2 * epistemic), None, epistemic) == (1, 1)


def test_a_spread_of_rank_one_and_none_at_all_do_as_well():
    aleatoric = covariances(5000, 3, 1.0)
    direction = RNG.standard_normal((5000, 3, 1))
    for epistemic in (0.1 * direction @ direction.swapaxes(1, 2), np.zeros((5000, 3, 3))):
        error = drawn(4.0 * aleatoric + epistemic)
        assert width_factors(error, aleatoric, epistemic).noise == pytest.approx(2.0, rel=0.03)
        assert width_factors(error, None, epistemic).noise == 1


def test_members_that_are_each_calibrated_are_not_together():
    """Each member errs by its own unit noise; their mean by less, and law of total
    variance says more.

    The spread of 20 members scatters by 16 % from row to row, and the error does not:
    what is found is some 5 % wider than it should be.
    """
    members = 0.6 * RNG.standard_normal((20000, 20, 1))
    label = 0.8 * RNG.standard_normal((20000, 1))
    assert np.mean((label[:, None] - members) ** 2) == pytest.approx(1.0, rel=0.02)
    spread = members.var(1)[..., None]
    factors = width_factors(label - members.mean(1), np.ones((20000, 1, 1)), spread)
    assert factors.spread == pytest.approx(1.0, abs=0.05)
    total = factors.noise**2 + factors.spread**2 * spread.mean()
    assert total == pytest.approx(0.64 + 0.36 / 20, rel=0.1)
    assert 1 + spread.mean() > 1.8 * total


def test_few_frames_change_little():
    """One error of ten deviations among one frame, against among two hundred."""

    def factor(errors: np.ndarray) -> float:
        one = np.ones((len(errors), 1, 1))
        return width_factors(errors, one, 0 * one).noise

    few, many = factor(np.full((1, 1), 10.0)), factor(np.full((200, 1), 10.0))
    assert few < 4 < 10 < many < 13  # 12 is best where all are 10: phi(10 / c) = 1 / sqrt(4 pi)
    assert factor(np.zeros((200, 1))) >= np.exp(-LARGEST)


def test_a_few_large_errors_do_not_decide():
    """Against the root mean square, which one error of 100 among 1000 makes 3.3."""
    error = RNG.standard_normal((1000, 1))
    error[0] = 100.0
    one = np.ones((1000, 1, 1))
    assert width_factors(error, one, 0 * one).noise < 1.1 < 3 < np.sqrt(np.mean(error**2))


def as_trained(model: RACE) -> RACE:
    """Before any factor was fitted."""
    constants = model.constants.as_trained().with_spread(spread_of_independent(model.n_members))
    plain = RACE(model.config, constants, torch.float64)
    plain.load_state_dict(model.state_dict())
    return plain


@pytest.fixture(scope="module")
def runs(copper, tmp_path_factory):
    folder = tmp_path_factory.mktemp("noise")
    for seed in (0, 10):
        train(
            make_config(copper, model={"n_members": 2}, train={"epochs": 15, "seed": seed}),
            folder / f"run-{seed}",
        )
    return [folder / "run-0", folder / "run-10"]


def test_training_leaves_the_factors_of_its_validation_set(runs):
    model, config, summary = load_run(runs[0])
    factors = summary["noise_factors"]
    assert (config.constants.energy_noise_factor, config.constants.forces_noise_factor) == (
        factors["energy"],
        factors["forces"],
    )
    # Else this test sees nothing
    assert abs(np.log(factors["energy"])) > 0.02 and abs(np.log(factors["forces"])) > 0.02
    validation = Run.load(runs[0]).prepare().validation
    plain = as_trained(model)
    after, before = (predict_dataset(m, validation)[0] for m in (model, plain))
    for name, quantity in (("energy", "energy"), ("forces", "forces")):
        new, old = getattr(after, quantity), getattr(before, quantity)
        np.testing.assert_allclose(new.mean, old.mean, atol=1e-12)
        spread = factors[f"{name}_spread"]
        assert spread >= 1 and getattr(config.constants, f"{name}_spread_factor") == 3**0.5 * spread
        np.testing.assert_allclose(new.epistemic, spread**2 * old.epistemic, rtol=1e-10)
        np.testing.assert_allclose(new.aleatoric, factors[name] ** 2 * old.aleatoric, rtol=1e-10)
    again = fit_noise(plain, validation.batches(2))  # in other batches
    assert again == pytest.approx(factors, rel=1e-4)
    kept = model.constants.as_trained().model_dump(exclude=set(FITTED_FACTORS))
    assert plain.constants.model_dump(exclude=set(FITTED_FACTORS)) == kept
    assert plain.constants.energy_noise_factor == again["energy"]
    np.testing.assert_allclose(
        predict_dataset(plain, validation)[0].forces.total, after.forces.total, rtol=1e-3
    )


def test_further_training_starts_without_them(runs, copper):
    _, old, summary = load_run(runs[0])
    continued = continue_config(
        make_config(copper, model={"n_members": 2}, train={"epochs": 20}), old, summary, runs[0]
    )
    assert old.constants.forces_noise_factor != 1 == continued.constants.forces_noise_factor
    assert old.constants.energy_noise_factor != 1 == continued.constants.energy_noise_factor


def test_a_stack_is_judged_anew(runs, tmp_path):
    """Its members' own factors do not stand in the way, and the factors are those of the whole."""
    fit("ensemble", runs, tmp_path / "stack", {})
    model, config, summary = load_run(tmp_path / "stack")
    found = summary["posterior"]["noise_factors"]
    assert (config.constants.energy_noise_factor, config.constants.forces_noise_factor) == (
        found["energy"],
        found["forces"],
    )
    prediction, labels = predict_dataset(model, Run.load(runs[0]).prepare().validation)
    expected = width_factors(
        labels.forces - prediction.forces.mean,
        prediction.forces.aleatoric / found["forces"] ** 2,
        prediction.forces.epistemic / found["forces_spread"] ** 2,
    )
    assert (found["forces"], found["forces_spread"]) == pytest.approx(expected, rel=1e-4)
    assert config.constants.forces_spread_factor == pytest.approx(
        (5 / 3) ** 0.5 * found["forces_spread"]
    )
    parts = [load_run(path)[2]["noise_factors"]["forces"] for path in runs]
    assert all(abs(found["forces"] / part - 1) > 0.01 for part in parts)


def test_runs_of_other_divisions_are_stacked_as_they_are(runs, copper, tmp_path, caplog):
    caplog.set_level("INFO")
    other = tmp_path / "other"
    frames = Run.load(runs[0]).prepare()
    options = {
        "avg_num_neighbors": frames.config.constants.avg_num_neighbors,
        "scale": frames.config.constants.scale,
        "atomic_energies": frames.config.constants.atomic_energies,
        "sigma0": frames.config.constants.sigma0,
        "sigma0_energy": frames.config.constants.sigma0_energy,
    }
    train(
        make_config(copper, model={"n_members": 2, **options}, train={"epochs": 1}, split_seed=3),
        other,
    )
    stacked = stack(
        [Run.load(path) for path in (runs[0], other)],
        type("Options", (), {"take": None})(),
        tmp_path,
    )
    assert stacked.validation is None and stacked.model.constants.forces_noise_factor == 1
    assert "one division" in caplog.text


def test_the_frames_that_choose_the_epoch_do_not_fit_the_factors(copper, tmp_path):
    train(make_config(copper, validation_fraction=0.5, train={"epochs": 3}), tmp_path / "run")
    run = Run.load(tmp_path / "run")
    prepared, all_labels = run.prepare(), set()
    for part in (prepared.validation, prepared.calibration):
        labels = {atoms.info["energy"] for atoms in part.frames}
        assert len(part) == len(labels) == 3 and not labels & all_labels
        all_labels |= labels
    factors = []
    for part in (prepared.calibration, prepared.validation):
        factors.append(fit_noise(as_trained(run.model), part.batches(3)))
    assert run.summary["noise_factors"] == pytest.approx(factors[0], rel=1e-6)
    assert factors[0]["forces"] != pytest.approx(factors[1]["forces"], rel=1e-3)


def test_a_factor_is_not_fitted_to_few_energies(runs, copper, monkeypatch, caplog):
    caplog.set_level("INFO")
    monkeypatch.setattr(noise, "MIN_ENERGIES", 100)
    model, config, _ = load_run(runs[0])
    before = model.constants
    frames = ase.io.read(copper, index=":6")
    dataset = Dataset(frames, config.constants.elements, config.model.r_max, torch.float64)
    factors = fit_noise(model, dataset.batches(6))
    assert set(factors) == {"forces", "forces_spread"}
    assert model.constants.energy_noise_factor == before.energy_noise_factor
    assert model.constants.energy_spread_factor == before.energy_spread_factor
    assert "6 validation frames, and a factor is fitted to 100 or more" in caplog.text


def test_frames_without_a_label_are_left_out(runs, copper):
    """NaN in an energy and in a force, as files with labels for some frames give them."""
    model, config, _ = load_run(runs[0])
    frames = ase.io.read(copper, index=":6")
    dataset = Dataset(frames, config.constants.elements, config.model.r_max, torch.float64)
    (batch,) = dataset.batches(6)
    whole = fit_noise(load_run(runs[0])[0], [batch])
    batch.energy[2] = torch.nan
    batch.forces[5] = torch.nan
    partial = fit_noise(model, [batch])
    assert np.isfinite(list(partial.values())).all() and partial != whole


def test_members_without_noise_have_a_spread_to_fit(copper, tmp_path):
    options = {"model": {"head": "point", "n_members": 2}, "train": {"epochs": 2, "loss": "mse"}}
    train(make_config(copper, **options), tmp_path / "run")
    model, config, summary = load_run(tmp_path / "run")
    factors = summary["noise_factors"]
    assert set(factors) == {"energy_spread", "forces_spread"} and min(factors.values()) >= 1
    assert config.constants.forces_spread_factor == 3**0.5 * factors["forces_spread"]


@pytest.mark.parametrize("head", ["point", "evidential", "eip"])
def test_heads_that_have_no_such_noise_are_left_alone(copper, tmp_path, head):
    loss = {"point": "mse"}.get(head, head)
    train(
        make_config(copper, model={"head": head}, train={"epochs": 1, "loss": loss}),
        tmp_path / "run",
    )
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["noise_factors"] == {}
    constants = load_run(tmp_path / "run")[1].constants
    assert constants == constants.as_trained()
