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

from optimized.cache.paged_cache import CacheStep, PagedCache
from optimized.layers.model import Model
from optimized.runner.batch import Batch, nothing

Forward = Callable[[], torch.Tensor]  # reads persistent buffers, returns hidden states [size, D]
Capture = Callable[[Forward], Forward]  # makes one that is cheap to repeat
PutTaken = Callable[[Batch, torch.Tensor], None]  # puts tokens that only the device knows into the step's


class _Captured(NamedTuple):
    step: CacheStep  # on the device
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
        block_tables: of all rows, on the host.
        sizes: rising; from ``batch_sizes``.
        capture: see ``Capture``.
    """

    def __init__(
        self, model: Model, cache: PagedCache, block_tables: torch.Tensor, sizes: list[int], capture: Capture
    ) -> None:
        self._cache, self._block_tables = cache, block_tables
        self._sizes = sizes
        self._captured = {}
        for size in reversed(sizes):  # the memory of the largest serves all
            step = cache.lay_out(nothing(), block_tables, size).to(cache.device)
            self._captured[size] = _Captured(step, capture(_forward_over(model, cache, step)))

    def forward(self, batch: Batch, put_taken: PutTaken) -> torch.Tensor | None:
        """Hidden states [T, D], valid until the next call; None if no graph can compute this batch.

        Args:
            batch: on the host.
            put_taken: called with the batch and the step's tokens on the device.
        """
        if not batch.is_decode or batch.num_tokens > self._sizes[-1]:
            return None
        size = self._sizes[bisect_left(self._sizes, batch.num_tokens)]
        captured = self._captured[size]
        self._cache.lay_out(batch, self._block_tables, size).copy_into(captured.step)
        put_taken(batch, captured.step.token_ids)
        return captured.replay()[: batch.num_tokens]


def batch_sizes(most: int) -> list[int]:
    """1, 2, 4, then multiples of 8, and ``most`` itself: little is computed for nothing, and graphs are few."""
    return sorted({size for size in (1, 2, 4, *range(8, most, 8)) if size < most} | {most})


def _forward_over(model: Model, cache: PagedCache, step: CacheStep) -> Forward:
    return lambda: model.forward(step.token_ids, cache.attend(step))
