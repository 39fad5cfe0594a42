"""Sums over consecutive rows (the edges of a receiver, the atoms of a frame): torch-scatter
where it is faster, else stock torch.
"""

from typing import Any

import torch
from torch import Tensor

try:
    from torch_scatter import gather_csr, segment_csr
except ImportError:
    gather_csr = segment_csr = None

HAS_SCATTER = segment_csr is not None
# Widest row that torch-scatter sums faster than index_add on one core, derivatives
# included (benchmarks/kernels.py): at 16 they tie, at 15 it is 1.4 to 2.7 times as fast,
# at 64 it takes twice as long.
WIDEST = 15


# torch_scatter's own backward is opaque to autograd: second derivatives through it would
# silently vanish. These two are each other's derivative, to any order.
class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, src: Tensor, row_ptr: Tensor) -> Tensor:
        ctx.row_ptr = row_ptr
        return segment_csr(src, row_ptr, reduce="sum")

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _Spread.apply(grad, ctx.row_ptr), None


class _Spread(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, src: Tensor, row_ptr: Tensor) -> Tensor:
        ctx.row_ptr = row_ptr
        return gather_csr(src.contiguous(), row_ptr)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _Sum.apply(grad, ctx.row_ptr), None


@torch.jit.unused
def sum_by_scatter(src: Tensor, row_ptr: Tensor) -> Tensor:
    """`segment_sum` by torch-scatter."""
    return _Sum.apply(src, row_ptr)


def sum_by_index(src: Tensor, row_ptr: Tensor, receiver: Tensor | None = None) -> Tensor:
    """`segment_sum` in stock torch."""
    n = row_ptr.shape[0] - 1
    if receiver is None:
        counts = row_ptr[1:] - row_ptr[:-1]
        receiver = torch.repeat_interleave(
            torch.arange(n, device=src.device), counts, output_size=src.shape[0]
        )
    out = torch.zeros([n] + list(src.shape[1:]), dtype=src.dtype, device=src.device)
    return out.index_add(0, receiver, src)


def segment_sum(src: Tensor, row_ptr: Tensor, receiver: Tensor | None = None) -> Tensor:
    """[E, ...], CSR row_ptr [n + 1] -> [n, ...], row j being the sum of
    src[row_ptr[j]:row_ptr[j + 1]].

    receiver: int64 [E], the row of each summand, where it is at hand: it follows from
    row_ptr, but takes time to make.
    """
    if not torch.jit.is_scripting():  # type: ignore[attr-defined]
        if HAS_SCATTER and src.device.type == "cpu" and src[:1].numel() <= WIDEST:
            return sum_by_scatter(src, row_ptr)
    return sum_by_index(src, row_ptr, receiver)
