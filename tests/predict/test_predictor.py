"""What predictions of a model must satisfy whatever its weights."""

from dataclasses import fields, replace

import ase.build
import numpy as np
import pytest
import torch
from ase.calculators.calculator import PropertyNotImplementedError

from race.config import ModelConfig
from race.data import Dataset
from race.deploy.calculator import Calculator
from race.deploy.export import export_model
from race.errors import RaceError
from race.heads import HEADS
from race.model.heads import evidential_nu
from race.model.race import RACE
from race.predict.artifact import ArtifactPredictor
from race.predict.moments import total_variance
from race.predict.prediction import Estimate
from race.predict.predictor import ModelPredictor, predict_dataset

from ..deploy.conftest import make_model, triclinic

IDENTITY = np.eye(3)
# Determinant -1: an improper one
ROTATION = np.linalg.qr(np.array([[0.3, -0.5, 0.8], [0.9, 0.2, -0.1], [0.1, 0.7, 0.6]]))[0]


def structures(rotation: np.ndarray = IDENTITY) -> list[ase.Atoms]:
    """Three frames: a crystal with labels, one without stress, a molecule."""
    rng = np.random.default_rng(0)
    out = [
        ase.build.bulk("BN", "zincblende", a=3.6) * (2, 1, 1),
        ase.build.bulk("BN", "zincblende", a=3.7),
        ase.build.molecule("BF3"),
    ]
    out[2].numbers[:] = [5, 7, 7, 7]
    for k, atoms in enumerate(out):
        atoms.rattle(0.1, seed=k)
        atoms.info["energy"] = -8.0 * len(atoms) + k
        atoms.arrays["forces"] = rng.standard_normal((len(atoms), 3)) @ rotation.T
        atoms.set_cell(atoms.cell.array @ rotation.T, scale_atoms=False)
        atoms.positions = atoms.positions @ rotation.T
    out[0].info["stress"] = rng.standard_normal(6)
    return out


def model(head: str, n_members: int = 3, stress_head: str = "none") -> RACE:
    torch.manual_seed(0)
    irreps = "4x0e+4x1o+4x2e"
    config = ModelConfig(
        elements=["B", "N"],
        r_max=3.0,
        n_layers=2,
        irreps_hidden=irreps,
        n_features=4,
        radial_mlp=[8],
        readout_hidden=8,
        head=head,
        n_members=n_members,
        avg_num_neighbors=8.0,
        stress_head=stress_head,
    )
    built = RACE.untrained(config, torch.float64)
    with torch.no_grad():  # far from the symmetric initialisation of the heads
        for parameter in built.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return built


def dataset(frames: list[ase.Atoms]) -> Dataset:
    return Dataset(frames, ["B", "N"], 3.0, torch.float64)


@pytest.mark.parametrize("head", HEADS)
def test_shapes_and_positive_covariances(head):
    prediction, labels = predict_dataset(model(head), dataset(structures()), batch_size=2)
    for name, shape in (("energy", (3,)), ("forces", (10, 3)), ("stress", (3, 6))):
        estimate = getattr(prediction, name)
        assert estimate.mean.shape == shape and estimate.mean.dtype == np.float64
        assert estimate.total.shape == (*shape, *shape[1:]) == estimate.epistemic.shape
    assert labels.frame.tolist() == [0] * 4 + [1] * 2 + [2] * 4 and labels.n_atoms.tolist() == [
        4,
        2,
        4,
    ]
    assert labels.symbols.tolist() == ["B", "N", "B", "N", "B", "N", "B", "N", "N", "N"]
    assert np.isfinite(labels.stress).all(axis=1).tolist() == [True, False, False]
    assert (
        np.isnan(prediction.stress.mean[2]).all() and np.isfinite(prediction.stress.mean[:2]).all()
    )
    for cov in (prediction.forces.aleatoric, prediction.forces.epistemic):
        np.testing.assert_allclose(cov, np.swapaxes(cov, 1, 2), atol=1e-12)
        assert np.linalg.eigvalsh(cov).min() > -1e-12
    if HEADS[head].forces_noise:
        assert np.linalg.eigvalsh(prediction.forces.aleatoric).min() > 0
    else:
        assert not prediction.forces.aleatoric.any()
    assert (prediction.energy.aleatoric > 0).all() == (head != "point")


@pytest.mark.parametrize("head", ["point", "equivariant", "evidential"])
def test_covariances_rotate(head):
    built = model(head)
    prediction, _ = predict_dataset(built, dataset(structures()))
    turned, _ = predict_dataset(built, dataset(structures(ROTATION)))
    for part in ("aleatoric", "epistemic"):
        np.testing.assert_allclose(
            getattr(turned.energy, part), getattr(prediction.energy, part), rtol=1e-9, atol=1e-12
        )
        cov = getattr(prediction.forces, part)
        assert not np.allclose(getattr(turned.forces, part), cov, atol=1e-6) or not cov.any()
        np.testing.assert_allclose(
            getattr(turned.forces, part),
            ROTATION @ cov @ ROTATION.T,
            atol=1e-10 * max(1, abs(cov).max()),
        )
    np.testing.assert_allclose(turned.forces.mean, prediction.forces.mean @ ROTATION.T, atol=1e-10)


