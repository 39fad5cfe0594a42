"""Data parallelism: the processes of `torchrun` share every batch and add up their
gradients, so that N of them train as one does.

Each rank computes the loss of its frames, divided by the number of frames (atoms) of the
whole batch. The sum of the gradients is then that of one process. Every rank clips it and
takes the optimiser's step alike. Gradients travel in a few flat buckets after
the backward pass: a force loss differentiates through autograd.grad, for which
DistributedDataParallel's hooks are not made. Counts and signals of the host go by gloo,
which notices at once when a rank has died; tensors by nccl where they are on GPUs.
"""

import os
import signal
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from race.data.batching import shares
from race.errors import RaceError

BUCKET = 1 << 24  # numbers per message; bounds the copy that a message needs


class Ranks:
    """This process among those that train together. Alone, every sum is what it was and
    nothing is sent.

    As a context it joins the group that torchrun's environment describes, and leaves it at the end.

    Args:
        device: train.device. With several ranks `cuda` is the GPU of the local rank.

    Raises:
        RaceError: the device is not there; later, from any collective, another rank has ended.
    """

    def __init__(self, device: str = "cpu"):
        self.rank, self.size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
        self.device = self._device(device)

    @property
    def first(self) -> bool:
        """The one that writes."""
        return self.rank == 0

    def __enter__(self) -> "Ranks":
        if self.size > 1:
            with self._together():
                dist.init_process_group(
                    "cpu:gloo,cuda:nccl" if self.device.type == "cuda" else "gloo"
                )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # Not after an error: the others may never come.
        if self.size > 1 and (kind is None or kind is SystemExit):
            dist.destroy_process_group()

    def share(self, cost: Sequence[int] | np.ndarray) -> list[int]:
        """The items of a batch that are this rank's, by their costs; every rank divides the
        batch in the same way.
        """
        return shares(cost, self.size)[self.rank]

    def total(self, numbers: Mapping[str, int]) -> dict[str, int]:
        """Sums over ranks of the same names."""
        if self.size == 1:
            return dict(numbers)
        sums = torch.tensor(list(numbers.values()), dtype=torch.int64)
        with self._together():
            dist.all_reduce(sums)
        return dict(zip(numbers, sums.tolist(), strict=True))

    def largest(self, number: int) -> int:
        """The largest over ranks."""
        if self.size == 1:
            return number
        value = torch.tensor([number])
        with self._together():
            dist.all_reduce(value, op=dist.ReduceOp.MAX)
        return int(value)

    def add(self, tensors: Iterable[Tensor]) -> None:
        """Sums over ranks, in place; the same tensors on every rank."""
        if self.size == 1:
            return
        with self._together():
            for bucket in _buckets(tensors):
                flat = torch.cat([tensor.reshape(-1) for tensor in bucket])
                dist.all_reduce(flat)
                for tensor, part in zip(
                    bucket, flat.split([tensor.numel() for tensor in bucket]), strict=True
                ):
                    tensor.copy_(part.view_as(tensor))

    def copy_first(self, tensors: Iterable[Tensor]) -> None:
        """Every rank's become those of the first, in place."""
        if self.size > 1:
            with self._together():
                for tensor in tensors:
                    dist.broadcast(tensor, 0)

    def gather(self, thing: Any) -> list[Any]:
        """The things of all ranks, in the order of ranks; they pickle, and are on the CPU."""
        things = [thing] * self.size
        if self.size > 1:
            with self._together():
                dist.all_gather_object(things, thing)
        return things

    def wait(self) -> None:
        """Waits until every rank is here."""
        self.largest(0)

    @contextmanager
    def _together(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:  # gloo, nccl and the store each have their own
            # torchrun notices the death, too, and sends SIGTERM, but this rank ends by itself,
            # after its message.
            with suppress(ValueError):  # not the main thread
                signal.signal(signal.SIGTERM, signal.SIG_IGN)
            raise RaceError(
                "another rank has ended or cannot be reached",
                where=f"rank {self.rank} of {self.size}",
                got=str(error).strip().splitlines()[0],
                remedy="its own message says why; then continue with --resume",
            ) from None

    def _device(self, name: str) -> torch.device:
        try:
            device = torch.device(name)
            if device.type == "cuda" and self.size > 1:
                if device.index is not None:
                    raise RaceError(
                        "one GPU for several ranks",
                        where="train.device",
                        expected="cuda: each rank takes its own",
                        got=name,
                    )
                device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
                torch.cuda.set_device(device)
            torch.empty(1, device=device)
        except (RuntimeError, AssertionError) as error:
            where = f"train.device, rank {self.rank}" if self.size > 1 else "train.device"
            raise RaceError(
                "device is not available", where=where, got=name, remedy=str(error).splitlines()[0]
            ) from None
        return device


def _buckets(tensors: Iterable[Tensor]) -> Iterator[list[Tensor]]:
    """Tensors of one dtype together, up to BUCKET numbers (or one tensor) at a time."""
    by_dtype: dict[torch.dtype, list[Tensor]] = {}
    for tensor in tensors:
        bucket = by_dtype.setdefault(tensor.dtype, [])
        if bucket and sum(other.numel() for other in bucket) + tensor.numel() > BUCKET:
            yield bucket
            bucket = by_dtype[tensor.dtype] = []
        bucket.append(tensor)
    yield from (bucket for bucket in by_dtype.values() if bucket)
