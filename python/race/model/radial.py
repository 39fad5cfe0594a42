"""Radial weights R(x), x = r / r_max: an MLP of the Bessel features, evaluated for every edge or interpolated from knots.

R depends on the distance alone, so with `radial_knots` > 0 the MLP and its derivative are evaluated at that many knots and
every edge interpolates (quintic Hermite, inside the convolution: twice continuously differentiable). It is what is trained and
what is deployed: forces are the spline's own derivative.
"""

import math

import torch
from torch import Tensor, nn

from race.model.fused import HAS_FUSED


def bessel_basis(x: Tensor, n_radial: int, p: float) -> tuple[Tensor, Tensor]:
    """e_n(x) = sqrt(2) sin(n pi x) / x u(x) and d/dx, n = 1..n_radial, u the polynomial envelope of order p.

    x [..., 1] in units of r_max -> two [..., n_radial]. Zero from x = 1 on; finite at x = 0.
    """
    u = 1.0 - (p + 1.0) * (p + 2.0) / 2.0 * x**p + p * (p + 2.0) * x ** (p + 1.0) - p * (p + 1.0) / 2.0 * x ** (p + 2.0)
    du = -p * (p + 1.0) * (p + 2.0) / 2.0 * x ** (p - 1.0) * (1.0 - x) ** 2
    inside = (x < 1.0).to(x.dtype)
    u, du = u * inside, du * inside
    frequencies = math.pi * torch.arange(1, n_radial + 1, dtype=x.dtype, device=x.device)
    safe = torch.clamp(x, min=1e-6)
    root2 = math.sqrt(2.0)
    bessel = torch.where(x > 1e-6, root2 * torch.sin(frequencies * safe) / safe, root2 * frequencies)
    slope = torch.where(x > 1e-6, (root2 * frequencies * torch.cos(frequencies * safe) - bessel) / safe, torch.zeros_like(bessel))
    return bessel * u, slope * u + bessel * du


def bessel_curvature(x: Tensor, n_radial: int, p: float) -> Tensor:
    """d2/dx2 of `bessel_basis`: x [..., 1] -> [..., n_radial]"""
    c = p * (p + 1.0) * (p + 2.0) / 2.0
    u, du, ddu = (1.0 - (p + 1.0) * (p + 2.0) / 2.0 * x**p + p * (p + 2.0) * x ** (p + 1.0) - p * (p + 1.0) / 2.0 * x ** (p + 2.0),
                  -c * x ** (p - 1.0) * (1.0 - x) ** 2, -c * x ** (p - 2.0) * (1.0 - x) * (p - 1.0 - (p + 1.0) * x))  # fmt: skip
    k = math.pi * torch.arange(1, n_radial + 1, dtype=x.dtype, device=x.device)
    root2, near = math.sqrt(2.0), x < 1e-6
    safe = torch.clamp(x, min=1e-6)
    b = torch.where(near, root2 * k, root2 * torch.sin(k * safe) / safe)  # b'' = -k^2 b - 2 b'/x
    db = torch.where(near, torch.zeros_like(b), (root2 * k * torch.cos(k * safe) - b) / safe)
    ddb = torch.where(near, -root2 / 3.0 * k**3, -(k**2) * b - 2.0 * db / safe)
    return (ddb * u + 2.0 * db * du + b * ddu) * (x < 1.0).to(x.dtype)


def silu(x: Tensor) -> Tensor:
    """SiLU scaled so that E[silu(z)^2] = 1 for z ~ N(0, 1), as e3nn's normalize2mom."""
    return torch.nn.functional.silu(x) * 1.6790


def silu_derivatives(x: Tensor) -> tuple[Tensor, Tensor]:
    """First and second derivative of `silu`."""
    s = torch.sigmoid(x)
    c = s * (1.0 - s)
    return 1.6790 * (s + x * c), 1.6790 * c * (2.0 + x * (1.0 - 2.0 * s))


