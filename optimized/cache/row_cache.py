"""The KV cache on a CPU: contiguous per sequence, because there the layout decides the speed of attention.

Each running sequence owns a row of [C] tokens in every layer, which attention reads in place. Blocks of the pool keep
copies of full, findable stretches of it: a sequence that starts with a cached prefix copies its blocks into its row.
Memory of the rows is reserved but not touched until it is used, and given back when a long sequence leaves its row.
"""

from __future__ import annotations

import ctypes
import math
import mmap

import torch

from optimized.cache.attention_cpu import attend, plan
from optimized.cache.kv_cache import Attend
from optimized.layers.rotary import Table
from optimized.runner.batch import Batch
from tandem.errors import CheckpointError
from tandem.models.model_config import ModelConfig

KEEP_TOKENS = 512  # of a row that its next owner will need in any case
_LIBC = ctypes.CDLL(None, use_errno=True)


class RowCache:
    """Keys and values of all layers.

    Args:
        config: sizes.
        num_rows: sequences at once.
        capacity: tokens of a row.
        num_blocks, block_size: of the pool whose contents are kept; ``num_blocks=0`` keeps none.
        dtype: of keys and values.
        tables: each layer's rotation.

    Attributes:
        layers: for each layer the keys and the values, each [num_rows, H_kv, capacity, d].
    """

    def __init__(
        self,
        config: ModelConfig,
        num_rows: int,
        capacity: int,
        num_blocks: int,
        block_size: int,
        dtype: torch.dtype,
        tables: list[Table],
    ) -> None:
        heads, d, layers = config.num_kv_heads, config.head_dim, config.num_layers
        self.block_size = block_size
        self._config, self._capacity, self._tables = config, capacity, tables
        shape = (layers, 2, num_rows, heads, capacity, d)
        self._rows = _reserve(shape, dtype)
        self._blocks = _reserve((num_blocks, layers, 2, heads, block_size, d), dtype)
        self.layers = [(self._rows[layer, 0], self._rows[layer, 1]) for layer in range(layers)]

    def load(self, row: int, block_ids: list[int]) -> None:
        """Begin ``row`` with copies of cached blocks."""
        size = self.block_size
        for i, block in enumerate(block_ids):
            self._rows[:, :, row, :, i * size : (i + 1) * size] = self._blocks[block]

    def save(self, row: int, place: int, block_id: int) -> None:
        """Keep the row's stretch number ``place`` in a block."""
        size = self.block_size
        self._blocks[block_id] = self._rows[:, :, row, :, place * size : (place + 1) * size]

    def release(self, row: int, num_tokens: int) -> None:
        """The row's owner, who wrote so many tokens, has left: memory that the next one may not need is given back.

        Values are wiped: attention multiplies even those that it must not see, by zero, and zero times a number that
        is none would spoil the next owner's answers.
        """
        self._rows[:, 1, row, :, :num_tokens] = 0
        if num_tokens > KEEP_TOKENS:
            for head in self._rows[:, :, row, :, KEEP_TOKENS:].flatten(0, 2):
                _give_back(head)

    def attention(self, batch: Batch) -> Attend:
        """See ``KVCache``."""
        prepared = plan(self._config, self._tables, batch, self._capacity, self._rows.dtype)

        def attend_layer(layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
            return attend(self._config, layer, q, k, v, self.layers[layer], batch, prepared)

        return attend_layer


def _reserve(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """Zeros that take memory only where they are written to."""
    size = math.prod(shape) * dtype.itemsize
    if size == 0:
        return torch.zeros(shape, dtype=dtype)
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0)
    try:
        memory = mmap.mmap(-1, size, flags=flags)
    except (OSError, OverflowError) as error:
        gib = size / (1 << 30)
        message = f"{gib:.0f} GiB of addresses cannot be reserved for the KV cache; try a smaller --max-model-len"
        raise CheckpointError(message) from error
    return torch.frombuffer(memory, dtype=dtype).view(shape)


def _give_back(x: torch.Tensor) -> None:
    """Return the whole pages under a contiguous tensor to the system; they read as zeros afterwards."""
    if not hasattr(mmap, "MADV_DONTNEED"):
        return
    page = mmap.PAGESIZE
    start = -(-x.data_ptr() // page) * page
    end = (x.data_ptr() + x.numel() * x.itemsize) // page * page
    if end > start:
        _LIBC.madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), mmap.MADV_DONTNEED)
