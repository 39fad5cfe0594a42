"""What every test of an operator asks: results and derivatives compared, and the same on
each instruction set.
"""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import torch


def worst(a: Sequence[torch.Tensor], b: Sequence[torch.Tensor]) -> float:
    """Largest difference relative to the largest value, over a list of tensors."""
    assert all(x.shape == y.shape for x, y in zip(a, b, strict=True))
    pairs = [(x.detach(), y.detach()) for x, y in zip(a, b, strict=True) if y.numel()]
    return max(
        (float((x - y).abs().max() / y.abs().max().clamp_min(1e-30)) for x, y in pairs), default=0.0
    )


def random_like(seed: int):
    """A function that returns random tensors of another's shape."""
    gen = torch.Generator().manual_seed(seed)
    return lambda t: torch.randn(t.shape, dtype=t.dtype, generator=gen)


def orders(out, inputs, leaves, weight, functional) -> list[torch.Tensor]:
    """The result, its adjoints of `inputs` for a weight, and the gradient with respect to
    the weight and `leaves` of a functional of those: all that training on forces needs.
    """
    first = torch.autograd.grad(out, inputs, weight, create_graph=True)
    second = torch.autograd.grad(
        functional(first), [weight, *leaves], allow_unused=True, materialize_grads=True
    )
    return [out, *first, *second]


def squares(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    return sum(t.square().sum() for t in tensors)


def on_instruction_set(isa: str, operator: str, cases: list, folder: Path) -> list:
    """`orders` of torch.ops.race.OPERATOR in a process that asks for the lesser kernels
    `isa`, of cases (operands, other arguments, weight, places of the differentiated operands).
    """
    library = sys.modules["race._race"].__file__
    torch.save(cases, folder / "in.pt")
    command = [sys.executable, __file__, operator, library, folder / "in.pt", folder / "out.pt"]
    subprocess.run(command, env={**os.environ, "RACE_ISA": isa}, check=True)
    used, results = torch.load(folder / "out.pt")
    assert used in (isa, "baseline")  # a host without AVX2 has the baseline only
    return results


def of_case(function, case) -> list[torch.Tensor]:
    operands, rest, weight, places = case
    leaves = [t for t in operands if t is not None]
    inputs = [operands[k] for k in places]
    return orders(function(*operands, *rest), inputs, leaves, weight, squares)


def main(operator: str, library: str, cases: str, out: str) -> None:
    torch.ops.load_library(library)
    function = getattr(torch.ops.race, operator)
    results = [[t.detach() for t in of_case(function, case)] for case in torch.load(cases)]
    torch.save((getattr(torch.ops.race, f"{operator}_isa")(), results), out)


if __name__ == "__main__":
    main(*sys.argv[1:])
