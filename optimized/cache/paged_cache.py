"""The KV cache: the pool's blocks, found through block tables, on either device.

A layer's keys and its values are each ``[num_blocks, H_kv, block_size, d]``. Sequences that begin alike have the same
blocks in their tables and copy nothing; what leaves a row leaves it as it is.

Letters in shapes: S sequences of a step, T tokens, H query heads, H_kv key-value heads, d head size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from optimized.cache.kv_cache import Attend
from optimized.cache.memory import reserve
from optimized.kernels.gathered_attention import Form
from optimized.kernels.native import Library
from optimized.kernels.paged_attention import (
    Launch,
    Queries,
    QueryBlocks,
    choose_num_splits,
    paged_attention,
    query_blocks,
)
from optimized.kernels.rope_cache import Places, rotate_and_store
from optimized.layers.rotary import Table
from optimized.runner.batch import Batch
from optimized.runner.packing import Layout, buffer_for, views
from tandem.models.model_config import Mixer, ModelConfig

WIDTH = 16  # block tables are a multiple of so many blocks wide: Triton compiles a variant for other strides
HOST = torch.device("cpu")
Arrays = Sequence[torch.Tensor]  # token ids, positions, slots, starts, contexts, tables
_NUM_ARRAYS = 6


@dataclass(frozen=True, slots=True)
class CacheStep:
    """A step as the kernels read it.

    Attributes:
        token_ids: int64 [T].
        places: of the tokens; slot -1 for those that only fill a captured graph up.
        queries: what each token sees.
        buffer, layout: see ``packing``: all tensors are views of one buffer, so that one copy takes them to the
            device; None if they need not be copied.
    """

    token_ids: torch.Tensor
    places: Places
    queries: Queries
    buffer: torch.Tensor | None = None
    layout: Layout = ()

    def to(self, device: torch.device) -> CacheStep:
        """The step on ``device``, in one copy that nothing waits for; itself if it is there."""
        if self.buffer is None or self.buffer.device == device:
            return self
        return _views(self.buffer.to(device, non_blocking=True), self.layout, self.queries.launches)

    def copy_into(self, other: CacheStep) -> None:
        """Replace a step of the same layout, wherever it is, in one copy that nothing waits for."""
        assert self.buffer is not None and other.buffer is not None
        other.buffer.copy_(self.buffer, non_blocking=True)


class KeyValues:
    """What an attention layer remembers: keys and values of all tokens.

    Attributes:
        tensors: the keys and the values, each [num_blocks, H_kv, block_size, d].
    """

    def __init__(
        self,
        config: ModelConfig,
        layer: int,
        num_blocks: int,
        block_size: int,
        dtype: torch.dtype,
        table: Table,
        library: Library,
    ) -> None:
        shape, device = (num_blocks, config.num_kv_heads, block_size, config.head_dim), table[0].device
        self.tensors = _allocate(shape, dtype, device), _allocate(shape, dtype, device)
        self._form = Form(config.attention_scale, config.windows[layer], config.attention_softcap)
        self._table, self._library = table, library

    @staticmethod
    def bytes_per_token(config: ModelConfig, itemsize: int) -> int:
        """That one layer takes."""
        return 2 * config.num_kv_heads * config.head_dim * itemsize

    def attend(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, places: Places, queries: Queries
    ) -> torch.Tensor:
        """Rotate queries and keys, write keys and values, attend: [T, H · d]."""
        q = rotate_and_store(q, k, v, self._table, places, self.tensors, self._library)
        return paged_attention(q, self.tensors, queries, self._form, self._library).flatten(1)


LAYERS: dict[Mixer, type[KeyValues]] = {"attention": KeyValues}  # of the same kind as the layer's mixer


def bytes_per_token(config: ModelConfig, itemsize: int) -> int:
    """That all layers together take."""
    return sum(LAYERS[kind].bytes_per_token(config, itemsize) for kind in config.mixers)


class PagedCache:
    """What all layers remember.

    Args:
        config: sizes.
        max_model_len: tokens of a sequence at most.
        num_blocks, block_size: of the pool.
        dtype: of keys and values.
        tables: each layer's rotation; the cache is where they are.
        library: the CPU kernels.
        plans_launches: lay launches out for Triton.

    Attributes:
        layers: by the kind of their mixers. Nothing reads what no sequence has written.
    """

    def __init__(
        self,
        config: ModelConfig,
        max_model_len: int,
        num_blocks: int,
        block_size: int,
        dtype: torch.dtype,
        tables: list[Table],
        library: Library,
        plans_launches: bool,
    ) -> None:
        self.block_size = block_size
        self.device = tables[0][0].device
        self._config, self._max_model_len, self._plans_launches = config, max_model_len, plans_launches
        self.layers = [
            LAYERS[kind](config, layer, num_blocks, block_size, dtype, tables[layer], library)
            for layer, kind in enumerate(config.mixers)
        ]
        self._num_multiprocessors = _num_multiprocessors(self.device)

    @property
    def max_blocks(self) -> int:
        """Of a sequence: how wide block tables have to be."""
        return self._width(self._max_model_len)

    def attend(self, step: CacheStep) -> Attend:
        """What the layers call for a step that is on the cache's device. It writes its keys and values first."""

        queries = replace(step.queries)  # whose tensors a captured step may have written anew

        def attend_layer(layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
            return self.layers[layer].attend(q, k, v, step.places, queries)

        return attend_layer

    def lay_out(self, batch: Batch, block_tables: torch.Tensor, size: int | None = None) -> CacheStep:
        """A step on the host.

        Args:
            batch: on the host.
            block_tables: int32 [rows, ≥ max_blocks], those of all rows, on the host.
            size: of a captured graph, for a batch of at most so many decodes and nothing else: whatever depends on
                the batch gets the size that it can have at most. Rows that fill it up write nowhere and read nothing.
        """
        chunks, block_size = batch.chunks, self.block_size
        contexts = [chunk.context for chunk in chunks]
        rows = np.array([chunk.row for chunk in chunks], dtype=np.int64)
        page, place = np.divmod(batch.positions.numpy(), block_size)
        tables = block_tables.numpy()
        arrays = (
            batch.token_ids,
            batch.positions,
            torch.from_numpy(tables[batch.rows.numpy(), page].astype(np.int64) * block_size + place),
            torch.tensor([*(chunk.start for chunk in chunks), batch.num_tokens], dtype=torch.int32),
            torch.tensor(contexts, dtype=torch.int32),
            torch.from_numpy(tables[rows, : self._width(max(contexts, default=0))]),
        )
        launches = self._launches(batch, size) if self._plans_launches else ()
        if size is None and self.device.type == "cpu":
            return _step(arrays, launches)
        return self._packed(arrays, launches, size)

    def _packed(self, arrays: Arrays, launches: tuple[Launch, ...], size: int | None) -> CacheStep:
        """The same in one buffer, filled up to ``size`` rows."""
        num_tokens, (count, width) = len(arrays[0]), arrays[-1].shape
        if size is not None:
            num_rows, num_tokens_max, width = size, size, self.max_blocks
        else:
            num_rows, num_tokens_max = count, num_tokens
        layout = [
            *[(torch.int64, (num_tokens_max,))] * 3,
            (torch.int32, (num_rows + 1,)),
            (torch.int32, (num_rows,)),
            (torch.int32, (num_rows, width)),
            *((torch.int32, tuple(launch.blocks.table.shape)) for launch in launches),
        ]
        buffer = buffer_for(layout, HOST, pinned=self.device.type == "cuda")
        *places, tables = views(buffer, layout)[: len(arrays)]
        for x, values, filler in zip(places, arrays[:-1], (0, 0, -1, num_tokens, 0), strict=True):
            x[: len(values)] = values
            x[len(values) :] = filler
        tables[:count, : arrays[-1].shape[1]] = arrays[-1]
        step = _views(buffer, layout, launches)
        for launch, filled in zip(launches, step.queries.launches, strict=True):
            filled.blocks.table.copy_(launch.blocks.table)
        return step

    def _launches(self, batch: Batch, size: int | None) -> tuple[Launch, ...]:
        """A launch for decodes and one for longer chunks, with tables of their own on the host."""
        count, group = batch.num_decodes, self._config.num_heads // self._config.num_kv_heads
        launches = []
        if count or size is not None:
            blocks = query_blocks([1] * count, group, size=size)
            decodes = batch.chunks[:count]
            longest = self._max_model_len if size is not None else max(chunk.context for chunk in decodes)
            splits = choose_num_splits(blocks, self._config.num_kv_heads, longest, self._num_multiprocessors)
            launches.append(Launch(blocks, count if size is None else size, splits))
        if not batch.is_decode:
            lengths = [0] * count + [chunk.num_tokens for chunk in batch.chunks[count:]]
            launches.append(Launch(query_blocks(lengths, group), batch.num_tokens, 1))
        return tuple(launches)

    def _width(self, num_tokens: int) -> int:
        """Of the block tables of sequences of so many tokens."""
        num_blocks = -(-num_tokens // self.block_size)
        return max(1, -(-num_blocks // WIDTH)) * WIDTH


def _step(
    arrays: Arrays, launches: tuple[Launch, ...], buffer: torch.Tensor | None = None, layout: Layout = ()
) -> CacheStep:
    token_ids, positions, slots, starts, contexts, tables = arrays
    return CacheStep(token_ids, Places(positions, slots), Queries(starts, contexts, tables, launches), buffer, layout)


def _views(buffer: torch.Tensor, layout: Layout, launches: tuple[Launch, ...]) -> CacheStep:
    """The step that lies in ``buffer``, with launches like these."""
    arrays = views(buffer, layout)
    arrays, tables = arrays[:_NUM_ARRAYS], arrays[_NUM_ARRAYS:]
    own = tuple(
        launch._replace(blocks=QueryBlocks(table, launch.blocks.num_rows, launch.blocks.group))
        for launch, table in zip(launches, tables, strict=True)
    )
    return _step(arrays, own, buffer, layout)


def _allocate(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    return reserve(shape, dtype) if device.type == "cpu" else torch.empty(shape, dtype=dtype, device=device)


def _num_multiprocessors(device: torch.device) -> int:
    """That programs can keep busy; 0 where there are none, which makes nothing worth splitting."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 0
