"""A step on GPUs, on paper: python benchmarks/scaling/gpu_model.py [--model small]

Nothing here is measured. Per kernel the time is the largest of its floating-point
operations, its bytes from memory and its bytes through the caches, each over a share of
what the maker's data sheet says; kernels follow each other, and each costs a launch:

    step = launches * launch + sum over kernels max(flops / F, bytes / B, cache bytes / C)

Counts per atom are those of roofline.py: race::conv, forward and first derivatives, and
the linear maps of a layer (four, forward and transposed). Launches are those that
tests/cpp/test_step_on_cpu.py counts. Halos are those of projection.py, over a link of
each GPU, with a latency for each message. Kept edges reach further than the cutoff by the
skin: a kernel reads their distance, and leaves them out.
"""

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import race_models  # noqa: E402
from e3nn import o3  # noqa: E402
from projection import ghosts  # noqa: E402
from roofline import conv_counts  # noqa: E402

from race.model.irreps import Layout, conv_paths  # noqa: E402

SIZE = 4  # bytes of a float32
DENSITY, SKIN = 0.05, 1.0  # atoms per A^3 of silicon; A
SHARE = {"flops": 0.5, "memory": 0.7, "cache": 0.5}  # of the data sheet: an assumption
LAUNCH = {"plain": 4e-6, "graph": 1.5e-6}  # s, of a kernel from the host, and in a CUDA graph
MESSAGE = 2e-5  # s, latency of one of the six messages of an exchange, packing included
LAUNCHES = {1: 55, 8: 74}  # of a step of two layers, by members
MAPS = 8  # linear maps hidden -> hidden of a layer, forward and transposed


@dataclass(frozen=True)
class Device:
    """The maker's figures: flop/s of float32 without tensor cores, bytes/s."""

    flops: float
    memory: float
    cache: float  # second level; not on the data sheet: an assumption
    link: float  # of one GPU to other nodes


DEVICES = {
    "H200": Device(67e12, 4.8e12, 12e12, 50e9),
    "A100": Device(19.5e12, 2.0e12, 5e12, 25e9),
    "MI300X": Device(81.7e12, 5.3e12, 12e12, 50e9),
}


@dataclass(frozen=True)
class Work:
    """Of one kernel for one atom."""

    flops: float
    memory: float
    cache: float

    def seconds(self, device: Device) -> float:
        return max(
            self.flops / (SHARE["flops"] * device.flops),
            self.memory / (SHARE["memory"] * device.memory),
            self.cache / (SHARE["cache"] * device.cache),
        )


def kernels(model: str, members: int, all_forces: bool) -> list[Work]:
    """Those of a step, for one atom. all_forces: each member's own forces, else their mean's."""
    config = race_models.config(model, members)
    hidden, n_layers = o3.Irreps(config.irreps_hidden), config.n_layers
    paths = conv_paths(hidden, config.lmax, hidden, members)
    n_sh = (config.lmax + 1) ** 2
    dims = Layout(hidden, members).dim, Layout(paths.irreps_out, members).dim, n_sh
    n, edges = 10_000, DENSITY * 4.19 * config.r_max**3
    kept = DENSITY * 4.19 * (config.r_max + SKIN) ** 3
    counts = conv_counts(paths, members, n, int(n * edges), SIZE, dims)
    groups = members if all_forces else 1
    work = []
    for order in ("forward", "first derivatives"):
        per_atom = [count / n for count in counts[order]]
        per_atom[1] += kept * (SIZE + 8)  # distance and sender of every kept edge
        work += [Work(*per_atom)] * n_layers
    flops = sum(2.0 * ir.dim * members * mul * mul for mul, ir in hidden)
    moved = 2.0 * dims[0] * SIZE
    work += [Work(flops, moved, moved)] * (MAPS * n_layers)
    vectors = kept * (24 + (1 + n_sh) * SIZE * (1 + groups) + groups * 3 * SIZE)
    return [*work, Work(20 * kept * n_sh, vectors, vectors)]


def step(model: str, members: int, device: Device, n_atoms: float, launch: str) -> float:
    """Seconds of a step of one GPU without neighbours."""
    each = sum(work.seconds(device) for work in kernels(model, members, members > 1))
    return LAUNCHES[members] * LAUNCH[launch] + n_atoms * each


def halo(model: str, members: int, device: Device, n_atoms: float) -> float:
    """Seconds of a step's exchanges."""
    config = race_models.config(model, members)
    row = Layout(o3.Irreps(config.irreps_hidden), members).dim * SIZE
    exchanges = 2 * (config.n_layers - 1)
    volume = exchanges * ghosts(n_atoms, DENSITY, config.r_max + SKIN) * row
    return volume / device.link + 6 * exchanges * MESSAGE


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="small", help="a name of race_models.SIZES")
    options = parser.parse_args()
    print("| GPU | members | atoms | ms per step | with a CUDA graph | us per atom |")
    print("|---|---|---|---|---|---|")
    for name, device in DEVICES.items():
        for members in LAUNCHES:
            for n_atoms in (64, 1_000, 10_000, 100_000, 1_000_000):
                plain, graph = (
                    step(options.model, members, device, n_atoms, launch) for launch in LAUNCH
                )
                print(
                    f"| {name} | {members} | {n_atoms:,} | {1e3 * plain:.3g} | "
                    f"{1e3 * graph:.3g} | {1e6 * plain / n_atoms:.3g} |"
                )
    print("\n| GPU | members | atoms per GPU | halo, us per atom | weak scaling, any number |")
    print("|---|---|---|---|---|")
    for name, device in DEVICES.items():
        for members in LAUNCHES:
            for n_atoms in (10_000, 100_000, 1_000_000):
                alone = step(options.model, members, device, n_atoms, "plain")
                shared = halo(options.model, members, device, n_atoms)
                print(
                    f"| {name} | {members} | {n_atoms:,} | {1e6 * shared / n_atoms:.3g} | "
                    f"{alone / (alone + shared):.0%} |"
                )


if __name__ == "__main__":
    main()
