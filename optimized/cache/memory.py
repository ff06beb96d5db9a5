"""Main memory for the cache: reserved whole, taken page by page as blocks are first written."""

from __future__ import annotations

import math
import mmap
import sys

import torch

from tandem.errors import CheckpointError

# Python names it from 3.13 on; without it the system refuses what is more than memory and swap together
_NORESERVE = getattr(mmap, "MAP_NORESERVE", 0x4000 if sys.platform == "linux" else 0)


def reserve(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """Zeros that take memory only where they are written to.

    Raises:
        CheckpointError: the system does not have so many addresses.
    """
    size = math.prod(shape) * dtype.itemsize
    if size == 0:
        return torch.zeros(shape, dtype=dtype)
    try:
        memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _NORESERVE)
    except (OSError, OverflowError, ValueError) as error:
        gib = size / (1 << 30)
        message = f"{gib:.0f} GiB of addresses cannot be reserved for the KV cache; try less --kv-cache-memory-bytes"
        raise CheckpointError(message) from error
    return torch.frombuffer(memory, dtype=dtype).view(shape)
