"""Sums over consecutive rows (the edges of a receiver, the atoms of a frame): torch-scatter where installed, else stock torch."""

import torch
from torch import Tensor

try:
    from torch_scatter import segment_csr
except ImportError:
    segment_csr = None

HAS_SCATTER = segment_csr is not None


class _SegmentCSR(torch.autograd.Function):
    """torch_scatter's own backward is opaque to autograd: second derivatives through it would silently vanish."""

    @staticmethod
    def forward(ctx, src: Tensor, row_ptr: Tensor) -> Tensor:
        ctx.row_ptr, ctx.n = row_ptr, src.shape[0]
        return segment_csr(src, row_ptr, reduce="sum")

    @staticmethod
    def backward(ctx, grad: Tensor):
        return torch.repeat_interleave(grad, ctx.row_ptr.diff(), dim=0, output_size=ctx.n), None


@torch.jit.unused
def _segment_csr(src: Tensor, row_ptr: Tensor) -> Tensor:
    return _SegmentCSR.apply(src, row_ptr)


def segment_sum(src: Tensor, row_ptr: Tensor) -> Tensor:
    """[E, ...], CSR row_ptr [n + 1] -> [n, ...], row j being the sum of src[row_ptr[j]:row_ptr[j + 1]]."""
    if not torch.jit.is_scripting():
        if HAS_SCATTER:
            return _segment_csr(src, row_ptr)
    n = row_ptr.shape[0] - 1
    receiver = torch.repeat_interleave(torch.arange(n, device=src.device), row_ptr[1:] - row_ptr[:-1], output_size=src.shape[0])
    out = torch.zeros([n] + list(src.shape[1:]), dtype=src.dtype, device=src.device)
    return out.index_add(0, receiver, src)
