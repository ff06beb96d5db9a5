"""The KV cache on a GPU: the pool's blocks themselves, found through block tables.

A layer's keys and its values are each ``[num_blocks, block_size, H_kv, d]``. A sequence that starts with a cached
prefix has the prefix's blocks in its table and copies nothing; what leaves a row leaves it as it is.

Letters in shapes: S sequences of a step, T tokens, H query heads, H_kv key-value heads, d head size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch

from optimized.cache.kv_cache import Attend
from optimized.kernels.paged_attention import QueryBlocks, choose_num_splits, paged_attention, query_blocks
from optimized.kernels.rope_cache import rotate_and_store
from optimized.layers.rotary import Table
from optimized.runner.batch import Batch, Chunk
from optimized.runner.packing import Layout, buffer_for, views
from tandem.models.model_config import ModelConfig

WIDTH = 16  # block tables are a multiple of so many blocks wide: Triton compiles a variant for other strides
HOST = torch.device("cpu")


class Launch(NamedTuple):
    """One launch of attention.

    Attributes:
        blocks: what its programs work on.
        num_tokens: it needs the step's first so many tokens.
        num_splits: parts of the keys.
    """

    blocks: QueryBlocks
    num_tokens: int
    num_splits: int


@dataclass(frozen=True, slots=True)
class PagedStep:
    """A step as the kernels read it. All tensors are views of one buffer, so that one copy takes them to the device.

    Attributes:
        buffer, layout: see ``packing``.
        token_ids, positions: int64 [T].
        slots: int64 [T], where each token's keys and values go; -1 for tokens that only fill a captured graph up.
        query_starts: int32 [S + 1], context_lens: int32 [S], block_tables: int32 [S, W]: see ``paged_attention``.
        launches: decodes, whose blocks of queries are short and whose keys may be split; then the longer chunks.
    """

    buffer: torch.Tensor
    layout: Layout
    token_ids: torch.Tensor
    positions: torch.Tensor
    slots: torch.Tensor
    query_starts: torch.Tensor
    context_lens: torch.Tensor
    block_tables: torch.Tensor
    launches: tuple[Launch, ...]

    def to(self, device: torch.device) -> PagedStep:
        """The step on ``device``, in one copy that nothing waits for; itself if it is there."""
        buffer = self.buffer.to(device, non_blocking=True)
        return self if buffer is self.buffer else _step(buffer, self.layout, self.launches)


class PagedCache:
    """Keys and values of all layers.

    Args:
        config: sizes.
        num_rows: sequences at once.
        capacity: tokens of a sequence.
        num_blocks, block_size: of the pool.
        dtype: of keys and values.
        tables: each layer's rotation; the cache is where they are.

    Attributes:
        layers: for each layer the keys and the values, each [num_blocks, block_size, H_kv, d]. Not initialized:
            nothing reads what no sequence has written.
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
        self.block_size = block_size
        self.device = tables[0][0].device
        self._config, self._capacity, self._tables = config, capacity, tables
        shape = (num_blocks, block_size, config.num_kv_heads, config.head_dim)
        self.layers = [
            (torch.empty(shape, dtype=dtype, device=self.device), torch.empty(shape, dtype=dtype, device=self.device))
            for _ in range(config.num_layers)
        ]
        # of each row on the host, kept from step to step: only what is new of it is written
        self._block_tables = torch.zeros((num_rows, self._width(capacity)), dtype=torch.int32)
        self._num_known = [0] * num_rows
        self._num_multiprocessors = _num_multiprocessors(self.device)

    def load(self, row: int, block_ids: list[int]) -> None:
        """The row's table begins anew; the blocks are in place."""
        self._num_known[row] = 0

    def save(self, row: int, place: int, block_id: int) -> None:
        """Nothing to do: the sequence has written into the block itself."""

    def release(self, row: int, num_tokens: int) -> None:
        """Nothing to do: blocks keep what is in them until the pool gives them away."""

    def attention(self, batch: Batch) -> Attend:
        """See ``KVCache``."""
        return self.attend(self.lay_out(batch).to(self.device))

    def attend(self, step: PagedStep) -> Attend:
        """What the layers call for a step that is on the cache's device."""
        c = self._config

        def attend_layer(layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
            keys, values = self.layers[layer]
            q = rotate_and_store(q, k, v, *self._tables[layer], step.positions, keys, values, step.slots)
            o = torch.empty_like(q)  # [T, H, d]
            for launch in step.launches:
                paged_attention(
                    q[: launch.num_tokens],
                    keys,
                    values,
                    query_starts=step.query_starts,
                    context_lens=step.context_lens,
                    block_tables=step.block_tables,
                    blocks=launch.blocks,
                    scale=c.attention_scale,
                    window=c.windows[layer],
                    softcap=c.attention_softcap,
                    num_splits=launch.num_splits,
                    out=o[: launch.num_tokens],
                )
            return o.flatten(1)

        return attend_layer

    def lay_out(self, batch: Batch, size: int | None = None) -> PagedStep:
        """A step on the host.

        Args:
            batch: on the host.
            size: of a captured graph, for a batch of at most so many decodes and nothing else: whatever depends on
                the batch gets the size that it can have at most. Rows that fill it up write nowhere and read nothing.
        """
        chunks = [*batch.decodes, *batch.prefills]
        for chunk in chunks:
            self._note_blocks(chunk)
        contexts = [chunk.context for chunk in chunks]
        launches = self._launches(batch, size)
        num_tokens, count = batch.num_tokens, len(chunks)
        width = self._width(max(contexts, default=0))
        step = _new_step(
            num_tokens if size is None else size,
            count if size is None else size,
            width if size is None else self._width(self._capacity),
            launches,
            HOST,
            pinned=self.device.type == "cuda",
        )
        for x, values, fill in (
            (step.token_ids, batch.token_ids, 0),
            (step.positions, batch.positions, 0),
            (step.slots, self._slots(batch), -1),
            (step.context_lens, torch.tensor(contexts, dtype=torch.int32), 0),
        ):
            x[: len(values)] = values
            x[len(values) :] = fill
        starts = torch.tensor([chunk.start for chunk in chunks], dtype=torch.int32)
        step.query_starts[:count] = starts
        step.query_starts[count:] = num_tokens
        rows = torch.tensor([chunk.row for chunk in chunks], dtype=torch.int64)
        step.block_tables[:count, :width] = self._block_tables[rows, :width]
        for launch, filled in zip(launches, step.launches, strict=True):
            filled.blocks.table.copy_(launch.blocks.table)
        return step

    def _note_blocks(self, chunk: Chunk) -> None:
        """Bring the row's table up to date: while a sequence runs, blocks are only added."""
        ids, known = chunk.sequence.block_ids, self._num_known[chunk.row]
        if len(ids) > known:
            self._block_tables[chunk.row, known : len(ids)] = torch.tensor(ids[known:], dtype=torch.int32)
            self._num_known[chunk.row] = len(ids)

    def _slots(self, batch: Batch) -> torch.Tensor:
        page = self._block_tables[batch.rows, batch.positions // self.block_size].long()
        return page * self.block_size + batch.positions % self.block_size

    def _launches(self, batch: Batch, size: int | None) -> list[Launch]:
        """A launch for decodes and one for longer chunks, with tables of their own on the host."""
        count, group = len(batch.decodes), self._config.num_heads // self._config.num_kv_heads
        launches = []
        if count or size is not None:
            blocks = query_blocks([1] * count, group, size=size)
            longest = self._capacity if size is not None else max(chunk.context for chunk in batch.decodes)
            splits = choose_num_splits(blocks, self._config.num_kv_heads, longest, self._num_multiprocessors)
            launches.append(Launch(blocks, count if size is None else size, splits))
        if batch.prefills:
            lengths = [0] * count + [chunk.num_tokens for chunk in batch.prefills]
            launches.append(Launch(query_blocks(lengths, group), batch.num_tokens, 1))
        return launches

    def _width(self, num_tokens: int) -> int:
        """Of the block tables of sequences of so many tokens."""
        num_blocks = -(-num_tokens // self.block_size)
        return max(1, -(-num_blocks // WIDTH)) * WIDTH


def _new_step(
    num_tokens: int,
    num_sequences: int,
    width: int,
    launches: list[Launch],
    device: torch.device,
    pinned: bool,
) -> PagedStep:
    """Room for a step; nothing of it is initialized."""
    layout = [
        *[(torch.int64, (num_tokens,))] * 3,
        (torch.int32, (num_sequences + 1,)),
        (torch.int32, (num_sequences,)),
        (torch.int32, (num_sequences, width)),
        *((torch.int32, tuple(launch.blocks.table.shape)) for launch in launches),
    ]
    return _step(buffer_for(layout, device, pinned), layout, tuple(launches))


def _step(buffer: torch.Tensor, layout: Layout, launches: tuple[Launch, ...]) -> PagedStep:
    """A step in ``buffer``, with launches like these."""
    token_ids, positions, slots, starts, contexts, block_tables, *tables = views(buffer, layout)
    own = tuple(
        launch._replace(blocks=QueryBlocks(table, launch.blocks.rows, launch.blocks.group))
        for launch, table in zip(launches, tables, strict=True)
    )
    return PagedStep(buffer, layout, token_ids, positions, slots, starts, contexts, block_tables, own)


def _num_multiprocessors(device: torch.device) -> int:
    """That programs can keep busy; 0 where there are none, which makes nothing worth splitting."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 0
