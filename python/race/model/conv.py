"""The convolution of RACE: gather senders, tensor product with Y, radial weights, sum
over neighbours.

    out[j, l3 m3, m, column + c] = sum_{e -> j} R[m, e, weight + c]
                                   sum_{m1 m2} cg[m1, m2, m3] g[sender_e, l1 m1, m, c] sh[e, m2]

`conv_fused` is the compiled operator race::conv, `conv_aten` its slow twin in stock torch
operations: the oracle of the tests and the body of portable artifacts. Both are
TorchScript and differentiable twice. They are two functions, so that a caller branching
on a Final attribute compiles only one. `conv_vjp_fused` and `conv_vjp_aten` are their
transposes, `conv_jvp_*` their tangents and `conv_power_*` what each edge passes on, for
artifacts, which run without autograd.

Arguments of both:
    g: [n_nodes, dim_in] features of the senders.
    radial, table: the radial weights R. Without a table radial is R [M, E, K] itself;
        with one, the coefficients [M, N, K] of quintic splines on N - 5 equal intervals
        of 0 <= x < 1, radial is x [E, G] and R the splines there, which the fused
        operator never stores. From x = 1 on R is zero.
    sh: [E, G, S] spherical harmonics, S = (lmax + 1)^2; G = 1, or G = M with equal values
        in all groups (an expand()): then the gradients with respect to x and sh are each
        member's own. The first is a constant: its gradient is zero.
    sender: int64 [E]. row_ptr: int64 [n_receivers + 1], edges are sorted by receiver.
    paths: rows of ten integers (l1, l2, l3, mul, in_offset, out_offset, out_mul,
        out_column, weight_offset, cg_offset):
        reads g[:, in_offset:] viewed [2l1+1, M, mul], writes columns out_column.. of
        out[:, out_offset:] viewed [2l3+1, M, out_mul], with weights R[:, :,
        weight_offset:] and coefficients cg[cg_offset:] [2l1+1, 2l2+1, 2l3+1].
    cg: float64, coefficients of all paths. dim_out: width of the result [n_receivers, dim_out].
"""

import torch
from torch import Tensor

from race.model.fused import HAS_FUSED
from race.model.scatter import segment_sum


def interval(x: Tensor, table: Tensor) -> tuple[Tensor, Tensor]:
    """Finds x [E, G] in table [M, N, K]: the place t [M, E] in its interval, and the
    interval's coefficients [M, E, 6, K], which are zero from x = 1 on.
    """
    n_members, n_intervals = table.shape[0], table.shape[1] - 5
    x = x.expand(-1, n_members).t()  # [M, E]
    row = torch.clamp((x.detach() * n_intervals).to(torch.long), 0, n_intervals - 1)
    member = torch.arange(n_members, device=x.device).view(-1, 1, 1)
    rows = table[member, row.unsqueeze(2) + torch.arange(6, device=x.device)]
    return x * n_intervals - row, rows * (x < 1.0).to(table.dtype).unsqueeze(2).unsqueeze(3)


def splines(t: Tensor) -> Tensor:
    """The six quintic B-splines of an interval at t of it, 0 <= t < 1: [..., 6]"""
    s = 1.0 - t
    left = [
        s**5,
        1 + s * (5 + s * (10 + s * (10 + s * (5 - 5 * s)))),
        26 + s * (50 + s * (20 + s * (-20 + s * (-20 + 10 * s)))),
    ]
    right = [
        26 + t * (50 + t * (20 + t * (-20 + t * (-20 + 10 * t)))),
        1 + t * (5 + t * (10 + t * (10 + t * (5 - 5 * t)))),
        t**5,
    ]
    return torch.stack(left + right, dim=-1) / 120.0


def spline_slopes(t: Tensor) -> Tensor:
    """Derivatives of `splines`."""
    s = 1.0 - t
    left = [
        -(s**4),
        -(1 + s * (4 + s * (6 + s * (4 - 5 * s)))),
        -(10 + s * (8 + s * (-12 + s * (-16 + 10 * s)))),
    ]
    right = [
        10 + t * (8 + t * (-12 + t * (-16 + 10 * t))),
        1 + t * (4 + t * (6 + t * (4 - 5 * t))),
        t**4,
    ]
    return torch.stack(left + right, dim=-1) / 24.0


def spline_aten(x: Tensor, table: Tensor) -> Tensor:
    """x [E, G], table [M, N, K] -> R [M, E, K]"""
    t, rows = interval(x, table)
    return (splines(t).unsqueeze(2) @ rows).squeeze(2)


def spline_slope_aten(x: Tensor, table: Tensor) -> Tensor:
    """dR/dx [M, E, K] of `spline_aten`."""
    t, rows = interval(x, table)
    return (spline_slopes(t).unsqueeze(2) @ rows).squeeze(2) * (table.shape[1] - 5)


