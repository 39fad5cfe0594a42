"""Where the time of a prediction goes: compiled kernels (race::*), matrix products,
everything else.

    python benchmarks/shares.py [--quick]

librace's predict on Si-4096 under torch's profiler, one thread; the same call that
pair_style race makes.
"""

import tempfile
from collections import defaultdict
from pathlib import Path

import arguments
import race._race
import race_models
import results
import systems
import torch
from provenance import commit
from race_worker import Prepared, deployed
from torch.profiler import ProfilerActivity, profile

import race

PRODUCTS = ("aten::mm", "aten::bmm", "aten::addmm", "aten::baddbmm")
VARIANTS = (
    (1, "point", "forces", "energy, forces"),
    (8, "cholesky", "covariance", "energy, every member's forces, 3x3 total covariance"),
)


def is_kernel(name: str) -> bool:
    return name.lower().startswith("race")  # race::conv; autograd's node for its derivative


def shares(prepared: Prepared, calls: int) -> tuple[float, dict[str, float]]:
    """Microseconds of a call, and the part of it that each operator takes itself."""
    for _ in range(4):
        prepared.call()
    with profile(activities=[ProfilerActivity.CPU]) as recorded:
        for _ in range(calls):
            prepared.call()
    own: dict[str, float] = defaultdict(float)
    for event in recorded.key_averages():
        own[event.key] += event.self_cpu_time_total / calls
    total = sum(own.values())
    return total, {name: time / total for name, time in own.items()}


def main() -> None:
    quick = arguments.quick(__doc__)
    torch.set_num_threads(1)
    journal = results.Journal("quick" if quick else "full")
    system = "Si-512" if quick else "Si-4096"
    path = systems.write(results.BUILD / "systems" / "5" / f"{system}.npz", system)
    for members, head, ask, outputs in VARIANTS:
        if journal.done("shares", members):
            continue
        with tempfile.TemporaryDirectory() as folder:
            model = race._race.load(str(race_models.artifact(Path(folder), "small", members, head)))
        prepared = deployed(model, str(path), ask)
        total, parts = shares(prepared, 2 if quick else 10)
        kernels = sum(part for name, part in parts.items() if is_kernel(name))
        products = sum(part for name, part in parts.items() if name in PRODUCTS)
        rest = sorted(
            (
                (part, name)
                for name, part in parts.items()
                if not is_kernel(name) and name not in PRODUCTS
            ),
            reverse=True,
        )
        record = {
            "contest": "shares",
            "system": system,
            "n_atoms": prepared.n_atoms,
            "model": "RACE",
            "size": "small",
            "architecture": race_models.describe("small"),
            "members": members,
            "outputs": outputs,
            "dtype": "float32",
            "threads": 1,
            "us_per_atom": total / prepared.n_atoms,
            "kernels": kernels,
            "matrix_products": products,
            "largest_others": {name: round(part, 4) for part, name in rest[:6]},
            "timed": "librace's predict under torch's profiler",
            "versions": {
                "race": race.__version__,
                "torch": torch.__version__,
                "commit": commit(),
            },
        }
        journal.add([record], "shares", members)
        print(
            f"  {members} member(s): kernels {kernels:.1%}, matrix products {products:.1%}, "
            f"largest others {record['largest_others']}"
        )


if __name__ == "__main__":
    main()
