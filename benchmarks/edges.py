"""Nanoseconds per edge of race::edge_basis and of its stock-torch twin: the values, and the
adjoints contracted to edge gradients.

    python benchmarks/edges.py [--dtype float64] [--threads 1] [--edges 14336] [--groups 1]

On one thread the clock is the thread's processor time, which other work on the machine
disturbs less.
"""

import argparse
import statistics
import time

import torch

from race.model.edges import EdgeBasis


def nanoseconds(function, arguments, repeats: int = 31) -> float:
    """Per edge; median."""
    clock = time.thread_time_ns if torch.get_num_threads() == 1 else time.perf_counter_ns
    times = []
    for _ in range(repeats):
        start = clock()
        function(*arguments)
        times.append(clock() - start)
    return statistics.median(times[repeats // 6 :]) / len(arguments[0])


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dtype", default="float32", choices=("float32", "float64"))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--edges", type=int, default=14336)
    parser.add_argument("--groups", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    dtype = getattr(torch, args.dtype)
    vector = torch.randn(args.edges, 3, dtype=dtype)
    print(
        f"{args.dtype}, {args.threads} thread(s), {args.edges} edges, {args.groups} group(s); "
        "ns/edge"
    )
    print(f"{'':16}{'values':>10}{'adjoints':>10}")
    for lmax in range(4):
        basis = EdgeBasis(5.0, 8, 6, lmax, True)
        bar_radial = torch.randn(args.edges, args.groups, 1, dtype=dtype)
        bar_sh = torch.randn(args.edges, args.groups, (lmax + 1) ** 2, dtype=dtype)
        found = {}
        for fused in (True, False):
            basis.fused = fused
            gradients = basis(vector)[2:]
            adjoints = (vector, *gradients, bar_radial, bar_sh)
            found[fused] = [nanoseconds(basis, (vector,)), nanoseconds(basis.vjp, adjoints)]
            print(
                f"lmax {lmax}  {'fused' if fused else 'aten':8}"
                + "".join(f"{t:10.1f}" for t in found[fused]),
                flush=True,
            )
        print(
            f"{'':8}{'ratio':8}"
            + "".join(f"{b / a:10.1f}" for a, b in zip(found[True], found[False], strict=True))
        )


if __name__ == "__main__":
    main()
