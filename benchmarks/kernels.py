"""Time of each operator and of its stock-torch twin: forward, with first, with second
derivatives.

    python benchmarks/kernels.py [--only conv linear] [--dtype float64] [--threads 1]

    conv     race::conv, us per edge, radial weights from a table
    linear   race::linear, us per atom
    product  race::product, us per atom
    edges    race::edge_basis, us per edge: values, and adjoints contracted to gradients
    scatter  torch-scatter against index_add, us per call: where the widest row that
             race.model.scatter gives to torch-scatter comes from

First derivatives are those of inference (energy, then adjoints), second derivatives those
of a training step on forces. Medians; the clock is that of `timer.py`.
"""

import argparse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from e3nn import o3
from timer import seconds_per_call

from race.model.conv import conv_aten, conv_fused
from race.model.edges import EdgeBasis
from race.model.irreps import Layout, conv_paths
from race.model.linear import block_linear, linear_aten, linear_fused, weight_shapes
from race.model.product import product_aten, product_fused, product_paths
from race.model.scatter import HAS_SCATTER, sum_by_index, sum_by_scatter

Steps = Sequence[Callable[[], object]]
CONV = {  # hidden irreps, lmax, members
    "64x0e+64x1o, lmax 1": ("64x0e+64x1o", 1, 1),
    "32x0e+32x1o+32x2e, lmax 2, M 4": ("32x0e+32x1o+32x2e", 2, 4),
    "64x(0..3, both parities), lmax 3": ("64x0e+64x0o+64x1o+64x1e+64x2e+64x2o+64x3o+64x3e", 3, 1),
}
LINEAR = {  # irreps in, irreps out, members, species, atoms
    "W_eff 64x0e+64x1o, 4 species": ("128x0e+192x1o", "64x0e+64x1o", 1, 4, 135),
    "W_eff 64x0e+64x1o, 2 species": ("128x0e+192x1o", "64x0e+64x1o", 1, 2, 530),
    "W_up 64x0e+64x1o": ("64x0e+64x1o", "64x0e+64x1o", 1, 1, 135),
    "W_skip 32x(0e+1o+2e), M 4, 4 species": ("32x0e+32x1o+32x2e", "32x0e+32x1o+32x2e", 4, 4, 135),
    "readout 64x0e -> 1": ("64x0e", "1x0e", 1, 1, 135),
}
PRODUCT = {  # irreps, channels of each, members, correlation, species, atoms
    "64x(0e+1o+2e), nu 3": ("0e+1o+2e", 64, 1, 3, 2, 135),
    "64x(0e+1o+2e), nu 2": ("0e+1o+2e", 64, 1, 2, 2, 135),
    "32x(0..2, both parities), nu 3, M 4": ("0e+0o+1e+1o+2e+2o", 32, 4, 3, 2, 135),
}
SCATTER = {"530 receivers x 12": (530, 12), "135 x 17": (135, 17), "512 x 28": (512, 28)}
WIDTHS = (1, 3, 6, 9, 12, 16, 24, 32, 64)
N_ATOMS, N_NEIGHBORS, N_ROWS = 64, 26, 388
ORDERS = ("forward", "+first", "+second")


@dataclass(frozen=True)
class Case:
    """What is timed: steps of the fused operator and of its twin, by name of the column;
    unit: divides the time.
    """

    name: str
    columns: tuple[str, ...]
    unit: int
    fused: Steps
    twin: Steps


def conv_operands(
    irreps_in: str, lmax: int, n_members: int, dtype: torch.dtype, n_atoms: int = N_ATOMS
):
    """Random operands: ([g, x, table, sh], remaining arguments of conv)."""
    irreps = o3.Irreps(irreps_in)
    paths = conv_paths(irreps, lmax, irreps, n_members)
    n_edges = n_atoms * N_NEIGHBORS
    g = torch.randn(n_atoms, Layout(irreps, n_members).dim, dtype=dtype)
    x = torch.rand(n_edges, 1, dtype=dtype).expand(-1, n_members)
    table = torch.randn(n_members, N_ROWS, paths.n_weights, dtype=dtype)
    sh = torch.randn(n_edges, 1, (lmax + 1) ** 2, dtype=dtype).expand(-1, n_members, -1)
    sender = torch.randint(0, n_atoms, (n_edges,))
    row_ptr = torch.arange(0, n_edges + 1, N_NEIGHBORS)
    rest = (sender, row_ptr, paths.rows, paths.cg, Layout(paths.irreps_out, n_members).dim)
    return [t.requires_grad_() for t in (g, x, table, sh)], rest


def conv_steps(conv, operands, rest) -> Steps:
    g, x, table, sh = operands

    def forward():
        with torch.no_grad():
            return conv(*operands, *rest)

    def first():
        return torch.autograd.grad(conv(*operands, *rest), [g, x, sh], ones)

    def second():
        out = conv(*operands, *rest)
        adjoints = torch.autograd.grad(out, [g, x, sh], weight, create_graph=True)
        return torch.autograd.grad([*adjoints, out], [g, table], [*cotangents, ones])

    ones = torch.ones_like(forward())
    weight = torch.ones_like(ones).requires_grad_()
    cotangents = [torch.ones_like(t).contiguous() for t in (g, x, sh)]
    return forward, first, second


def linear_steps(linear, operands, rest) -> Steps:
    x, weights = operands

    def forward():
        with torch.no_grad():
            return linear(*operands, *rest)

    def first():
        return torch.autograd.grad(linear(*operands, *rest), [x], ones)

    def second():
        out = linear(*operands, *rest)
        adjoint = torch.autograd.grad(out, [x], weight, create_graph=True)
        return torch.autograd.grad([*adjoint, out], [weight, x, weights], [cotangent, ones])

    ones = torch.ones_like(forward())
    weight = torch.ones_like(ones).requires_grad_()
    cotangent = torch.ones_like(x)
    return forward, first, second


