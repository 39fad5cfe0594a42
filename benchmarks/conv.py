"""Microseconds per edge of race::conv and of its stock-torch twin: forward, + first
derivatives, + second derivatives.

    python benchmarks/conv.py [--dtype float64] [--threads 1] [--seconds 1.0] [--skip-aten]

Radial weights come from a table. The first-derivative column is inference (energy, then
adjoints of g, x, sh); the second-derivative one is a training step on forces (gradients
with respect to g and the table of a function of the first derivatives). On one thread the
clock is the thread's processor time, which other work on the machine disturbs less.
"""

import argparse
import time

import torch
from e3nn import o3

from race.model.conv import conv_aten, conv_fused
from race.model.irreps import Layout, conv_paths

CASES = {
    "64x0e+64x1o, lmax 1": ("64x0e+64x1o", 1, 1),
    "32x0e+32x1o+32x2e, lmax 2, M 4": ("32x0e+32x1o+32x2e", 2, 4),
    "64x(0..3, both parities), lmax 3": ("64x0e+64x0o+64x1o+64x1e+64x2e+64x2o+64x3o+64x3e", 3, 1),
}
N_ATOMS, N_NEIGHBORS, N_ROWS = 64, 26, 388


def build(irreps_in: str, lmax: int, n_members: int, dtype: torch.dtype):
    """Random operands: ([g, x, table, sh], remaining arguments of conv)."""
    irreps = o3.Irreps(irreps_in)
    paths = conv_paths(irreps, lmax, irreps, n_members)
    n_edges = N_ATOMS * N_NEIGHBORS
    g = torch.randn(N_ATOMS, Layout(irreps, n_members).dim, dtype=dtype)
    x = torch.rand(n_edges, 1, dtype=dtype).expand(-1, n_members)
    table = torch.randn(n_members, N_ROWS, paths.n_weights, dtype=dtype)
    sh = torch.randn(n_edges, 1, (lmax + 1) ** 2, dtype=dtype).expand(-1, n_members, -1)
    sender = torch.randint(0, N_ATOMS, (n_edges,))
    row_ptr = torch.arange(0, n_edges + 1, N_NEIGHBORS)
    rest = (sender, row_ptr, paths.rows, paths.cg, Layout(paths.irreps_out, n_members).dim)
    return [t.requires_grad_() for t in (g, x, table, sh)], rest


def steps(conv, operands, rest):
    """The three measured functions."""

    def forward():
        with torch.no_grad():
            return conv(*operands, *rest)

    def first():
        out = conv(*operands, *rest)
        return torch.autograd.grad(out, [g, x, sh], ones)

    def second():
        out = conv(*operands, *rest)
        adjoints = torch.autograd.grad(out, [g, x, sh], weight, create_graph=True)
        return torch.autograd.grad([*adjoints, out], [g, table], [*cotangents, ones])

    g, x, table, sh = operands
    ones = torch.ones_like(forward())
    weight = torch.ones_like(ones).requires_grad_()
    cotangents = [torch.ones_like(t).contiguous() for t in (g, x, sh)]
    return forward, first, second


def microseconds_per_edge(function, n_edges: int, seconds: float) -> float:
    """Best of several runs within about `seconds`: the least disturbed one."""
    clock = time.thread_time if torch.get_num_threads() == 1 else time.perf_counter
    function()
    best, start = float("inf"), clock()
    while clock() - start < seconds:
        t = clock()
        function()
        best = min(best, clock() - t)
    return 1e6 * best / n_edges


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
    print(
        f"{args.dtype}, {args.threads} thread(s), {N_ATOMS} atoms x {N_NEIGHBORS} neighbours; "
        "us/edge"
    )
    print(f"{'':36}{'':8}{'forward':>10}{'+first':>10}{'+second':>10}")
    for name, (irreps, lmax, n_members) in CASES.items():
        operands, rest = build(irreps, lmax, n_members, getattr(torch, args.dtype))
        table = {}
        for label, conv in (
            (("fused", conv_fused),)
            if args.skip_aten
            else (("fused", conv_fused), ("aten", conv_aten))
        ):
            table[label] = [
                microseconds_per_edge(f, rest[0].numel(), args.seconds)
                for f in steps(conv, operands, rest)
            ]
            print(f"{name:36}{label:8}" + "".join(f"{t:10.3f}" for t in table[label]), flush=True)
        if not args.skip_aten:
            print(
                f"{'':36}{'ratio':8}"
                + "".join(
                    f"{a / f:10.1f}" for a, f in zip(table["aten"], table["fused"], strict=True)
                )
            )


if __name__ == "__main__":
    main()
