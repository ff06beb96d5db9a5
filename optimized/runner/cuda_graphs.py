"""Steps of decodes alone, captured once for each of some batch sizes and replayed: one launch instead of hundreds.

A graph reads its inputs where they were when it was captured, and all its sizes are fixed. So each size has buffers
of its own on the device; a batch is laid out for the next size above it, with rows that write nowhere and read
nothing, and one copy takes it into the buffers.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from typing import NamedTuple

import torch

from optimized.cache.paged_cache import PagedCache, PagedStep
from optimized.layers.model import Model
from optimized.runner.batch import Batch, Fill

Forward = Callable[[], torch.Tensor]  # reads persistent buffers, returns hidden states [size, D]
Capture = Callable[[Forward], Forward]  # makes one that is cheap to repeat


class _Captured(NamedTuple):
    step: PagedStep  # on the device
    replay: Forward


class CudaCapture:
    """Turns a computation on the GPU into one launch; captures share memory, so only the latest result is valid."""

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, forward: Forward) -> Forward:
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):  # kernels are compiled and libraries set up before anything is captured
            forward()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            x = forward()

        def replay() -> torch.Tensor:
            graph.replay()
            return x

        return replay


class DecodeGraphs:
    """The model's forward pass over batches of decodes.

    Args:
        model, cache: what is captured.
        sizes: rising; from ``batch_sizes``.
        capture: see ``Capture``.
    """

    def __init__(self, model: Model, cache: PagedCache, sizes: list[int], capture: Capture) -> None:
        self._cache = cache
        self._sizes = sizes
        self._captured = {}
        nothing = torch.zeros(0, dtype=torch.int64)
        for size in reversed(sizes):  # the memory of the largest serves all
            step = cache.lay_out(Batch(nothing, nothing, nothing, [], [], [], []), size).to(cache.device)
            self._captured[size] = _Captured(step, capture(_forward_over(model, cache, step)))

    def forward(self, batch: Batch, fill: Fill | None) -> torch.Tensor | None:
        """Hidden states [T, D], valid until the next call; None if no graph can compute this batch.

        Args:
            batch: on the host.
            fill: see ``Fill``.
        """
        if batch.prefills or batch.num_tokens > self._sizes[-1]:
            return None
        size = self._sizes[bisect_left(self._sizes, batch.num_tokens)]
        captured = self._captured[size]
        captured.step.buffer.copy_(self._cache.lay_out(batch, size).buffer, non_blocking=True)
        if fill is not None:
            fill.put_into(captured.step.token_ids)
        return captured.replay()[: batch.num_tokens]


def batch_sizes(most: int) -> list[int]:
    """1, 2, 4, then multiples of 8, and ``most`` itself: few rows in vain, and few graphs."""
    return sorted({size for size in (1, 2, 4, *range(8, most, 8)) if size < most} | {most})


def _forward_over(model: Model, cache: PagedCache, step: PagedStep) -> Forward:
    attend = cache.attend(step)
    return lambda: model.forward(step.token_ids, attend)
