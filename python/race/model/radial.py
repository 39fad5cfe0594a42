"""Radial weights R(x), x = r / r_max: an MLP of the Bessel features, evaluated for every
edge or interpolated from knots.

R depends on the distance alone, so with `radial_knots` > 0 the MLP is evaluated at that
many knots only, and R is the quintic spline through them (four times continuously
differentiable; evaluated inside the convolution). The spline is trained and deployed: forces
are its own derivative.
"""

import math
from functools import lru_cache

import torch
from torch import Tensor, nn

from race.model.fused import HAS_FUSED


def bessel_basis(x: Tensor, n_radial: int, p: float) -> tuple[Tensor, Tensor]:
    """e_n(x) = sqrt(2) sin(n pi x) / x u(x) and d/dx, n = 1..n_radial, u the polynomial
    envelope of order p.

    x [..., 1] in units of r_max -> two [..., n_radial]. Zero from x = 1 on; finite at x = 0.
    """
    u = (
        1.0
        - (p + 1.0) * (p + 2.0) / 2.0 * x**p
        + p * (p + 2.0) * x ** (p + 1.0)
        - p * (p + 1.0) / 2.0 * x ** (p + 2.0)
    )
    du = -p * (p + 1.0) * (p + 2.0) / 2.0 * x ** (p - 1.0) * (1.0 - x) ** 2
    inside = (x < 1.0).to(x.dtype)
    u, du = u * inside, du * inside
    frequencies = math.pi * torch.arange(1, n_radial + 1, dtype=x.dtype, device=x.device)
    safe = torch.clamp(x, min=1e-6)
    root2 = math.sqrt(2.0)
    bessel = torch.where(
        x > 1e-6, root2 * torch.sin(frequencies * safe) / safe, root2 * frequencies
    )
    slope = torch.where(
        x > 1e-6,
        (root2 * frequencies * torch.cos(frequencies * safe) - bessel) / safe,
        torch.zeros_like(bessel),
    )
    return bessel * u, slope * u + bessel * du


def spline_conditions(n_knots: int) -> Tensor:
    """The matrix from the coefficients of a quintic spline to its conditions, float64 [N,
    N], N = n_knots + 4.

    The conditions are the values at the knots x_n = n / (n_knots - 1), slope and third
    derivative at x = 0, slope and curvature at x = 1, in units of the knots' distance.
    """
    conditions = torch.zeros(n_knots + 4, n_knots + 4, dtype=torch.float64)
    for n in range(n_knots):
        conditions[n, n : n + 5] = (
            torch.tensor([1.0, 26.0, 66.0, 26.0, 1.0], dtype=torch.float64) / 120.0
        )
    slope = torch.tensor([-1.0, -10.0, 0.0, 10.0, 1.0], dtype=torch.float64)
    conditions[n_knots, :5] = slope
    conditions[n_knots + 1, :5] = torch.tensor([-1.0, 2.0, 0.0, -2.0, 1.0], dtype=torch.float64)
    conditions[n_knots + 2, n_knots - 1 :] = slope
    conditions[n_knots + 3, n_knots - 1 :] = torch.tensor(
        [1.0, 2.0, -6.0, 2.0, 1.0], dtype=torch.float64
    )
    return conditions


