"""Kernels against what this machine can do at best: fills ROOFLINE.md and writes
results/roofline.json.

    python benchmarks/roofline.py [--quick]

For each kernel, on Si-512 with one thread: its floating-point operations, the bytes it
must move from memory (each array once) and through the caches (each operand at each use),
and the least time that the measured ceilings allow for these. Flops and bytes are counted
by formula below.
"""

import argparse
import ctypes
import os
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
import results
import systems
import torch
from e3nn import o3
from pages import fill, table
from provenance import stamp
from timer import seconds_per_call

from race.config import ModelConfig
from race.model.conv import conv_fused
from race.model.irreps import ConvPaths, Layout, conv_paths
from race.model.linear import block_linear

PAGE = Path(__file__).with_name("ROOFLINE.md")
DATA = Path(__file__).parent / "results" / "roofline.json"
TURNS = 200_000  # of the loop in fma.c
# Coefficients of each radial weight, six to an interval
TABLE_ROWS = ModelConfig().radial_knots + 4
CASES = {
    "64x0e+64x1o, lmax 1": ("64x0e+64x1o", 1, 1),
    "64x0e+64x1o, lmax 1, 8 members": ("64x0e+64x1o", 1, 8),
    "64x0e+64x1o+64x2e, lmax 2": ("64x0e+64x1o+64x2e", 2, 1),
    "64x(0..3, both parities), lmax 3": ("64x0e+64x0o+64x1o+64x1e+64x2e+64x2o+64x3o+64x3e", 3, 1),
}


@dataclass
class Ceilings:
    gflops: float  # of fused multiply-adds in registers
    memory: float  # GB/s read + written, copy of 256 MB
    cache: float  # GB/s, copy of 256 kB


@dataclass
class Row:
    case: str
    kernel: str
    dtype: str
    flops: float
    memory_bytes: float
    cache_bytes: float
    seconds: float
    ceilings: Ceilings

    def bounds(self) -> dict[str, float]:
        """Least seconds by each ceiling."""
        c = self.ceilings
        return {
            "arithmetic": self.flops / c.gflops / 1e9,
            "memory": self.memory_bytes / c.memory / 1e9,
            "caches": self.cache_bytes / c.cache / 1e9,
        }


def fma_peak(dtype: torch.dtype, budget: float) -> float:
    """Flop/s of `fma.c`, at the better of the vector widths that the compiler offers."""
    real = {torch.float32: "float", torch.float64: "double"}[dtype]
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for width in (32, 64):
            library = Path(folder) / f"fma{width}.so"
            flags = ["-O3", "-march=native", "-ffp-contract=fast", "-funroll-loops", "-shared"]
            command = [os.environ.get("CC", "gcc"), *flags, f"-DREAL={real}", f"-DWIDTH={width}"]
            source = str(Path(__file__).with_name("fma.c"))
            subprocess.run([*command, "-fPIC", source, "-o", str(library)], check=True)
            loop = ctypes.CDLL(str(library))
            loop.run.restype, loop.run.argtypes = ctypes.c_double, [ctypes.c_long]
            seconds = seconds_per_call(partial(loop.run, TURNS), budget, best=True)
            found.append(2.0 * 24 * loop.lanes() * TURNS / seconds)
    return max(found)