def conv_aten(
    g: Tensor,
    radial: Tensor,
    table: Tensor | None,
    sh: Tensor,
    sender: Tensor,
    row_ptr: Tensor,
    paths: list[int],
    cg: Tensor,
    dim_out: int,
) -> Tensor:
    """See the module: stock torch operations only; [n_receivers, dim_out]."""
    radial = radial if table is None else spline_aten(radial, table)  # [M, E, K]
    n, n_edges, n_members = row_ptr.shape[0] - 1, sender.shape[0], radial.shape[0]
    parts: list[Tensor] = [g.new_zeros((n, 0))]
    columns: list[Tensor] = [torch.zeros(0, dtype=torch.long, device=g.device)]
    for p in range(0, len(paths), 10):
        d1, d2, d3 = 2 * paths[p] + 1, 2 * paths[p + 1] + 1, 2 * paths[p + 2] + 1
        mul, in_offset, out_offset, out_mul = paths[p + 3], paths[p + 4], paths[p + 5], paths[p + 6]
        column, weight_offset, cg_offset = paths[p + 7], paths[p + 8], paths[p + 9]

        x = (
            g.narrow(1, in_offset, d1 * n_members * mul)
            .index_select(0, sender)
            .view(n_edges, d1, n_members, mul)
        )
        y = sh.narrow(2, paths[p + 1] * paths[p + 1], d2)  # [E, G, d2]
        if d2 == 1:
            y = y.detach()
        coupling = cg.narrow(0, cg_offset, d1 * d2 * d3).to(g.dtype).view(d1, d2, d3)
        matrix = torch.einsum("egb,abc->egac", y, coupling).expand(n_edges, n_members, d1, d3)
        weight = radial.narrow(2, weight_offset, mul).transpose(0, 1).unsqueeze(1)  # [E, 1, M, mul]
        message = torch.einsum("emac,eamu->ecmu", matrix, x) * weight
        parts.append(segment_sum(message, row_ptr).reshape(n, d3 * n_members * mul))

        rows = torch.arange(d3 * n_members, device=g.device) * out_mul + (out_offset + column)
        columns.append((rows.unsqueeze(1) + torch.arange(mul, device=g.device)).view(-1))
    return g.new_zeros((n, dim_out)).index_add(1, torch.cat(columns), torch.cat(parts, dim=1))


