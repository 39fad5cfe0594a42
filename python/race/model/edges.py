"""Edge basis: Bessel functions times envelope, spherical harmonics, and their derivatives in
closed form.

Forces need dE/d(edge_vector). The network sees an edge only through its radial features
and harmonics. Autograd therefore stops there, and `edges_vjp` contracts the adjoints with
derivatives in closed form. All members share these, and second-order autograd (training on
forces) never differentiates the basis.

Distances and harmonics are the compiled operators race::edge_basis and
race::edge_basis_vjp, which never store the derivatives. Their slow twin in stock torch
operations is the oracle of the tests, the body of portable artifacts, and what runs with
Bessel features.
"""

import torch
from e3nn import o3
from torch import Tensor, nn

from race.model.fused import HAS_FUSED
from race.model.radial import bessel_basis


def monomials(lmax: int) -> list[tuple[int, int, int]]:
    """Exponents of x, y, z for all degrees <= lmax, by degree."""
    return [
        (a, b, n - a - b)
        for n in range(lmax + 1)
        for a in range(n, -1, -1)
        for b in range(n - a, -1, -1)
    ]


def lowered(exponents: tuple[int, int, int], axis: int) -> tuple[int, int, int]:
    """The monomial divided by one component."""
    a, b, c = (e - (axis == i) for i, e in enumerate(exponents))
    return a, b, c


