"""Microseconds per atom and GFLOP/s of race::linear and of its stock-torch twin: forward, +
first derivatives, + second derivatives.

    python benchmarks/linear.py [--dtype float64] [--threads 1] [--seconds 1.0] [--skip-aten]

The first-derivative column is inference (energy, then the adjoint of x); the
second-derivative one is a training step on forces (gradients with respect to x and weight
of a function of the first derivatives). GFLOP/s are of the forward map, with those of a
square matrix product as the machine's peak. On one thread the clock is the thread's
processor time, which other work on the machine disturbs less.
"""

import argparse
import time

import torch
from e3nn import o3

from race.model.irreps import Layout
from race.model.linear import block_linear, linear_aten, linear_fused, weight_shapes

# irreps in, irreps out, members, species, atoms
CASES = {
    "W_eff 64x0e+64x1o, 4 species": ("128x0e+192x1o", "64x0e+64x1o", 1, 4, 135),
    "W_eff 64x0e+64x1o, 2 species": ("128x0e+192x1o", "64x0e+64x1o", 1, 2, 530),
    "W_up 64x0e+64x1o": ("64x0e+64x1o", "64x0e+64x1o", 1, 1, 135),
    "W_skip 32x(0e+1o+2e), M 4, 4 species": ("32x0e+32x1o+32x2e", "32x0e+32x1o+32x2e", 4, 4, 135),
    "readout 64x0e -> 1": ("64x0e", "1x0e", 1, 1, 135),
}


def build(
    irreps_in: str,
    irreps_out: str,
    n_members: int,
    n_species: int,
    n_atoms: int,
    dtype: torch.dtype,
):
    """Random operands: ([x, weight], remaining arguments of linear, multiply-adds)."""
    source, sink = o3.Irreps(irreps_in), o3.Irreps(irreps_out)
    table = block_linear(source, sink, n_members)
    shapes = weight_shapes(source, sink)
    x = torch.randn(n_atoms, Layout(source, n_members).dim, dtype=dtype)
    weight = torch.randn(n_members, n_species, sum(a * b for a, b in shapes), dtype=dtype)
    species = torch.randint(0, n_species, (n_atoms,)) if n_species > 1 else None
    work = (
        n_atoms
        * n_members
        * sum(ir.dim * a * b for (a, b), (_, ir) in zip(shapes, sink, strict=True))
    )
    return (
        [x.requires_grad_(), weight.requires_grad_()],
        (species, table.blocks, table.dim_out),
        work,
    )


def steps(linear, operands, rest):
    """The three measured functions."""

    def forward():
        with torch.no_grad():
            return linear(*operands, *rest)

    def first():
        return torch.autograd.grad(linear(*operands, *rest), operands[:1], ones)

    def second():
        out = linear(*operands, *rest)
        adjoint = torch.autograd.grad(out, operands[:1], weight, create_graph=True)
        return torch.autograd.grad([*adjoint, out], [weight, *operands], [cotangent, ones])

    ones = torch.ones_like(forward())
    weight = torch.ones_like(ones).requires_grad_()
    cotangent = torch.ones_like(operands[0])
    return forward, first, second


def seconds_per_call(function, seconds: float) -> float:
    """Best of several runs within about `seconds`: the least disturbed one."""
    clock = time.thread_time if torch.get_num_threads() == 1 else time.perf_counter
    function()
    best, start = float("inf"), clock()
    while clock() - start < seconds:
        t = clock()
        function()
        best = min(best, clock() - t)
    return best


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dtype", default="float32", choices=("float32", "float64"))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--skip-aten", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    dtype = getattr(torch, args.dtype)
    square = torch.randn(1024, 1024, dtype=dtype)
    peak = 2e-9 * 1024**3 / seconds_per_call(lambda: square @ square, args.seconds)
    print(f"{args.dtype}, {args.threads} thread(s), matrix product {peak:.0f} GFLOP/s; us/atom")
    print(f"{'':40}{'':8}{'forward':>10}{'+first':>10}{'+second':>10}{'GFLOP/s':>10}")
    for name, case in CASES.items():
        operands, rest, work = build(*case, dtype)
        table = {}
        for label, linear in (
            (("fused", linear_fused),)
            if args.skip_aten
            else (("fused", linear_fused), ("aten", linear_aten))
        ):
            times = [seconds_per_call(f, args.seconds) for f in steps(linear, operands, rest)]
            table[label] = [1e6 * t / operands[0].shape[0] for t in times]
            print(
                f"{name:40}{label:8}"
                + "".join(f"{t:10.3f}" for t in table[label])
                + f"{2e-9 * work / times[0]:10.1f}",
                flush=True,
            )
        if not args.skip_aten:
            print(
                f"{'':40}{'ratio':8}"
                + "".join(
                    f"{a / f:10.1f}" for a, f in zip(table["aten"], table["fused"], strict=True)
                )
            )


if __name__ == "__main__":
    main()