def test_batching_does_not_change_predictions():
    built = model("equivariant")
    one, labels_one = predict_dataset(built, dataset(structures()), batch_size=1)
    all_, labels_all = predict_dataset(built, dataset(structures()), batch_size=3)
    for name in ("energy", "forces", "stress"):
        for part in ("mean", "aleatoric", "epistemic"):
            np.testing.assert_allclose(
                getattr(getattr(one, name), part),
                getattr(getattr(all_, name), part),
                rtol=1e-10,
                atol=1e-12,
            )
    for field in fields(labels_one):
        np.testing.assert_array_equal(
            getattr(labels_one, field.name), getattr(labels_all, field.name)
        )


def test_one_member_has_no_epistemic_part_unless_evidential():
    prediction, _ = predict_dataset(model("equivariant", 1), dataset(structures()))
    assert not prediction.forces.epistemic.any() and not prediction.energy.epistemic.any()
    built = model("evidential", 1)
    prediction, _ = predict_dataset(built, dataset(structures()))
    ratio = prediction.forces.aleatoric / prediction.forces.epistemic  # kappa of each atom
    np.testing.assert_allclose(ratio, ratio[:, :1, :1] * np.ones((3, 3)), rtol=1e-6)
    assert (ratio > 0).all() and (evidential_nu(torch.zeros(10)) > 5)


def test_noise_of_the_stress(tmp_path):
    """Noise of the virial over volume^2, beside the spread of the members; and the
    artifact's moments are the model's.
    """
    noisy, data = model("equivariant", stress_head="equivariant"), dataset(structures())
    stress = predict_dataset(noisy, data)[0].stress
    plain = Estimate.of(total_variance(noisy(data.batch([0, 1])).stress))
    volume = data.batch([0, 1]).volume.numpy()
    noise = (
        noisy(data.batch([0, 1])).virial_cov.detach().numpy().mean(1) / volume[:, None, None] ** 2
    )
    np.testing.assert_allclose(stress.aleatoric[:2], noise, rtol=1e-9)
    np.testing.assert_allclose(stress.epistemic[:2], plain.epistemic, rtol=1e-6, atol=1e-15)
    # A molecule has no stress
    assert (
        np.linalg.eigvalsh(stress.aleatoric[:2]).min() > 0 and np.isnan(stress.aleatoric[2]).all()
    )
    export_model(noisy, tmp_path / "x.race.pt")
    deployed = ArtifactPredictor(tmp_path / "x.race.pt").predict(structures()[:2]).stress
    for part in ("mean", "aleatoric", "epistemic"):
        want = getattr(stress, part)[:2]
        np.testing.assert_allclose(
            getattr(deployed, part), want, rtol=0, atol=1e-9 * np.abs(want).max(), err_msg=part
        )


def test_frames_without_forces_are_judged_by_energy():
    frames = structures()
    for atoms in frames:
        del atoms.arrays["forces"]
    frames[0].info.pop("stress")
    prediction, labels = predict_dataset(model("energy"), dataset(frames))
    assert prediction.forces is None and labels.forces is None and labels.stress is None
    with_forces, _ = predict_dataset(model("energy"), dataset(structures()))
    np.testing.assert_allclose(prediction.energy.mean, with_forces.energy.mean)


def test_frames_without_energy_have_no_reference():
    frames = structures()
    del frames[1].info["energy"]
    prediction, labels = predict_dataset(model("point"), dataset(frames))
    assert np.flatnonzero(np.isnan(labels.energy)).tolist() == [1]
    assert np.isfinite(prediction.energy.mean).all()
    with pytest.raises(RaceError, match="no frames"):
        predict_dataset(model("point"), dataset([]))


def test_estimates_are_immutable():
    estimate = Estimate(np.ones(2), np.zeros(2), np.zeros(2))
    assert replace(estimate, mean=estimate.mean + 1).mean.tolist() == [
        2,
        2,
    ] and estimate.mean.tolist() == [1, 1]


@pytest.mark.parametrize("head, n_members", [("point", 3), ("energy", 2), ("equivariant", 1)])
def test_a_mean_over_atoms_is_deployed(head, n_members, tmp_path):
    """An intensive target: run, artifact and compiled moments agree, and there are no forces."""
    model = make_model(pooling="mean", head=head, n_members=n_members).scale_spread(1.4, 1.0)
    export_model(model, tmp_path / "x.race.pt")
    frames = [triclinic((1, 1, 1)), triclinic((2, 2, 1))]
    plain, deployed = ModelPredictor(model), ArtifactPredictor(tmp_path / "x.race.pt")
    mine, its = plain.predict(frames), deployed.predict(frames)
    assert mine.forces is its.forces is its.stress is None and deployed.intensive
    for name in ("mean", "aleatoric", "epistemic"):
        np.testing.assert_allclose(
            getattr(its.energy, name), getattr(mine.energy, name), rtol=1e-9, atol=1e-12
        )
    assert abs(mine.energy.mean).max() < 5  # of an atom, whose E0 is -3 or 2 eV
    for k, atoms in enumerate(frames):
        compiled = deployed.model.quantities(*deployed.graph(atoms))
        std = compiled["energy/std", False]
        np.testing.assert_allclose(std, mine.energy.std[k], rtol=1e-9, atol=1e-12)
        calculator = Calculator(tmp_path / "x.race.pt")
        assert calculator.get_property("energy", atoms) == pytest.approx(mine.energy.mean[k])
        with pytest.raises(PropertyNotImplementedError):
            calculator.get_property("forces", atoms)
    alike = plain.predict([atoms.repeat((2, 1, 1)) for atoms in frames])
    np.testing.assert_allclose(alike.energy.mean, mine.energy.mean, rtol=1e-9)
