"""A training step and an artifact on the GPU, against the CPU."""

import numpy as np
import pytest
import race._race
import torch

import race
from race.deploy.export import export_model
from race.heads import HEADS
from tests.deploy.conftest import graph_of, make_model, triclinic
from tests.deploy.test_step import periodic

from .conftest import DEVICE

TOLERANCE = {"float64": 1e-9, "float32": 5e-4}  # eV, eV/A and (eV/A)^2


def assert_close(found, expected, dtype, label):
    """Within the tolerance, relative to the largest value if that is above 1."""
    allowed = TOLERANCE[dtype] * max(1.0, float(np.abs(expected).max()))
    np.testing.assert_allclose(found, expected, rtol=0, atol=allowed, err_msg=label)


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_gradients_of_a_loss_on_forces(dtype):
    gradients = []
    for device in ("cpu", DEVICE):
        model = make_model(getattr(torch, dtype)).to(device)
        graph = graph_of(triclinic(), getattr(torch, dtype)).to(device)
        result = model(graph, create_graph=True)
        loss = result.forces.square().mean() + result.node_energy.square().mean()
        loss.backward()
        gradients.append(
            {name: p.grad.cpu() for name, p in model.named_parameters() if p.grad is not None}
        )
    cpu, gpu = gradients
    assert cpu.keys() == gpu.keys() and len(cpu) > 5
    for name, expected in cpu.items():
        scale = float(expected.abs().max().clamp_min(1e-3))
        assert (
            float((gpu[name] - expected).abs().max()) / scale
            < {"float64": 1e-9, "float32": 2e-3}[dtype]
        ), name


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("head", HEADS)
def test_calculator(head, dtype, tmp_path):
    path = tmp_path / "bn.race.pt"
    export_model(make_model(head=head), path)

    def results(device, dtype):
        calculator = race.Calculator(path, device=device, dtype=dtype, uncertainty=True)
        calculator.calculate(triclinic())
        return calculator.results

    expected, found = results("cpu", "float64"), results(DEVICE, dtype)
    assert expected.keys() == found.keys()
    assert np.abs(expected["forces"]).max() > 0.1
    for name, values in expected.items():
        assert_close(found[name], values, dtype, name)


@pytest.mark.parametrize("members", [1, 2])
def test_recorded_steps(members, tmp_path, monkeypatch):
    """A CUDA graph gives what its launches give, at each step anew; that of a second topology,
    in turn with it, has its memory in common with the first.
    """
    export_model(make_model(n_members=members, head="cholesky"), tmp_path / "bn.race.pt")
    model = race._race.load(str(tmp_path / "bn.race.pt"), device=DEVICE)
    *graph, owner = (t.to(DEVICE) for t in periodic(triclinic()))
    species, vector, sender, row_ptr = graph
    asked = dict(members=members > 1, uncertainty=True, on_device=True)

    def steps(n):
        topologies = [race._race.Topology(model, species, sender, row_ptr) for _ in range(2)]
        for step in range(n):
            shift = 0.01 * torch.sin(step + torch.arange(vector.numel(), device=DEVICE))
            for topology in topologies:
                yield model.predict(topology, vector + shift.view_as(vector), owner, **asked)

    monkeypatch.setenv("RACE_CUDA_GRAPH", "0")
    expected = list(steps(6))
    monkeypatch.setenv("RACE_CUDA_GRAPH", "1")
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile:
        found = list(steps(6))
    if DEVICE == "cuda":
        names = [event.name for event in profile.events()]
        assert names.count("cudaGraphLaunch") == 10
    for a, b in zip(found, expected, strict=True):
        for name, values in b.items():
            assert_close(a[name].cpu(), values.cpu().numpy(), "float32", name)