def conv_vjp_aten(
    grad: Tensor,
    g: Tensor,
    radial: Tensor,
    table: Tensor | None,
    sh: Tensor,
    sender: Tensor,
    row_ptr: Tensor,
    paths: list[int],
    cg: Tensor,
    want_g: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Adjoints of (g, radial, sh) from that of `conv_aten`'s result, grad [n_receivers,
    dim_out]; stock torch operations only.

    That of g is meaningless unless wanted.
    """
    weights = radial if table is None else spline_aten(radial, table)  # [M, E, K]
    n, n_edges, n_members = row_ptr.shape[0] - 1, sender.shape[0], weights.shape[0]
    receiver = torch.repeat_interleave(torch.arange(n, device=g.device), row_ptr[1:] - row_ptr[:-1])
    dg, dweights = torch.zeros_like(g), torch.zeros_like(weights)
    dsh = torch.zeros(n_edges, n_members, sh.shape[2], dtype=g.dtype, device=g.device)
    for p in range(0, len(paths), 10):
        d1, d2, d3 = 2 * paths[p] + 1, 2 * paths[p + 1] + 1, 2 * paths[p + 2] + 1
        mul, in_offset, out_offset, out_mul = paths[p + 3], paths[p + 4], paths[p + 5], paths[p + 6]
        column, weight_offset, cg_offset = paths[p + 7], paths[p + 8], paths[p + 9]

        x = (
            g.narrow(1, in_offset, d1 * n_members * mul)
            .index_select(0, sender)
            .view(n_edges, d1, n_members, mul)
        )
        y = sh.narrow(2, paths[p + 1] * paths[p + 1], d2)
        coupling = cg.narrow(0, cg_offset, d1 * d2 * d3).to(g.dtype).view(d1, d2, d3)
        matrix = torch.einsum("egb,abc->egac", y, coupling).expand(n_edges, n_members, d1, d3)
        # [E, 1, M, mul]
        weight = weights.narrow(2, weight_offset, mul).transpose(0, 1).unsqueeze(1)
        bar = grad.narrow(1, out_offset, d3 * n_members * out_mul).view(n, d3, n_members, out_mul)
        bar = bar.narrow(3, column, mul).index_select(0, receiver)  # [E, d3, M, mul]

        along = torch.einsum("emac,ecmu->eamu", matrix, bar)  # [E, d1, M, mul]
        dg.narrow(1, in_offset, d1 * n_members * mul).index_add_(
            0, sender, (along * weight).reshape(n_edges, d1 * n_members * mul)
        )
        dweights.narrow(2, weight_offset, mul).add_((along * x).sum(1).transpose(0, 1))
        if d2 > 1:
            dmatrix = torch.einsum("eamu,ecmu->emac", x * weight, bar)
            dsh.narrow(2, paths[p + 1] * paths[p + 1], d2).add_(
                torch.einsum("emac,abc->emb", dmatrix, coupling)
            )
    if table is not None:
        dweights = (dweights * spline_slope_aten(radial, table)).sum(2).t()  # dx [E, M]
        if radial.shape[1] == 1:
            dweights = dweights.sum(1, keepdim=True)
    return dg, dweights, dsh if sh.shape[1] == n_members else dsh.sum(1, keepdim=True)


def conv_jvp_aten(
    dg: Tensor,
    dradial: Tensor,
    dsh: Tensor,
    g: Tensor,
    radial: Tensor,
    table: Tensor | None,
    sh: Tensor,
    sender: Tensor,
    row_ptr: Tensor,
    paths: list[int],
    cg: Tensor,
    dim_out: int,
) -> Tensor:
    """Tangent of `conv_aten`'s result for those of (g, radial, sh), the last zero in its
    first column: the map is linear in each.
    """
    weights, dweights = radial, dradial
    if table is not None:
        weights = spline_aten(radial, table)  # [M, E, K]
        dweights = spline_slope_aten(radial, table) * dradial.t().unsqueeze(2)
    return (
        conv_aten(dg, weights, None, sh, sender, row_ptr, paths, cg, dim_out)
        + conv_aten(g, dweights, None, sh, sender, row_ptr, paths, cg, dim_out)
        + conv_aten(g, weights, None, dsh, sender, row_ptr, paths, cg, dim_out)
    )


def conv_power_aten(
    grad: Tensor,
    dg: Tensor,
    radial: Tensor,
    table: Tensor | None,
    sh: Tensor,
    sender: Tensor,
    row_ptr: Tensor,
    paths: list[int],
    cg: Tensor,
) -> Tensor:
    """[E, dim_in]: the adjoint of the sender's features as each edge has it, times dg; its
    sum is what the edge's sender gives to its receiver per unit of time.
    """
    rows, own = dg.index_select(0, sender), torch.arange(sender.shape[0], device=dg.device)
    return rows * conv_vjp_aten(grad, rows, radial, table, sh, own, row_ptr, paths, cg, True)[0]


if HAS_FUSED and hasattr(torch.ops.race, "conv"):

    def conv_fused(
        g: Tensor,
        radial: Tensor,
        table: Tensor | None,
        sh: Tensor,
        sender: Tensor,
        row_ptr: Tensor,
        paths: list[int],
        cg: Tensor,
        dim_out: int,
    ) -> Tensor:
        """See the module: the compiled operator race::conv; [n_receivers, dim_out]."""
        return torch.ops.race.conv(g, radial, table, sh, sender, row_ptr, paths, cg, dim_out)

    def conv_vjp_fused(
        grad: Tensor,
        g: Tensor,
        radial: Tensor,
        table: Tensor | None,
        sh: Tensor,
        sender: Tensor,
        row_ptr: Tensor,
        paths: list[int],
        cg: Tensor,
        want_g: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """As `conv_vjp_aten`, by race::conv_backward."""
        result = torch.ops.race.conv_backward(
            grad, g, radial, table, sh, sender, row_ptr, paths, cg, [want_g, True, False, True]
        )
        return result[0] if want_g else g, result[1], result[3]

    def conv_jvp_fused(
        dg: Tensor,
        dradial: Tensor,
        dsh: Tensor,
        g: Tensor,
        radial: Tensor,
        table: Tensor | None,
        sh: Tensor,
        sender: Tensor,
        row_ptr: Tensor,
        paths: list[int],
        cg: Tensor,
        dim_out: int,
    ) -> Tensor:
        """As `conv_jvp_aten`, by race::conv_double_backward: the transpose of the transpose is
        the tangent.
        """
        grad = g.new_zeros((row_ptr.shape[0] - 1, dim_out))
        wanted = [True, False, False, False, False]
        return torch.ops.race.conv_double_backward(
            dg, dradial, dsh, grad, g, radial, table, sh, sender, row_ptr, paths, cg, wanted
        )[0]

    def conv_power_fused(
        grad: Tensor,
        dg: Tensor,
        radial: Tensor,
        table: Tensor | None,
        sh: Tensor,
        sender: Tensor,
        row_ptr: Tensor,
        paths: list[int],
        cg: Tensor,
    ) -> Tensor:
        """As `conv_power_aten`, by race::conv_backward."""
        rows, own = dg.index_select(0, sender), torch.arange(sender.shape[0], device=dg.device)
        wanted = [True, False, False, False]
        return (
            rows
            * torch.ops.race.conv_backward(
                grad, rows, radial, table, sh, own, row_ptr, paths, cg, wanted
            )[0]
        )

else:
    conv_fused, conv_vjp_fused = conv_aten, conv_vjp_aten
    conv_jvp_fused, conv_power_fused = conv_jvp_aten, conv_power_aten