def spline_matrix(n_knots: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Values at all knots but the last -> coefficients: [n_knots + 4, n_knots - 1]"""
    return torch.linalg.inv(spline_conditions(n_knots))[:, : n_knots - 1].to(dtype).to(device)


cached_spline_matrix = lru_cache(maxsize=8)(spline_matrix)


def spline_through(values: Tensor) -> Tensor:
    """Values at the knots [M, n_knots, W] -> coefficients [M, n_knots + 4, W] of the quintic
    spline through them.

    Value, slope and curvature vanish at x = 1; the last value given is not read. Slope
    and third derivative vanish at x = 0, because Bessel functions are even there. The
    compiled race::spline solves the same conditions, on the CPU in one sweep, because
    they are banded.
    """
    n_knots = values.shape[1]
    if torch.jit.is_scripting():  # type: ignore[attr-defined]
        matrix = spline_matrix(n_knots, values.dtype, values.device)
    else:
        matrix = cached_spline_matrix(n_knots, values.dtype, values.device)
    return torch.matmul(matrix, values[:, : n_knots - 1])


SILU_NORM = (
    1.6790  # (SILU_NORM silu(z))^2 is one on average for z ~ N(0, 1), as e3nn's normalize2mom
)


def silu_slope(x: Tensor) -> Tensor:
    """Derivative of SiLU."""
    s = torch.sigmoid(x)
    return s + x * s * (1.0 - s)


def bessel_scale(n_basis: int, decay: float) -> Tensor:
    """n^-decay for n = 1 .. n_basis, times what leaves the sum of squares as it is; float64."""
    scale = torch.arange(1, n_basis + 1, dtype=torch.float64) ** -decay
    return scale * (n_basis / (scale * scale).sum()) ** 0.5


class Radial(nn.Module):
    """R(x) = MLP(s d e(x)) / s: 8 -> 64 -> 64 -> K, SiLU, no bias, last layer linear; one set of
    weights per member.

    bessel_decay: d is the `bessel_scale` of the basis functions. Training then learns smooth R
    first.
    radial_scale: s. At a bond e is about 5, where SiLU has bends within a tenth of an Angstrom.
    With a small s the MLP is nearly linear. Both keep R smooth between and beyond the distances
    that the data holds.
    """

    __constants__ = ["n_knots", "fused"]
    knots: Tensor
    basis_scale: Tensor

    def __init__(
        self,
        widths: list[int],
        n_members: int,
        n_knots: int,
        envelope_p: int,
        bessel_decay: float = 0.0,
        radial_scale: float = 1.0,
    ):
        super().__init__()
        self.weights = nn.ParameterList(
            [torch.randn(n_members, a, b) for a, b in zip(widths[:-1], widths[1:], strict=True)]
        )
        # Factors of the matrices
        self.norms = [a**-0.5 * (SILU_NORM if k > 0 else 1.0) for k, a in enumerate(widths[:-1])]
        self.norms[-1] /= radial_scale
        scale = bessel_scale(widths[0], bessel_decay) * radial_scale
        self.register_buffer(
            "basis_scale", scale.unsqueeze(1).to(torch.get_default_dtype()), persistent=False
        )
        self.n_hidden = len(widths) - 2
        self.n_knots = n_knots
        self.fused = HAS_FUSED
        x = torch.linspace(0.0, 1.0, max(n_knots, 2), dtype=torch.float64).unsqueeze(1)
        self.register_buffer(
            "knots",
            (scale * bessel_basis(x, widths[0], float(envelope_p))[0]).to(
                torch.get_default_dtype()
            ),
            persistent=False,
        )

    def forward(self, radial: Tensor) -> tuple[Tensor, Tensor | None]:
        """The convolution's arguments (radial, table): x [E, G] and coefficients [M, N,
        K], or R [M, E, K] and None.

        radial [E, G, 1] = x with knots, else Bessel features [E, G, B].
        """
        if self.n_knots == 0:
            return self.mlp(
                radial.transpose(0, 1)
            ), None  # [G, E, B]; G = 1 broadcasts over members
        return radial.squeeze(2), self.table()

    def mlp(self, x: Tensor) -> Tensor:
        """The MLP itself: basis functions [E, n] -> weights R."""
        for k, matrix in enumerate(self.matrices()):
            x = torch.matmul(x, matrix)
            if k < self.n_hidden:
                x = torch.nn.functional.silu(x)
        return x

    def matrices(self) -> list[Tensor]:
        """The layers' matrices [M, a, b], normalised, for basis functions that are not scaled."""
        out: list[Tensor] = []
        for k, weight in enumerate(self.weights):
            matrix = weight * self.norms[k]
            out.append(matrix * self.basis_scale if k == 0 else matrix)
        return out

    def mlp_vjp(self, x: Tensor, bar: Tensor) -> Tensor:
        """Adjoint of the Bessel features x [G, E, B], from that of R, [M, E, K]: [M, E, B]."""
        kept: list[Tensor] = []  # hidden values before the activation
        matrices = self.matrices()
        for k, matrix in enumerate(matrices):
            if k < self.n_hidden:
                kept.append(torch.matmul(x, matrix))
                x = torch.nn.functional.silu(kept[k])
        for k in range(self.n_hidden, -1, -1):
            if k < self.n_hidden:
                bar = bar * silu_slope(kept[k])
            bar = torch.matmul(bar, matrices[k].transpose(1, 2))
        return bar

    def mlp_jvp(self, x: Tensor, dx: Tensor) -> Tensor:
        """Tangent of R [M, E, K], from that of the Bessel features x [G, E, B]."""
        for k, matrix in enumerate(self.matrices()):
            x, dx = torch.matmul(x, matrix), torch.matmul(dx, matrix)
            if k < self.n_hidden:
                x, dx = torch.nn.functional.silu(x), silu_slope(x) * dx
        return dx

    def table(self) -> Tensor:
        """Coefficients of R [M, N, K], N = n_knots + 4."""
        x = self.knots.unsqueeze(0)  # scaled, once for all steps
        for k, weight in enumerate(self.weights):
            if (
                k == self.n_hidden
                # The last layer is linear: taken after the spline, which then is as narrow as
                # the hidden one
            ):
                if self.fused:
                    x = torch.ops.race.spline(x)
                else:
                    x = spline_through(x)
            x = torch.matmul(x, weight * self.norms[k])
            if k < self.n_hidden:
                x = torch.nn.functional.silu(x)
        return x
