"""Microseconds of segment_sum by torch-scatter and by stock torch, by row width: where
race.model.scatter.WIDEST comes from.

    python benchmarks/scatter.py [--dtype float64] [--repeats 40]

Forward alone, and with first and second derivatives (a training step on forces
differentiates the sum of edge gradients twice). Median of the processor time of one core,
wrappers included; the two take turns, so that other work disturbs both alike.
"""

import argparse
import statistics
import time

import torch

from race.model.scatter import HAS_SCATTER, WIDEST, sum_by_index, sum_by_scatter

SIZES = {
    "530 receivers x 12": (530, 12),
    "135 x 17": (135, 17),
    "512 x 28": (512, 28),
    "4 frames x 64": (4, 64),
}
WIDTHS = (1, 3, 6, 9, 12, 15, 16, 18, 24, 32, 64)


def forward(function, src, row_ptr):
    with torch.no_grad():
        return function(src, row_ptr)


def twice(function, src, row_ptr):
    """The sum, its gradient, and the gradient of that with respect to the weights of the first."""
    out = function(src, row_ptr)
    weight = torch.ones_like(out).requires_grad_()
    (first,) = torch.autograd.grad(out, src, weight, create_graph=True)
    return torch.autograd.grad(first, weight, torch.ones_like(first))


def medians(run, src, row_ptr, repeats: int) -> list[float]:
    """Microseconds by torch-scatter and by index_add."""
    times: dict = {sum_by_scatter: [], sum_by_index: []}
    for k in range(repeats + 2):
        for function, spent in times.items():
            start = time.thread_time()
            run(function, src, row_ptr)
            if k >= 2:  # the first calls warm up
                spent.append(1e6 * (time.thread_time() - start))
    return [statistics.median(spent) for spent in times.values()]


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dtype", default="float32", choices=("float32", "float64"))
    parser.add_argument("--repeats", type=int, default=40)
    args = parser.parse_args()
    if not HAS_SCATTER:
        raise SystemExit(
            "torch-scatter is not installed: see the extra `scatter` in CONTRIBUTING.md"
        )
    torch.set_num_threads(1)
    print(f"{args.dtype}, one core; us; in use up to width {WIDEST}")
    print(
        f"{'':20}{'width':>6}{'forward: scatter':>18}{'index_add':>11}{'ratio':>7}"
        f"{'twice: scatter':>17}{'index_add':>11}{'ratio':>7}"
    )
    for name, (n, degree) in SIZES.items():
        row_ptr = torch.arange(0, n * degree + 1, degree)
        for width in WIDTHS:
            src = torch.randn(n * degree, width, dtype=getattr(torch, args.dtype)).requires_grad_()
            (a, b), (c, d) = (medians(run, src, row_ptr, args.repeats) for run in (forward, twice))
            print(
                f"{name:20}{width:6}{a:18.0f}{b:11.0f}{b / a:7.2f}{c:17.0f}{d:11.0f}{d / c:7.2f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
