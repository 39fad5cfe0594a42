"""The equivariant gate between layers, which makes h_t a nonlinear function of the features
before it.

    h[0e]     = c_silu silu(u[0e])
    h[l m, c] = c_sigmoid sigmoid(gates[k(c)]) u[l m, c]          every other irrep

Each channel of an irrep other than 0e has a scalar of its own, as in Weiler et al. (NeurIPS
2018) and NequIP. The constants keep second moments (e3nn's normalize2mom). The gate acts on
each atom by itself: it needs no exchange between domains.

`gate_fused` is the compiled operator race::gate, `gate_aten` its slow twin in stock torch
operations: the oracle of the tests and the body of portable artifacts. Both are TorchScript
and differentiable twice. `gate_vjp_*` and `gate_jvp_*` are the transpose and the tangent,
for artifacts, which run without autograd.

Arguments:
    u: [n, dim] in the layout of conventions.py.
    gates: [n, M * K], viewed [n, M, K]. K is the sum of multiplicities of the gated irreps,
        in the order of u.
    blocks: rows of four integers (d, mul, offset, gate). A block is u[:, offset:] viewed
        [d, M, mul], with gates[:, :, gate:]; gate -1 is the block of scalars.
"""

import torch
from e3nn import o3
from torch import Tensor

from race.model.fused import HAS_FUSED
from race.model.irreps import Layout
from race.model.radial import SILU_NORM

SIGMOID_NORM = 1.8462  # (SIGMOID_NORM sigmoid(z))^2 is one on average for z ~ N(0, 1)
# A default argument, since TorchScript does not see constants of a module
NORMS = (SILU_NORM, SIGMOID_NORM)


def gate_blocks(irreps: o3.Irreps, n_members: int) -> tuple[list[int], int]:
    """The rows of `blocks`, and K."""
    rows: list[int] = []
    n_gates = 0
    for block in Layout(irreps, n_members).blocks:
        is_scalar = block.ir == o3.Irrep("0e")
        rows += [block.ir.dim, block.mul, block.offset, -1 if is_scalar else n_gates]
        n_gates += 0 if is_scalar else block.mul
    return rows, n_gates


def gate_aten(
    u: Tensor,
    gates: Tensor,
    blocks: list[int],
    n_members: int,
    norms: tuple[float, float] = NORMS,
) -> Tensor:
    """See the module; [n, dim]."""
    n, width = u.shape[0], gates.shape[1] // n_members
    open_ = norms[1] * torch.sigmoid(gates).view(n, 1, n_members, width)
    parts: list[Tensor] = []
    for k in range(0, len(blocks), 4):
        d, mul, offset, first = blocks[k], blocks[k + 1], blocks[k + 2], blocks[k + 3]
        x = u.narrow(1, offset, d * n_members * mul)
        if first < 0:
            parts.append(norms[0] * torch.nn.functional.silu(x))
        else:
            gated = x.view(n, d, n_members, mul) * open_.narrow(3, first, mul)
            parts.append(gated.reshape(n, d * n_members * mul))
    return torch.cat(parts, dim=1)


def gate_jvp_aten(
    du: Tensor,
    dgates: Tensor,
    u: Tensor,
    gates: Tensor,
    blocks: list[int],
    n_members: int,
    norms: tuple[float, float] = NORMS,
) -> Tensor:
    """Tangent of `gate_aten`'s result from those of (u, gates)."""
    n, width = u.shape[0], gates.shape[1] // n_members
    s = torch.sigmoid(gates).view(n, 1, n_members, width)
    opening = norms[1] * s * (1.0 - s) * dgates.view(n, 1, n_members, width)
    parts: list[Tensor] = []
    for k in range(0, len(blocks), 4):
        d, mul, offset, first = blocks[k], blocks[k + 1], blocks[k + 2], blocks[k + 3]
        x = u.narrow(1, offset, d * n_members * mul)
        dx = du.narrow(1, offset, d * n_members * mul)
        if first < 0:
            parts.append(norms[0] * torch.ops.aten.silu_backward(dx, x))
        else:
            moved = dx.view(n, d, n_members, mul) * (norms[1] * s.narrow(3, first, mul))
            opened = x.view(n, d, n_members, mul) * opening.narrow(3, first, mul)
            parts.append((moved + opened).reshape(n, d * n_members * mul))
    return torch.cat(parts, dim=1)


def gate_vjp_aten(
    bar: Tensor,
    u: Tensor,
    gates: Tensor,
    blocks: list[int],
    n_members: int,
    norms: tuple[float, float] = NORMS,
) -> tuple[Tensor, Tensor]:
    """Adjoints of (u, gates) from that of `gate_aten`'s result."""
    n, width = u.shape[0], gates.shape[1] // n_members
    s = torch.sigmoid(gates).view(n, 1, n_members, width)
    slope = norms[1] * s * (1.0 - s)
    parts: list[Tensor] = []
    bar_gates = torch.zeros_like(s)
    for k in range(0, len(blocks), 4):
        d, mul, offset, first = blocks[k], blocks[k + 1], blocks[k + 2], blocks[k + 3]
        x = u.narrow(1, offset, d * n_members * mul)
        b = bar.narrow(1, offset, d * n_members * mul)
        if first < 0:
            parts.append(norms[0] * torch.ops.aten.silu_backward(b, x))
        else:
            b = b.reshape(n, d, n_members, mul)
            parts.append((norms[1] * b * s.narrow(3, first, mul)).flatten(1))
            along = (b * x.view(n, d, n_members, mul)).sum(1, keepdim=True)
            bar_gates.narrow(3, first, mul).copy_(along * slope.narrow(3, first, mul))
    return torch.cat(parts, dim=1), bar_gates.view(n, n_members * width)


if HAS_FUSED and hasattr(torch.ops.race, "gate"):

    def gate_fused(
        u: Tensor,
        gates: Tensor,
        blocks: list[int],
        n_members: int,
        norms: tuple[float, float] = NORMS,
    ) -> Tensor:
        """See the module: the compiled operator race::gate; [n, dim]."""
        return torch.ops.race.gate(u, gates, blocks, n_members, norms[0], norms[1])

    def gate_jvp_fused(
        du: Tensor,
        dgates: Tensor,
        u: Tensor,
        gates: Tensor,
        blocks: list[int],
        n_members: int,
        norms: tuple[float, float] = NORMS,
    ) -> Tensor:
        """As `gate_jvp_aten`, by race::gate_double_backward: the transpose of the transpose is
        the tangent.
        """
        return torch.ops.race.gate_double_backward(
            du, dgates, u, u, gates, blocks, n_members, norms[0], norms[1]
        )[0]

    def gate_vjp_fused(
        bar: Tensor,
        u: Tensor,
        gates: Tensor,
        blocks: list[int],
        n_members: int,
        norms: tuple[float, float] = NORMS,
    ) -> tuple[Tensor, Tensor]:
        """As `gate_vjp_aten`, by race::gate_backward."""
        return torch.ops.race.gate_backward(bar, u, gates, blocks, n_members, norms[0], norms[1])

else:
    gate_fused, gate_jvp_fused, gate_vjp_fused = gate_aten, gate_jvp_aten, gate_vjp_aten
