"""Labels that some frames or atoms lack: the loss, the metrics and a whole training against
the slow way, which asks each labelled row alone.
"""

from dataclasses import replace

import ase.io
import pytest
import torch

from race.config import DataConfig, ModelConfig, ModelConstants, RunConfig, TrainConfig
from race.data import Dataset
from race.data.weights import WEIGHT
from race.train.loss import Loss
from race.train.members import initial_model
from race.train.metrics import Metrics, total_forces_cov
from race.train.parallel import Ranks
from race.train.prepare import prepare
from tests.data.test_plausibility import copper

from .conftest import make_config


def problem(kind, head):
    model = ModelConfig(
        r_max=4.0,
        irreps_hidden="4x0e+4x1o+4x2e",
        n_features=4,
        radial_mlp=[8],
        readout_hidden=4,
        n_members=2,
        head=head,
    )
    constants = ModelConstants(
        elements=["Cu"],
        avg_num_neighbors=18.0,
        atomic_energies=[0.0],
        scale=[1.0],
        sigma0=0.1,
        sigma0_energy=0.02,
    )
    config = RunConfig(
        data=DataConfig(train=["x.xyz"]),
        model=model,
        train=TrainConfig(loss=kind, stress_weight=0.5),
        constants=constants,
    )
    network = initial_model(model, constants, 0, torch.float64)
    return config, network, Loss(config, network.force_covariance)


CASES = [("mse", "point"), ("nll_e", "energy"), ("nll_jef", "equivariant")]
CASES += [("nll_jef", "cholesky"), ("evidential", "evidential"), ("eip", "eip")]


def holed(frames):
    """Frame 0 without energy, frame 1 without forces, frame 2 without stress and two forces."""
    del frames[0].info["energy"], frames[1].arrays["forces"], frames[2].info["stress"]
    frames[2].arrays["forces"][[1, 5]] = float("nan")
    return frames


@pytest.mark.parametrize(("kind", "head"), CASES)
def test_loss_is_the_mean_over_labelled_rows(kind, head):
    _, model, loss = problem(kind, head)
    full = Dataset(copper(4), ["Cu"], 4.0, torch.float64).batch(range(4))
    part = Dataset(holed(copper(4)), ["Cu"], 4.0, torch.float64).batch(range(4))
    out = model(full, forces=True, create_graph=True)
    everything, rows = loss.rows(out, full), loss.rows(out, part)
    keep = {
        "energy": torch.tensor([False, True, True, True]),
        "forces": torch.ones(32, dtype=torch.bool),
        "stress": torch.tensor([True, True, False, True]),
    }
    keep["forces"][8:16] = False
    keep["forces"][[17, 21]] = False
    for term, kept in keep.items():
        torch.testing.assert_close(rows[term], everything[term][kept], rtol=1e-12, atol=1e-12)
    terms = loss(out, part)
    for term, kept in keep.items():
        torch.testing.assert_close(terms[term], everything[term][kept].mean(0))
    terms["loss"].sum().backward()
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    assert grads and all(torch.isfinite(grad).all() for grad in grads)


@pytest.mark.parametrize("missing", ["energy", "forces", "stress"])
def test_a_batch_without_one_kind_of_label(missing):
    _, model, loss = problem("nll_jef", "equivariant")
    batch = Dataset(copper(2), ["Cu"], 4.0, torch.float64).batch(range(2))
    out = model(batch, forces=True, create_graph=True)
    terms = loss(out, replace(batch, **{missing: None}))
    assert (terms[missing] == 0).all()
    terms["loss"].sum().backward()
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    assert all(torch.isfinite(grad).all() for grad in grads)


@pytest.mark.parametrize(("kind", "head"), CASES)
def test_metrics_leave_out_what_has_no_label(kind, head):
    config, model, _ = problem(kind, head)
    part = Dataset(holed(copper(4)), ["Cu"], 4.0, torch.float64).batch(range(4))
    out = model(part, forces=True).detach()
    metrics = Metrics(config.model, config.constants)
    metrics.update(part, out, total_forces_cov(model, out.raw))
    result = metrics.result(Ranks())
    frames = [1, 2, 3]
    error = (out.energy[frames] - part.energy[frames, None]) / 8
    torch.testing.assert_close(
        result["energy_rmse"][:2], 1e3 * error.pow(2).mean(0).sqrt(), rtol=1e-10, atol=0
    )
    atoms = torch.isfinite(part.forces).all(1)
    error = out.forces[atoms] - part.forces[atoms].unsqueeze(1)
    torch.testing.assert_close(
        result["forces_rmse"][:2], 1e3 * error.pow(2).mean((0, 2)).sqrt(), rtol=1e-10, atol=0
    )
    assert atoms.sum() == 22


def test_a_key_that_no_frame_has_is_said(tmp_path, caplog):
    frames = copper(12)
    for atoms in frames:
        atoms.info |= {"w8": 2.0, "stress": atoms.info["stress"][[0, 1, 2, 5, 4, 3]]}
    ase.io.write(tmp_path / "a.xyz", frames)

    def said(**keys):
        caplog.clear()
        prepare(make_config(tmp_path / "a.xyz", **keys))
        return [record.message for record in caplog.records if "is not used" in record.message]

    assert said(weight_key="w9", stress_key="strs") == [
        "data.stress_key is not used: no frame has strs",
        "data.weight_key is not used: no frame has w9",
    ]
    assert not said(weight_key="w8", stress_key="stress", energy_key="energy")
    assert not said() and not said(weight_key=WEIGHT)