def ceilings(dtype: torch.dtype, budget: float) -> Ceilings:
    size = dtype.itemsize

    def copy(n_bytes: int, repeats: int) -> float:
        source, sink = (
            torch.zeros(n_bytes // size, dtype=dtype),
            torch.zeros(n_bytes // size, dtype=dtype),
        )

        def run():
            for _ in range(repeats):
                sink.copy_(source)

        return 2 * n_bytes * repeats / seconds_per_call(run, budget, best=True)

    return Ceilings(fma_peak(dtype, budget) / 1e9, copy(1 << 28, 1) / 1e9, copy(1 << 18, 200) / 1e9)


def conv_counts(
    paths: ConvPaths, members: int, n: int, n_edges: int, size: int, dims: tuple[int, int, int]
) -> dict[str, tuple[float, float, float]]:
    """(flops, bytes from memory, bytes through caches) of race::conv for each order of derivative.

    A path contracts cg with Y once for each edge (not counted: shared by all channels),
    which leaves a [2l1+1, 2l3+1] matrix with `q` entries that are not zero; then each
    channel and edge costs 2 q for the product with g and the smaller of 2l1+1, 2l3+1 for
    the radial weight. Derivatives contract the same matrices: with respect to g, to the
    radial weight, and (all members' channels summed) to Y, whose entries of cg are `t`.
    The second derivative is that of the contraction with a direction in g, radial and Y:
    five products of the first kind. What interpolating the radial weights costs is not
    counted.
    """
    dim_in, dim_out, n_sh = dims
    forward = to_sh = 0.0
    for p in range(0, len(paths.rows), 10):
        l1, l2, l3, mul, *_, cg_offset = paths.rows[p : p + 10]
        shape = (2 * l1 + 1, 2 * l2 + 1, 2 * l3 + 1)
        cg = paths.cg[cg_offset : cg_offset + int(np.prod(shape))].reshape(shape)
        q, t = int((cg.abs().sum(1) > 1e-12).sum()), int((cg.abs() > 1e-12).sum())
        forward += members * mul * (2 * q + min(shape[0], shape[2]))
        to_sh += members * mul * 2 * t
    flops = {
        "forward": forward,
        "first derivatives": 2 * forward + to_sh,
        "second derivatives": 5 * forward,
    }
    K = paths.n_weights * members
    g, out, edge = n * dim_in * size, n * dim_out * size, n_edges * (1 + n_sh) * size + 8 * n_edges
    table = TABLE_ROWS * K * size
    # A row of g and six of the table for each edge
    gathered, rows = (
        n_edges * dim_in * size,
        n_edges * 6 * K * size,
    )
    memory = {
        "forward": g + out + table + edge,
        "first derivatives": 2 * g + out + table + 2 * edge,
        "second derivatives": 4 * g + 2 * out + 2 * table + 3 * edge,
    }
    caches = {
        "forward": gathered + rows + out + edge,
        "first derivatives": 3 * gathered + rows + out + 2 * edge,  # bar g is read and written
        "second derivatives": 4 * gathered
        + 3 * rows
        + 2 * out
        + 3 * edge,  # so is the gradient of the table
    }
    return {name: (n_edges * flops[name], memory[name], caches[name]) for name in flops}


def conv_steps(
    irreps: str, lmax: int, members: int, dtype: torch.dtype, graph: dict[str, np.ndarray]
) -> tuple[dict, dict]:
    """Functions that run race::conv and its derivatives, and their counts."""
    hidden = o3.Irreps(irreps)
    paths = conv_paths(hidden, lmax, hidden, members)
    dims = Layout(hidden, members).dim, Layout(paths.irreps_out, members).dim, (lmax + 1) ** 2
    n, n_edges = len(graph["numbers"]), len(graph["sender"])
    vector = (
        graph["positions"][graph["sender"]]
        - graph["positions"][graph["receiver"]]
        + graph["shift"] @ graph["cell"]
    )
    x = (
        torch.from_numpy(np.linalg.norm(vector, axis=1) / systems.R_MAX)
        .to(dtype)
        .unsqueeze(1)
        .expand(-1, members)
    )
    table = torch.randn(members, TABLE_ROWS, paths.n_weights, dtype=dtype)
    g = torch.randn(n, dims[0], dtype=dtype)
    # Each member's own adjoint of x and sh
    sh = torch.randn(n_edges, 1, dims[2], dtype=dtype).expand(-1, members, -1)
    row_ptr = torch.zeros(n + 1, dtype=torch.int64)
    row_ptr[1:] = torch.from_numpy(np.bincount(graph["receiver"], minlength=n).cumsum())
    rest = (torch.from_numpy(graph["sender"]), row_ptr, paths.rows, paths.cg, dims[1])
    ones = torch.ones(n, dims[1], dtype=dtype)
    leaves = [t.requires_grad_() for t in (g, x, sh)]
    trained = [g, table.clone().requires_grad_()]

    def forward():
        with torch.no_grad():
            return conv_fused(g, x, table, sh, *rest)

    out = conv_fused(g, x, table, sh, *rest)
    bar = ones.clone().requires_grad_()
    adjoints = torch.autograd.grad(
        conv_fused(g, x, trained[1], sh, *rest), leaves, bar, create_graph=True
    )
    cotangents = [torch.ones_like(t).contiguous() for t in adjoints]
    steps = {
        "forward": forward,
        "first derivatives": lambda: torch.autograd.grad(out, leaves, ones, retain_graph=True),
        "second derivatives": lambda: torch.autograd.grad(
            adjoints, [*trained, bar], cotangents, retain_graph=True
        ),
    }
    return steps, conv_counts(paths, members, n, n_edges, dtype.itemsize, dims)


def linear_step(
    irreps: str, members: int, dtype: torch.dtype, n: int
) -> tuple[Callable[[], object], tuple[float, float, float]]:
    """One equivariant linear map hidden -> hidden of all atoms."""
    hidden = o3.Irreps(irreps)
    linear = block_linear(hidden, hidden, members)
    weight = torch.randn(members, 1, sum(mul * mul for mul, _ in hidden), dtype=dtype)
    rows = torch.randn(n, Layout(hidden, members).dim, dtype=dtype)
    flops = sum(2.0 * n * ir.dim * members * mul * mul for mul, ir in hidden)
    moved = 2.0 * rows.numel() * dtype.itemsize + weight.numel() * dtype.itemsize

    def step():
        with torch.no_grad():
            return linear(rows, weight)

    return step, (flops, moved, moved)


def measure(budget: float) -> list[Row]:
    graph = systems.graph(systems.structure("Si-512"))
    n = len(graph["numbers"])
    rows = []
    for dtype in (torch.float32, torch.float64):
        roof, name = ceilings(dtype, budget), str(dtype).removeprefix("torch.")
        for case, (irreps, lmax, members) in CASES.items():
            steps, counts = conv_steps(irreps, lmax, members, dtype, graph)
            for kernel, step in steps.items():
                rows.append(
                    Row(
                        case,
                        f"conv, {kernel}",
                        name,
                        *counts[kernel],
                        seconds_per_call(step, budget),
                        roof,
                    )
                )
            step, count = linear_step(irreps, members, dtype, n)
            rows.append(
                Row(case, "linear, forward", name, *count, seconds_per_call(step, budget), roof)
            )
            for row in rows[-4:]:
                print(
                    f"  {row.case:36} {row.kernel:26} {row.dtype}  {1e6 * row.seconds / n:8.3f} "
                    "us/atom",
                    flush=True,
                )
    return rows


def page(template: str, rows: list[Row], about: dict, n_atoms: int) -> str:
    """ROOFLINE.md with its tables drawn anew."""
    roofs = {row.dtype: row.ceilings for row in rows}
    return fill(
        template,
        {
            "measured": [results.said(about)],
            "ceilings": table(
                (
                    "",
                    "multiply-adds, GFLOP/s",
                    "copy from memory, GB/s",
                    "copy in cache, GB/s",
                ),
                (
                    (dtype, f"{c.gflops:.0f}", f"{c.memory:.0f}", f"{c.cache:.0f}")
                    for dtype, c in roofs.items()
                ),
            ),
            "kernels": table(
                ("channels", "kernel", "dtype", "kflop/atom", "memory, kB/atom")
                + ("caches, kB/atom", "us/atom", "GFLOP/s", "bound, us/atom", "bound/time"),
                (kernel_row(row, n_atoms) for row in rows),
            ),
        },
    )


def kernel_row(row: Row, n_atoms: int) -> list[str]:
    bound, least = max(row.bounds().items(), key=lambda item: item[1])
    counts = (row.flops, row.memory_bytes, row.cache_bytes)
    return [
        row.case,
        row.kernel,
        row.dtype,
        *(f"{count / n_atoms / 1e3:.1f}" for count in counts),
        f"{1e6 * row.seconds / n_atoms:.2f}",
        f"{row.flops / row.seconds / 1e9:.1f}",
        f"{1e6 * least / n_atoms:.2f} ({bound})",
        f"{least / row.seconds:.0%}",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="short measurements; nothing of the project is overwritten",
    )
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    rows, about = measure(0.02 if args.quick else 0.5), stamp()
    text = page(PAGE.read_text(), rows, about, 512)
    if args.quick:
        results.BUILD.mkdir(parents=True, exist_ok=True)
        (results.BUILD / PAGE.name).write_text(text)
        return
    results.write(DATA, [asdict(row) for row in rows], about)
    PAGE.write_text(text)


if __name__ == "__main__":
    main()
