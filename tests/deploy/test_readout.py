"""The compiled readout of deployed models against its twin in stock torch operations."""

import pytest
import torch

from race.deploy.readout import (
    node_energy_vjp_aten,
    node_energy_vjp_fused,
    readout_aten,
    readout_fused,
    readout_vjp_aten,
    readout_vjp_fused,
)
from tests.deploy.conftest import make_model
from tests.model.operators import worst

pytest.importorskip("race._race", reason="race._race is not built: there is nothing to compare")
TOLERANCE = {torch.float64: 1e-13, torch.float32: 1e-5}
both = pytest.mark.parametrize("dtype", TOLERANCE)
sizes = pytest.mark.parametrize(  # T, R, H, n_scalars, Q
    "T, R, H, S, Q", [(1, 1, 64, 1, 0), (3, 1, 16, 2, 1), (2, 4, 33, 9, 2), (1, 40, 5, 1, 0)]
)


def operands(T, R, H, S, Q, dtype, n=9):
    """(z, tensor, weight, n_scalars) of `readout`, z columns of a wider tensor, and (bar_energy,
    weight, z) of its transpose.
    """
    generator = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    z = normal(n, T * H + 3)[:, : T * H]
    tensor, weight = normal(n, 5 * T * R * Q), normal(T, H, R * S)
    return (z, tensor, weight, S), (normal(n, R * T), normal(R, T, H), z)


@both
@sizes
def test_readout(T, R, H, S, Q, dtype):
    forward, backward = operands(T, R, H, S, Q, dtype)
    expected = [readout_aten(*forward), readout_vjp_aten(*backward)]
    found = [readout_fused(*forward), readout_vjp_fused(*backward)]
    assert worst(found, expected) < TOLERANCE[dtype]
    assert found[0].shape == (9, R * T, S + 5 * Q)


@sizes
def test_the_transpose_is_the_derivative(T, R, H, S, Q):
    """Of the members' energies, the first scalar of each, with respect to z."""
    (z, tensor, weight, _), (bar, _, _) = operands(T, R, H, S, Q, torch.float64)
    energy = weight.unflatten(2, (R, S))[..., 0].permute(2, 0, 1)
    z = z.clone().requires_grad_()
    out = readout_aten(z, tensor, weight, S)
    (expected,) = torch.autograd.grad(out[:, :, 0], z, bar)
    assert worst([readout_vjp_fused(bar, energy, z.detach())], [expected]) < 1e-13


@both
def test_energies_of_atoms(dtype):
    """Scale and shift of each species, and their transpose."""
    model = make_model(dtype)
    generator = torch.Generator().manual_seed(0)
    out = torch.randn(5, 2, 3, generator=generator).to(dtype)
    species, bar = torch.tensor([1, 0, 0, 1, 1]), torch.tensor([0.3, 0.7], dtype=torch.float64)
    found = torch.ops.race.node_energy(out, species, model.scale, model.atomic_energies)
    assert found.dtype == torch.float64
    assert torch.equal(found, model.node_energy(out, species))
    arguments = (species, model.scale, bar, out)
    assert torch.equal(node_energy_vjp_fused(*arguments), node_energy_vjp_aten(*arguments))
    assert node_energy_vjp_fused(*arguments).dtype == dtype


@pytest.mark.parametrize(
    "name, k, spoil, message",
    [
        ("readout", 0, lambda z: z[:, :-1], r"readout: z: expected Double \[9, 66\]"),
        ("readout", 1, lambda t: t[:, :-1], r"readout: tensor: expected \[n, a multiple of 40\]"),
        ("readout", 2, lambda w: w[0], "readout: weight: expected float32 or float64, three"),
        ("readout", 3, lambda S: S + 1, "readout: n_scalars: expected a divisor of 36, got 10"),
        ("readout_vjp", 0, lambda b: b[:-1], r"readout_vjp: bar_energy: expected Double \[9, 8\]"),
        ("readout_vjp", 2, lambda z: z.float(), r"readout_vjp: z: expected Double \[9, 66\]"),
    ],
)
def test_errors_name_the_argument(name, k, spoil, message):
    forward, backward = operands(2, 4, 33, 9, 2, torch.float64)
    arguments = list(forward if name == "readout" else backward)
    arguments[k] = spoil(arguments[k])
    with pytest.raises(ValueError, match="race::" + message):
        getattr(torch.ops.race, name)(*arguments)
