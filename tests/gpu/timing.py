"""How long an op takes on a device: replays of a captured graph on a GPU, plain calls on a CPU."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence

import torch

COLD_BYTES = 1 << 28  # what takes turns takes so much memory together: more than the second-level cache of any GPU
MOST_TURNS = 128
MEASURED_MS = 200
CPU_REPEATS = 3

Call = Callable[[], object]


def turns(num_bytes: int, dry: bool) -> int:
    """Over how many equal inputs calls that move so many bytes take turns, so that none finds its own in a cache."""
    return 1 if dry else min(MOST_TURNS, COLD_BYTES // num_bytes + 1)


def seconds(calls: Sequence[Call]) -> float:
    """Median time of one of several equal calls on inputs of their own, which take turns.

    On a GPU they are captured together and the graph is replayed, so that launches cost what they cost a captured
    step. Whatever is compiled or set up once happens before.
    """
    if torch.cuda.is_available():
        return _replayed(calls) / len(calls)
    calls[0]()
    taken = []
    for call in [*calls] * CPU_REPEATS:
        began = time.perf_counter()
        call()
        taken.append(time.perf_counter() - began)
    return statistics.median(taken)


def _replayed(calls: Sequence[Call]) -> float:
    """Median seconds of one replay of all."""
    from triton.testing import do_bench

    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for call in calls:
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    return float(do_bench(graph.replay, warmup=25, rep=MEASURED_MS, return_mode="median")) / 1000
