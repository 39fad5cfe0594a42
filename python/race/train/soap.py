"""SOAP (Vyas et al. 2024, arXiv:2409.11321): Adam in the eigenbasis of Shampoo's
preconditioner. All matrices of one shape take their step together.
"""

from typing import Any

import torch
from torch import Tensor, nn

EVERY = 10  # steps between two turns of the bases
DECAY = 0.95  # of the means of G G^T and G^T G, per step
# A wider side keeps the basis that it has: turning it costs more than it gives
WIDEST = 256
EPSILON = 1e-8
# On the diagonal of a Gram matrix, of its mean: a direction that no gradient has had stays
# as it is, where rounding would choose it
DAMPING = 1e-6

Shape = tuple[int, int]


class Side:
    """Mean of the Gram matrices of one side of gradients, and about its eigenvectors."""

    def __init__(self, n: int, width: int, like: Tensor):
        self.gram = like.new_zeros(n, width, width)
        self.basis = torch.eye(width).to(like).repeat(n, 1, 1)

    def observe(self, gradient: Tensor) -> None:
        """gradient: [n, width, ...], of which `gram` is the mean of G G^T."""
        self.gram.baddbmm_(gradient, gradient.mT, beta=DECAY, alpha=1 - DECAY)

    def turn(self) -> Tensor:
        """One step of orthogonal iteration, by which the basis follows the eigenvectors of
        `gram`. Returns the change of coordinates, old to new basis [n, width, width].
        """
        old = self.basis.clone()
        mean = self.gram.diagonal(dim1=1, dim2=2).mean(1).view(-1, 1, 1)
        # In place: the strides of Q would round otherwise than those of a resumed run
        self.basis.copy_(torch.linalg.qr(self.gram @ old + DAMPING * mean * old).Q)
        return self.basis.mT @ old


class Stack:
    """All matrices [n, rows, columns] of one shape, with their state.

    parts: number of the parameter group, parameter, and where its matrices lie in its last
    dimension; None where they are its last two.
    """

    def __init__(self, shape: Shape, parts: list[tuple[int, nn.Parameter, int | None]]):
        self.shape, self.parts = torch.Size(shape), parts
        self.counts = [
            self.numbers(p, offset).numel() // self.shape.numel() for _, p, offset in parts
        ]
        n, like = sum(self.counts), parts[0][1].detach()
        # Averages of the gradient in the eigenbases, and of its squares
        self.mean, self.square = (like.new_zeros(n, *shape) for _ in range(2))
        self.left, self.right = (
            Side(n, width, like) if width <= WIDEST else None for width in shape
        )

    def numbers(self, tensor: Tensor, offset: int | None) -> Tensor:
        """The matrices of this shape in a parameter or its gradient; a view."""
        return tensor if offset is None else tensor.narrow(-1, offset, self.shape.numel())

    def step(self, step: int, rates: list[float], betas: tuple[float, float]) -> None:
        """step: from 1 on. rates: of each parameter group."""
        gradient = torch.cat(
            [
                self.numbers(torch.zeros_like(p) if p.grad is None else p.grad, offset).reshape(
                    -1, *self.shape
                )
                for _, p, offset in self.parts
            ]
        )
        turns = step == 1 or step % EVERY == 0
        rotated = gradient
        if self.left:
            self.left.observe(gradient)
            if turns:
                self.mean.copy_(torch.bmm(self.left.turn(), self.mean))
            rotated = torch.bmm(self.left.basis.mT, rotated)
        if self.right:
            self.right.observe(gradient.mT)
            if turns:
                self.mean.copy_(torch.bmm(self.mean, self.right.turn().mT))
            rotated = torch.bmm(rotated, self.right.basis)
        self.mean.lerp_(rotated, 1 - betas[0])
        self.square.mul_(betas[1]).addcmul_(rotated, rotated, value=1 - betas[1])
        size = (self.square / (1 - betas[1] ** step)).sqrt_().add_(EPSILON)
        change = self.mean / size.mul_(1 - betas[0] ** step)
        if self.left:
            change = torch.bmm(self.left.basis, change)
        if self.right:
            change = torch.bmm(change, self.right.basis.mT)
        for (group, p, offset), part in zip(self.parts, change.split(self.counts), strict=True):
            target = self.numbers(p, offset)
            target.sub_(part.view(target.shape), alpha=rates[group])

    def tensors(self) -> dict[str, Tensor]:
        """The state."""
        sides = {"left": self.left, "right": self.right}
        return {"mean": self.mean, "square": self.square} | {
            f"{name}_{key}": getattr(side, key)
            for name, side in sides.items()
            if side
            for key in ("gram", "basis")
        }


class Soap(torch.optim.Optimizer):
    """
    Args:
        groups: of parameters [n_members, ...]: {"params", "factor", "shapes"}. "shapes" holds
            for each parameter those of the matrices in its last dimension, in order, or
            None where its last two dimensions are the matrix.
        lr: learning rate, as Adam's.
        betas: decay of the mean of the gradient and of its squares.
    """

    def __init__(
        self, groups: list[dict[str, Any]], lr: float, betas: tuple[float, float] = (0.9, 0.999)
    ):
        super().__init__(groups, {"lr": lr, "betas": betas})
        self.n_steps = 0
        parts: dict[Shape, list[tuple[int, nn.Parameter, int | None]]] = {}
        for group, of in enumerate(self.param_groups):
            for parameter, shapes in zip(of["params"], of["shapes"], strict=True):
                if shapes is None:
                    rows, columns = parameter.shape[-2:]
                    parts.setdefault((rows, columns), []).append((group, parameter, None))
                    continue
                offset = 0
                for rows, columns in shapes:
                    parts.setdefault((rows, columns), []).append((group, parameter, offset))
                    offset += rows * columns
        self.stacks = [Stack(shape, each) for shape, each in parts.items() if min(shape) > 0]

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One step of all weights."""
        self.n_steps += 1
        rates = [group["lr"] for group in self.param_groups]
        for stack in self.stacks:
            stack.step(self.n_steps, rates, self.param_groups[0]["betas"])

    def state_dict(self) -> dict[str, Any]:
        """As any optimiser has it, and the bases."""
        return super().state_dict() | {
            "n_steps": self.n_steps,
            "stacks": [stack.tensors() for stack in self.stacks],
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """
        Raises:
            ValueError: of another optimiser, or of other parameters.
        """
        stacks = [stack.tensors() for stack in self.stacks]
        given = state_dict.get("stacks", [])
        shapes, expected = (
            [{name: tensor.shape for name, tensor in stack.items()} for stack in each]
            for each in (given, stacks)
        )
        if shapes != expected:
            raise ValueError("matrices of other shapes")
        super().load_state_dict(state_dict)
        self.n_steps = state_dict["n_steps"]
        for stack, tensors in zip(stacks, given, strict=True):
            for name, tensor in stack.items():
                tensor.copy_(tensors[name])