class EdgeBasis(nn.Module):
    """Radial and angular functions of edge vectors (paper eq. 13).

    The radial part is x = r / r_max where the radial weights are `tabulated` (B = 1),
    else the Bessel functions of x.
    """

    # Branches on them are decided when the artifact is compiled
    __constants__ = [
        "fused",
        "tabulated",
    ]
    sh_coefficients: Tensor
    sh_gradient: Tensor
    sh_degree: Tensor

    def __init__(self, r_max: float, n_radial: int, envelope_p: int, lmax: int, tabulated: bool):
        super().__init__()
        self.r_max = float(r_max)
        self.p = float(envelope_p)
        self.lmax = lmax
        self.n_radial = n_radial
        self.tabulated = tabulated
        self.fused = HAS_FUSED

        # Harmonics of degree l are homogeneous polynomials on the unit sphere: Y =
        # monomials @ sh_coefficients. e3nn is the single source of the convention; its
        # values are fitted.
        powers = monomials(lmax)
        points = torch.nn.functional.normalize(
            torch.randn(200, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)),
            dim=1,
        )
        values = o3.spherical_harmonics(
            list(range(lmax + 1)), points, normalize=False, normalization="component"
        )
        table = torch.stack(
            [points[:, 0] ** a * points[:, 1] ** b * points[:, 2] ** c for a, b, c in powers], dim=1
        )
        coefficients = torch.zeros(len(powers), (lmax + 1) ** 2, dtype=torch.float64)
        for degree in range(lmax + 1):
            rows = [k for k, exps in enumerate(powers) if sum(exps) == degree]
            columns = slice(degree**2, (degree + 1) ** 2)
            coefficients[rows, columns] = torch.linalg.lstsq(
                table[:, rows], values[:, columns]
            ).solution
        # Up to l = 3 sixteen times their squares are integers: rounding makes every
        # construction the same to the last bit.
        coefficients = coefficients.sign() * torch.sqrt(torch.round(16.0 * coefficients**2) / 16.0)

        lower = monomials(max(lmax - 1, 0))
        gradient = torch.zeros(len(lower), coefficients.shape[1], 3, dtype=torch.float64)
        for k, exps in enumerate(powers):
            for axis in range(3):
                if exps[axis] > 0:
                    reduced = lowered(exps, axis)
                    gradient[lower.index(reduced), :, axis] += exps[axis] * coefficients[k]
        degrees = torch.cat(
            [torch.full((2 * degree + 1,), float(degree)) for degree in range(lmax + 1)]
        )
        # In float64 whatever the model's dtype: a float32 artifact that runs in float64
        # has exact harmonics, as race::edge_basis has.
        self.register_buffer("sh_coefficients", coefficients, persistent=False)
        self.register_buffer("sh_gradient", gradient.flatten(1), persistent=False)
        self.register_buffer("sh_degree", degrees.to(torch.float64), persistent=False)
        # Each monomial is an earlier one times one component: (index of that one, axis).
        self.recipe = []
        for exps in powers[1:]:
            axis = next(i for i in range(3) if exps[i] > 0)
            self.recipe.append((powers.index(lowered(exps, axis)), axis))
        self.n_lower = len(lower)

    def forward(self, edge_vector: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """edge_vector [E, 3] -> radial [E, B], sh [E, S], radial_grad [E, B] (d/dr), sh_grad
        [E, S, 3] (d/d edge_vector).

        The last two are for `vjp` alone, and empty, [E, 0], where it has no need of them.
        """
        if self.fused and self.tabulated:
            x, sh = torch.ops.race.edge_basis(edge_vector, self.lmax, self.r_max)
            empty = edge_vector.new_empty((edge_vector.shape[0], 0))
            return x, sh, empty, empty
        return self.forward_aten(edge_vector)

    def forward_aten(self, edge_vector: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """`forward` in stock torch operations."""
        r = torch.linalg.vector_norm(edge_vector, dim=1, keepdim=True)  # [E, 1]
        unit = edge_vector / r

        x = r / self.r_max
        if self.tabulated:
            radial, radial_grad = x, torch.full_like(x, 1.0 / self.r_max)
        else:
            radial, slope = bessel_basis(x, self.n_radial, self.p)
            radial_grad = slope / self.r_max

        terms = [torch.ones_like(r)]  # monomials of the unit vector, built degree by degree
        for parent, axis in self.recipe:
            terms.append(terms[parent] * unit[:, axis : axis + 1])
        mono = torch.cat(terms, dim=1)
        sh = mono @ self.sh_coefficients.to(r.dtype)  # [E, S]
        grad = (mono[:, : self.n_lower] @ self.sh_gradient.to(r.dtype)).view(
            r.shape[0], sh.shape[1], 3
        )
        # project on the sphere: d/d(edge_vector) Y(n) = (grad - l Y n) / r, since grad .
        # n = l Y for degree l
        sh_grad = (
            grad - (self.sh_degree.to(r.dtype) * sh).unsqueeze(2) * unit.unsqueeze(1)
        ) / r.unsqueeze(2)
        return radial, sh, radial_grad, sh_grad

    def jvp(self, edge_vector: Tensor, rate: Tensor) -> tuple[Tensor, Tensor]:
        """d/dt of radial [E, B] and sh [E, S], from that of edge_vector, rate [E, 3]."""
        _, _, radial_grad, sh_grad = self.forward_aten(edge_vector)
        unit = edge_vector / torch.linalg.vector_norm(edge_vector, dim=1, keepdim=True)
        along = (unit * rate).sum(1, keepdim=True)
        return radial_grad * along, torch.bmm(sh_grad, rate.unsqueeze(2)).squeeze(2)

    def vjp(
        self,
        edge_vector: Tensor,
        radial_grad: Tensor,
        sh_grad: Tensor,
        bar_radial: Tensor,
        bar_sh: Tensor,
    ) -> Tensor:
        """Adjoints [E, G, B] and [E, G, S] -> dE/d(edge_vector) [E, G, 3]; the gradients as
        `forward` returned them.
        """
        if self.fused and self.tabulated:
            return torch.ops.race.edge_basis_vjp(
                edge_vector, self.lmax, self.r_max, bar_radial, bar_sh
            )
        unit = edge_vector / torch.linalg.vector_norm(edge_vector, dim=1, keepdim=True)
        along = (bar_radial * radial_grad.unsqueeze(1)).sum(2, keepdim=True)  # [E, G, 1]
        return along * unit.unsqueeze(1) + torch.bmm(bar_sh, sh_grad)