class Radial(nn.Module):
    """R(x) = MLP(e(x)): 8 -> 64 -> 64 -> K, SiLU, no bias, last layer linear; one set of weights per member."""

    __constants__ = ["n_knots", "fused"]
    knots: Tensor

    def __init__(self, widths: list[int], n_members: int, n_knots: int, envelope_p: int):
        super().__init__()
        self.weights = nn.ParameterList([torch.randn(n_members, a, b) for a, b in zip(widths[:-1], widths[1:], strict=True)])
        self.n_hidden = len(widths) - 2
        self.n_knots = n_knots
        self.fused = HAS_FUSED
        x = torch.linspace(0.0, 1.0, max(n_knots, 2), dtype=torch.float64).unsqueeze(1)
        value, slope = bessel_basis(x, widths[0], float(envelope_p))
        knots = torch.stack([value, slope, bessel_curvature(x, widths[0], float(envelope_p))])  # [3, N, B]
        self.register_buffer("knots", knots.to(torch.get_default_dtype()), persistent=False)

    def forward(self, radial: Tensor) -> tuple[Tensor, Tensor | None]:
        """What the convolution takes as (radial, table): x [E, G] and knots [M, N, 3, K], or R [M, E, K] and None.

        radial [E, G, 1] = x with knots, else Bessel features [E, G, B].
        """
        if self.n_knots == 0:
            return self.mlp(radial.transpose(0, 1)), None  # [G, E, B]; G = 1 broadcasts over members
        return radial.squeeze(2), self.table()

    def mlp(self, x: Tensor) -> Tensor:
        for k, weight in enumerate(self.weights):
            x = torch.matmul(x, weight * weight.shape[1] ** -0.5)
            if k < self.n_hidden:
                x = silu(x)
        return x

    def mlp_vjp(self, x: Tensor, bar: Tensor) -> Tensor:
        """Adjoint of the Bessel features x [G, E, B], from that of R, [M, E, K]: [M, E, B]."""
        kept: list[Tensor] = []  # hidden values before the activation
        for k, weight in enumerate(self.weights):
            if k < self.n_hidden:
                kept.append(torch.matmul(x, weight * weight.shape[1] ** -0.5))
                x = silu(kept[k])
        for k, weight in enumerate(self.transposed()):
            if k > 0:
                bar = bar * silu_derivatives(kept[self.n_hidden - k])[0]
            bar = torch.matmul(bar, weight)
        return bar

    def transposed(self) -> list[Tensor]:
        """Normalised matrices, transposed, the last first."""
        matrices: list[Tensor] = []
        for weight in self.weights:
            matrices.insert(0, weight.transpose(1, 2) * weight.shape[1] ** -0.5)
        return matrices

    def table(self) -> Tensor:
        """R, R' and R'' at the knots, [M, N, 3, K]: the MLP and its derivatives carried forward."""
        if self.fused and self.knots.is_cpu:
            matrices: list[Tensor] = []
            for weight in self.weights:
                matrices.append(weight * weight.shape[1] ** -0.5)  # noqa: PERF401 (TorchScript)
            return torch.ops.race.radial_table(self.knots, matrices)
        else:
            return self.table_aten()

    def table_aten(self) -> Tensor:
        """`table` in stock torch operations."""
        n_members, n_knots = self.weights[0].shape[0], self.knots.shape[1]
        x = self.knots.view(1, 3 * n_knots, -1)
        for k, weight in enumerate(self.weights):
            x = torch.matmul(x, weight * weight.shape[1] ** -0.5)  # [M, 3 N, width]
            if k < self.n_hidden:
                value, slope, curvature = x.view(n_members, 3, n_knots, -1).unbind(1)
                first, second = silu_derivatives(value)
                x = torch.cat([silu(value), first * slope, second * slope**2 + first * curvature], 1)
        return x.view(n_members, 3, n_knots, -1).transpose(1, 2).contiguous()  # once here, or in every call of the convolution
