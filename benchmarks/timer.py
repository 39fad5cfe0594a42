"""One clock for every microbenchmark: the median time of a call."""

import statistics
import time
from collections.abc import Callable

import torch


def seconds_per_call(
    call: Callable[[], object], seconds: float, device: str = "cpu", best: bool = False
) -> float:
    """Median (or the best) of three calls or more in about `seconds`, after one that warms up.

    On one CPU thread the clock is the processor time of this thread, which other work on
    the machine disturbs less than the wall clock; on a GPU it is the wall clock, the
    device being idle before and after each call.
    """
    on_cpu = not device.startswith("cuda")
    wait = (lambda: None) if on_cpu else torch.cuda.synchronize
    alone = on_cpu and torch.get_num_threads() == 1
    clock = time.thread_time if alone else time.perf_counter
    call()
    wait()
    each, begin = [], clock()
    while len(each) < 3 or clock() - begin < seconds:
        start = clock()
        call()
        wait()
        each.append(clock() - start)
    return min(each) if best else statistics.median(each)
