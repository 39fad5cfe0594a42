"""A training step, an artifact and LAMMPS on the GPU, against the CPU."""

import numpy as np
import pytest
import torch

import race
from race.deploy.export import export_model
from race.heads import HEADS
from tests.deploy.conftest import graph_of, make_model, triclinic
from tests.lammps.conftest import ELEMENTS, small_model
from tests.lammps.systems import b2o3, boron_nitride, slab, tiny

TOLERANCE = {"float64": 1e-9, "float32": 5e-4}  # eV, eV/A and (eV/A)^2


def assert_close(found, expected, dtype, label):
    """Within the tolerance, relative to the largest value if that is above 1."""
    allowed = TOLERANCE[dtype] * max(1.0, float(np.abs(expected).max()))
    np.testing.assert_allclose(found, expected, rtol=0, atol=allowed, err_msg=label)


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_gradients_of_a_loss_on_forces(dtype):
    gradients = []
    for device in ("cpu", "cuda"):
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
    found = {}
    for device in ("cpu", "cuda"):
        calculator = race.Calculator(
            path, device=device, dtype="float64" if device == "cpu" else dtype, uncertainty=True
        )
        calculator.calculate(triclinic())
        found[device] = calculator.results
    assert found["cpu"].keys() == found["cuda"].keys()
    assert np.abs(found["cpu"]["forces"]).max() > 0.1
    for name, expected in found["cpu"].items():
        assert_close(found["cuda"][name], expected, dtype, name)


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_lammps(dtype, lammps_run):
    export_model(small_model(), lammps_run.folder / "model.race.pt")
    systems = {"b2o3": b2o3(), "bn": boron_nitride(), "tiny": tiny(), "slab": slab()}
    expected = lammps_run.single_points(systems, "model.race.pt dtype float64", ELEMENTS)
    found = lammps_run.single_points(systems, f"model.race.pt device cuda dtype {dtype}", ELEMENTS)
    for name in systems:
        assert np.abs(expected[name].forces).max() > 0.5
        for field in (
            "energy",
            "forces",
            "virial",
            "atom_energy",
            "atom_virial",
            "centroid_virial",
        ):
            assert_close(
                getattr(found[name], field),
                getattr(expected[name], field),
                dtype,
                f"{name} {field}",
            )
        for field, values in expected[name].columns.items():
            assert_close(found[name].columns[field], values, dtype, f"{name} {field}")


def test_two_lammps_ranks_on_one_gpu(lammps_run):
    """Ghost features through the host: the exchange that several ranks use."""
    export_model(small_model(), lammps_run.folder / "model.race.pt")
    one = lammps_run.single_point(b2o3(), "model.race.pt device cuda dtype float64", ELEMENTS)
    two = lammps_run.single_point(
        b2o3(), "model.race.pt device cuda dtype float64", ELEMENTS, ranks=2, grid="2 1 1"
    )
    np.testing.assert_allclose(two.forces, one.forces, rtol=0, atol=1e-9)
