"""Small arrays from the host to the device in one copy, and back in one; nothing waits until values are asked for.

Arrays lie in one buffer one behind the other. Each begins at a multiple of 16 bytes, always: Triton compiles another
variant of a kernel for pointers that do not, and a step must not wait for a compiler.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

ALIGNMENT = 16

Layout = Sequence[tuple[torch.dtype, tuple[int, ...]]]


def buffer_for(layout: Layout, device: torch.device, pinned: bool = False) -> torch.Tensor:
    """Memory for the arrays, uint8 [n], not initialized. From ``pinned`` memory a GPU copies by itself."""
    size = sum(_size(dtype, shape) for dtype, shape in layout)
    return torch.empty(size, dtype=torch.uint8, device=device, pin_memory=pinned)


def views(buffer: torch.Tensor, layout: Layout) -> list[torch.Tensor]:
    """The arrays in ``buffer``."""
    arrays, start = [], 0
    for dtype, shape in layout:
        end = start + math.prod(shape) * dtype.itemsize
        arrays.append(buffer[start:end].view(dtype).view(shape))
        start += _size(dtype, shape)
    return arrays


def pack(arrays: Sequence[torch.Tensor], pinned: bool = False) -> tuple[torch.Tensor, Layout]:
    """Copies of arrays in one buffer on their device, and how they lie there."""
    layout = [(x.dtype, tuple(x.shape)) for x in arrays]
    buffer = buffer_for(layout, arrays[0].device if arrays else torch.device("cpu"), pinned)
    for place, x in zip(views(buffer, layout), arrays, strict=True):
        place.copy_(x)
    return buffer, layout


def to_device(arrays: Sequence[torch.Tensor], device: torch.device) -> list[torch.Tensor]:
    """Arrays of the host on ``device``; themselves if that is the host."""
    if device.type == "cpu":
        return list(arrays)
    buffer, layout = pack(arrays, pinned=device.type == "cuda")
    return views(buffer.to(device, non_blocking=True), layout)


class ToHost:
    """Arrays of one device on their way to the host."""

    def __init__(self, arrays: Sequence[torch.Tensor]) -> None:
        self._arrived: torch.cuda.Event | None = None
        self._arrays = arrays
        if arrays[0].device.type == "cuda":
            buffer, layout = pack(arrays)
            landed = buffer_for(layout, torch.device("cpu"), pinned=True).copy_(buffer, non_blocking=True)
            self._arrays = views(landed, layout)
            self._arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._arrived.record()

    def arrays(self) -> Sequence[torch.Tensor]:
        """Them, on the host, when they have arrived."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return self._arrays


def _size(dtype: torch.dtype, shape: tuple[int, ...]) -> int:
    """Bytes of an array and of the gap behind it."""
    return -(-math.prod(shape) * dtype.itemsize // ALIGNMENT) * ALIGNMENT