def conv_cases(dtype: torch.dtype) -> Iterator[Case]:
    for name, case in CONV.items():
        operands, rest = conv_operands(*case, dtype)
        steps = [conv_steps(conv, operands, rest) for conv in (conv_fused, conv_aten)]
        yield Case(name, ORDERS, len(rest[0]), *steps)


def linear_cases(dtype: torch.dtype) -> Iterator[Case]:
    for name, (irreps_in, irreps_out, members, n_species, n_atoms) in LINEAR.items():
        source, sink = o3.Irreps(irreps_in), o3.Irreps(irreps_out)
        table = block_linear(source, sink, members)
        n_weights = sum(a * b for a, b in weight_shapes(source, sink))
        x = torch.randn(n_atoms, Layout(source, members).dim, dtype=dtype)
        weight = torch.randn(members, n_species, n_weights, dtype=dtype)
        species = torch.randint(0, n_species, (n_atoms,)) if n_species > 1 else None
        operands = [x.requires_grad_(), weight.requires_grad_()]
        rest = (species, table.blocks, table.dim_out)
        steps = [linear_steps(linear, operands, rest) for linear in (linear_fused, linear_aten)]
        yield Case(name, ORDERS, n_atoms, *steps)


def product_cases(dtype: torch.dtype) -> Iterator[Case]:
    for name, (irreps_in, n_channels, members, correlation, n_species, n_atoms) in PRODUCT.items():
        irreps = o3.Irreps(irreps_in)
        paths = product_paths(irreps, correlation, [ir for _, ir in irreps])
        x = torch.randn(n_atoms, irreps.dim * members * n_channels, dtype=dtype)
        weight = torch.randn(members, n_species, len(paths.rows) // 8, n_channels, dtype=dtype)
        operands = [x.requires_grad_(), weight.requires_grad_()]
        rest = (torch.randint(0, n_species, (n_atoms,)), paths.rows, paths.cg)
        steps = [linear_steps(product, operands, rest) for product in (product_fused, product_aten)]
        yield Case(name, ORDERS, n_atoms, *steps)


def edge_cases(dtype: torch.dtype, n_edges: int = 14336) -> Iterator[Case]:
    vector = torch.randn(n_edges, 3, dtype=dtype)
    for lmax in range(4):
        steps = []
        for fused in (True, False):
            basis = EdgeBasis(5.0, 8, 6, lmax, True)
            basis.fused = fused
            bar_radial = torch.randn(n_edges, 1, 1, dtype=dtype)
            bar_sh = torch.randn(n_edges, 1, (lmax + 1) ** 2, dtype=dtype)
            adjoints = (vector, *basis(vector)[2:], bar_radial, bar_sh)
            steps.append(
                (lambda b=basis: b(vector), lambda b=basis, adjoints=adjoints: b.vjp(*adjoints))
            )
        yield Case(f"lmax {lmax}", ("values", "adjoints"), n_edges, *steps)


def scatter_cases(dtype: torch.dtype) -> Iterator[Case]:
    if not HAS_SCATTER:
        print("torch-scatter is not installed: see the extra `scatter` in CONTRIBUTING.md")
        return
    for name, (n, degree) in SCATTER.items():
        row_ptr = torch.arange(0, n * degree + 1, degree)
        for width in WIDTHS:
            src = torch.randn(n * degree, width, dtype=dtype).requires_grad_()
            steps = [scatter_steps(f, src, row_ptr) for f in (sum_by_scatter, sum_by_index)]
            yield Case(f"{name}, width {width}", ("forward", "twice"), 1, *steps)


def scatter_steps(function, src: torch.Tensor, row_ptr: torch.Tensor) -> Steps:
    def forward():
        with torch.no_grad():
            return function(src, row_ptr)

    def twice():
        out = function(src, row_ptr)
        weight = torch.ones_like(out).requires_grad_()
        (first,) = torch.autograd.grad(out, src, weight, create_graph=True)
        return torch.autograd.grad(first, weight, torch.ones_like(first))

    return forward, twice


CASES = {
    "conv": conv_cases,
    "linear": linear_cases,
    "product": product_cases,
    "edges": edge_cases,
    "scatter": scatter_cases,
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--dtype", default="float32", choices=("float32", "float64"))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=0.5, help="for each figure")
    parser.add_argument("--skip-twin", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    for name in args.only:
        print(f"{name}, {args.dtype}, {args.threads} thread(s)")
        for case in CASES[name](getattr(torch, args.dtype)):
            fused = times(case.fused, case.unit, args.seconds)
            show(case.name, "fused", fused, case.columns)
            if not args.skip_twin:
                twin = times(case.twin, case.unit, args.seconds)
                show("", "twin", twin, case.columns)
                show("", "ratio", [t / f for t, f in zip(twin, fused, strict=True)], case.columns)


def times(steps: Steps, unit: int, seconds: float) -> list[float]:
    """Microseconds per unit."""
    return [1e6 * seconds_per_call(step, seconds) / unit for step in steps]


def show(name: str, label: str, values: Sequence[float], columns: Sequence[str]) -> None:
    cells = "".join(f"  {c} {v:9.3f}" for c, v in zip(columns, values, strict=True))
    print(f"{name:38}{label:6}{cells}", flush=True)


if __name__ == "__main__":
    main()
