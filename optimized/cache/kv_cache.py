"""What the engine asks of the memory of keys and values, wherever it is and however it is laid out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch

from optimized.runner.batch import Batch

# (layer, q [T, H, d], k [T, H_kv, d], v [T, H_kv, d]) → [T, H · d]: rotate q and k, write k and v, attend
Attend = Callable[[int, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


class KVCache(Protocol):
    """Keys and values of all layers, and attention over them.

    The scheduler decides which row and which blocks a sequence has; the cache only holds what is in them.
    """

    def load(self, row: int, block_ids: list[int]) -> None:
        """A sequence starts in ``row``; its first tokens are those of these findable blocks."""

    def save(self, row: int, place: int, block_id: int) -> None:
        """The sequence in ``row`` has filled its block number ``place``: from now on findable as ``block_id``."""

    def release(self, row: int, num_tokens: int) -> None:
        """The sequence in ``row``, of which so many tokens were computed, has left it."""

    def attention(self, batch: Batch) -> Attend:
        """What the layers of one step call, in their order. It writes the step's keys and values first."""
