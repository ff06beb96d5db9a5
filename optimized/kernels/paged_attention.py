"""Causal attention of a step's queries over the paged cache: prefill chunks and decodes in one call.

A layer's keys and its values are each ``[num_blocks, H_kv, block_size, d]``: a head's tokens of a block lie beside
each other, so reading them is one contiguous piece, and a block is one to copy or to export.

In Triton queries are cut into blocks of ``BLOCK_M`` rows. The G query heads that share a key-value head are rows of
one block beside each other, so a key is read once for all of them: row m is token m // G, head m % G. The softmax is
the online one (Milakov and Gimelshein, "Online normalizer calculation for softmax", 2018) as in FlashAttention (Dao
et al., 2022), in float32 and base 2. Where few programs would leave the chip empty, the keys are split too, and a
second kernel combines the parts (Dao et al., "Flash-Decoding for long-context inference", 2023). On a CPU single
queries and short contexts take ``paged_attention.cpp``, and long chunks products of matrices.

Letters in shapes: S sequences, T tokens of the step, H query heads, H_kv key-value heads, d head size.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import NamedTuple

import torch

from optimized.kernels.compat import ceil_div, jit, next_power_of_2, tl, use_triton
from optimized.kernels.gathered_attention import Form, attend_chunk, attend_singles
from optimized.kernels.native import FLOAT, INT, POINTER, TYPES, Library, declare

SPLIT_SIZE = 256  # keys of a split: fixed, so that its sums do not depend on the batch; a multiple of every BLOCK_N
DECODE_ROWS, PREFILL_ROWS = 16, 64  # BLOCK_M
LONG_CONTEXT = 768  # tokens from which on products of matrices beat the CPU kernel, query by query, by half at 1024
LONG_CHUNK = 16  # queries that make it worth while to gather a sequence's keys for them
LOG2_E = math.log2(math.e)
_NATIVE = declare(
    "tandem_paged_attention", INT, *[POINTER] * 6, *[INT] * 6, *[FLOAT] * 2, INT, POINTER
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class QueryBlocks:
    """What each program works on; the same for all layers of a step.

    Attributes:
        table: int32 [B, 2] on the device: the sequence, and the first of its tokens in this step. Sequence -1 is
            unused: a captured graph is replayed over a table of fixed length.
        num_rows: of a block (BLOCK_M): tokens times the query heads of one key-value head.
        group: query heads of a key-value head.
    """

    table: torch.Tensor
    num_rows: int
    group: int

    @property
    def tokens(self) -> int:
        """Of a block."""
        return self.num_rows // self.group


class Launch(NamedTuple):
    """One launch in Triton.

    Attributes:
        blocks: what its programs work on.
        num_tokens: it needs the step's first so many tokens.
        num_splits: parts of the keys, from ``choose_num_splits``; more than one must cover the longest context in
            parts of ``SPLIT_SIZE``.
    """

    blocks: QueryBlocks
    num_tokens: int
    num_splits: int


class Span(NamedTuple):
    """What a CPU computes together: sequences [first, end), which have the step's tokens [start, stop). Either one
    chunk, by products of matrices, or tokens each by itself.

    Attributes:
        arrays: what the CPU kernel is given to find them by, from ``starts`` to their number.
    """

    first: int
    end: int
    start: int
    stop: int
    is_chunk: bool
    arrays: tuple[int, ...] = ()


@dataclass(frozen=True)
class Queries:
    """A step's tokens and what each sees: the same for all layers.

    Attributes:
        starts: int32 [S + 1]; sequence s has the tokens ``[starts[s], starts[s + 1])``.
        contexts: int32 [S], tokens of each sequence in the cache, those of the step included.
        tables: int32 [S, max_blocks], the blocks of each sequence in order. Entries that no token of the step sees
            (behind the context, or before the window) are never read.
        launches: for Triton. Tokens outside all their blocks are left as they are.
    """

    starts: torch.Tensor
    contexts: torch.Tensor
    tables: torch.Tensor
    launches: tuple[Launch, ...] = ()

    @cached_property
    def spans(self) -> list[Span]:
        """For a CPU with its kernel."""
        return [span._replace(arrays=self._arrays(span)) for span in self._spans(LONG_CHUNK, LONG_CONTEXT)]

    @cached_property
    def spans_without_kernel(self) -> list[Span]:
        """For a CPU without."""
        return self._spans(2, 0)

    def _arrays(self, span: Span) -> tuple[int, ...]:
        parts = self.starts[span.first :], self.contexts[span.first :], self.tables[span.first :]
        return (*(x.data_ptr() for x in parts), self.tables.stride(0), span.end - span.first)

    def _spans(self, long_chunk: int, long_context: int) -> list[Span]:
        starts, contexts = self.starts.tolist(), self.contexts.tolist()
        lengths = [stop - start for start, stop in pairwise(starts)]
        spans: list[Span] = []
        first = 0  # of the sequences that are in no span yet
        apart = [i for i, n in enumerate(lengths) if n == 0 or (n >= long_chunk and contexts[i] > long_context)]
        for i in (*apart, len(lengths)):
            if first < i:
                spans.append(Span(first, i, starts[first], starts[i], False))
            if i < len(lengths) and lengths[i]:
                spans.append(Span(i, i + 1, starts[i], starts[i + 1], True))
            first = i + 1
        return spans


def query_blocks(
    query_lens: list[int], group: int, device: torch.device | str = "cpu", size: int | None = None
) -> QueryBlocks:
    """Cut the step's queries into blocks.

    Args:
        query_lens: tokens of each sequence in this step; 0 for a sequence that does not take part.
        group: H / H_kv.
        size: length of the table; None makes it as long as it need be.

    Raises:
        ValueError: if ``size`` is too small.
    """
    short = max(query_lens, default=0) * group <= DECODE_ROWS
    rows = max(DECODE_ROWS if short else PREFILL_ROWS, next_power_of_2(group))
    step = rows // group
    entries = [(i, first) for i, length in enumerate(query_lens) for first in range(0, length, step)]
    size = len(entries) if size is None else size
    if len(entries) > size:
        raise ValueError(f"{len(entries)} query blocks do not fit into a table of {size}")
    entries += [(-1, 0)] * (size - len(entries))
    table = torch.tensor(entries, dtype=torch.int32).view(size, 2)
    return QueryBlocks(table.to(device, non_blocking=True), rows, group)


def choose_num_splits(blocks: QueryBlocks, num_kv_heads: int, max_context: int, num_multiprocessors: int) -> int:
    """Into how many parts the keys are cut: one, unless blocks of decodes × heads leave multiprocessors idle."""
    if blocks.num_rows >= PREFILL_ROWS or len(blocks.table) * num_kv_heads >= num_multiprocessors:
        return 1
    return max(1, ceil_div(max_context, SPLIT_SIZE))


def paged_attention(
    q: torch.Tensor, cache: tuple[torch.Tensor, torch.Tensor], queries: Queries, form: Form, library: Library
) -> torch.Tensor:
    """softmax(scale · q kᵀ) v, each token over its sequence up to itself.

    Args:
        q: [T, H, d], rotated; channels contiguous.
        cache: a layer's keys and values, each [num_blocks, H_kv, block_size, d], with the step's tokens written.
        queries: where the tokens stand.
        form: scale, window and cap.
        library: the CPU kernels.

    Returns:
        [T, H, d], contiguous.
    """
    o = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    if use_triton(q):
        for launch in queries.launches:
            _launch(q, cache, o, queries, form, launch)
    else:
        is_dense = q.is_contiguous() and cache[0].is_contiguous() and cache[1].is_contiguous()
        _on_cpu(library.find(_NATIVE, q.dtype) if is_dense else None, q, cache, o, queries, form)
    return o


def _on_cpu(
    run: Callable[..., None] | None,
    q: torch.Tensor,
    cache: tuple[torch.Tensor, torch.Tensor],
    o: torch.Tensor,
    queries: Queries,
    form: Form,
) -> None:
    """Sequences by the kernel ``run`` up to where products of matrices are faster; without it, all by products."""
    keys, values = cache
    for span in queries.spans_without_kernel if run is None else queries.spans:
        if run is not None and not span.is_chunk:
            run(
                TYPES[q.dtype], q.data_ptr(), keys.data_ptr(), values.data_ptr(), *span.arrays, q.shape[1],
                *keys.shape[1:], form.scale, form.softcap or 0.0, form.window or 0, o.data_ptr(),
            )  # fmt: skip
            continue
        part, rows = slice(span.first, span.end), slice(span.start, span.stop)
        if span.is_chunk:
            context = int(queries.contexts[span.first])
            attend_chunk(q[rows], cache, queries.tables[span.first], context, form, o[rows])
        else:
            attend_singles(q[rows], cache, queries.tables[part], queries.contexts[part].tolist(), form, o[rows])


def configuration(head_size: int, dtype: torch.dtype, rows: int) -> tuple[int, int, int]:
    """BLOCK_N, warps and pipeline stages.

    The block table is read a stage before the keys it points to, so three stages keep one tile of keys and values on
    its way and five keep two, which decodes need to fill the memory bus with few programs. 32-bit products use no
    tensor cores, and their tiles are twice as large in shared memory.
    """
    if dtype == torch.float32:
        return (32, 4, 2) if head_size <= 128 else (16, 8, 2)
    if rows < PREFILL_ROWS:
        return (64, 4, 5) if head_size <= 128 else (32, 4, 5)
    return (64, 4, 3) if head_size <= 128 else (32, 8, 3)


def _launch(
    q: torch.Tensor,
    cache: tuple[torch.Tensor, torch.Tensor],
    o: torch.Tensor,
    queries: Queries,
    form: Form,
    launch: Launch,
) -> None:
    (keys, values), blocks, num_splits = cache, launch.blocks, launch.num_splits
    (_, num_heads, head_size), (num_kv_heads, block_size) = q.shape, keys.shape[1:3]
    block_d = max(16, next_power_of_2(head_size))
    block_n, num_warps, num_stages = configuration(head_size, q.dtype, blocks.num_rows)
    scale, softcap, window = form.scale, form.softcap, form.window or 0
    is_split = num_splits > 1
    part = o
    part_lse = o
    if is_split:
        sizes = (launch.num_tokens, num_heads, num_splits)
        part = torch.empty((*sizes, head_size), dtype=torch.float32, device=q.device)
        part_lse = torch.empty(sizes, dtype=torch.float32, device=q.device)
    _attend_kernel[(len(blocks.table), num_kv_heads, num_splits)](
        q,
        keys,
        values,
        part,
        part_lse,
        blocks.table,
        queries.starts,
        queries.contexts,
        queries.tables,
        scale * LOG2_E if softcap is None else 2 * scale / softcap * LOG2_E,
        (softcap or 0.0) * LOG2_E,
        *q.stride()[:2],
        *keys.stride()[:3],
        *values.stride()[:3],
        queries.tables.stride(0),
        num_heads,
        num_splits,
        HEAD_SIZE=head_size,
        GROUP=blocks.group,
        PAGE=block_size,
        WINDOW=window,
        HAS_SOFTCAP=softcap is not None,
        SPLIT=SPLIT_SIZE if is_split else 0,
        PRECISION="ieee" if q.dtype == torch.float32 else "tf32",
        BLOCK_M=blocks.num_rows,
        BLOCK_N=block_n,
        BLOCK_D=block_d,
        num_warps=num_warps,
        num_stages=num_stages,
    )
    if is_split:
        _combine_kernel[(len(blocks.table) * blocks.tokens, num_heads)](
            part,
            part_lse,
            o,
            blocks.table,
            queries.starts,
            queries.contexts,
            num_heads,
            num_splits,
            HEAD_SIZE=head_size,
            TOKENS=blocks.tokens,
            WINDOW=window,
            SPLIT=SPLIT_SIZE,
            BLOCK_S=16,
            BLOCK_D=block_d,
            num_warps=4,
        )


@jit("num_splits")
def _attend_kernel(  # type: ignore[no-untyped-def]
    p_q,
    p_k,
    p_v,
    p_o,  # [T, H, d]; of a split [T, H, num_splits, d]
    p_lse,  # of a split [T, H, num_splits], in base 2
    p_table,
    p_starts,
    p_contexts,
    p_block_tables,
    scale,  # of q kᵀ to scores in base 2; with a cap, to twice what tanh is taken of, in base 2
    softcap,  # in base 2
    stride_q_token,
    stride_q_head,
    stride_k_block,
    stride_k_head,
    stride_k_slot,
    stride_v_block,
    stride_v_head,
    stride_v_slot,
    stride_tables,
    num_heads,
    num_splits,
    HEAD_SIZE: tl.constexpr,
    GROUP: tl.constexpr,
    PAGE: tl.constexpr,
    WINDOW: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    SPLIT: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    i_block, i_kv, i_split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    i_sequence = tl.load(p_table + 2 * i_block)
    if i_sequence < 0:
        return
    i_first = tl.load(p_table + 2 * i_block + 1)  # of the block's tokens, within the sequence's tokens of the step
    i_start = tl.load(p_starts + i_sequence)
    query_len = tl.load(p_starts + i_sequence + 1) - i_start
    computed = tl.load(p_contexts + i_sequence) - query_len  # tokens before the step

    low = 0  # keys [low, high) are seen by some row
    high = computed + tl.minimum(i_first + BLOCK_M // GROUP, query_len)
    if WINDOW:
        low = tl.maximum(low, computed + i_first - WINDOW + 1)
    if SPLIT:
        low = tl.maximum(low, i_split * SPLIT)
        high = tl.minimum(high, (i_split + 1) * SPLIT)
        if low >= high:
            return

    o_m, o_n, o_d = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_D)
    i_token = i_first + o_m // GROUP
    i_head = i_kv * GROUP + o_m % GROUP
    i_position = computed + i_token
    m_m = (o_m < BLOCK_M // GROUP * GROUP) & (i_token < query_len)
    m_d = o_d < HEAD_SIZE
    o_row = (i_start + i_token).to(tl.int64)
    p_q += o_row[:, None] * stride_q_token + i_head[:, None] * stride_q_head + o_d[None, :]
    p_k += i_kv * stride_k_head + o_d[:, None]
    p_v += i_kv * stride_v_head + o_d[None, :]
    p_block_tables += i_sequence.to(tl.int64) * stride_tables

    b_q = tl.load(p_q, mask=m_m[:, None] & m_d[None, :], other=0.0)
    b_max = tl.full([BLOCK_M], float("-inf"), tl.float32)
    b_sum = tl.zeros([BLOCK_M], tl.float32)
    b_o = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    for o_start in range(low // BLOCK_N * BLOCK_N, high, BLOCK_N):
        i_key = o_start + o_n
        m_n = (i_key >= low) & (i_key < high)
        i_page = tl.load(p_block_tables + i_key // PAGE, mask=m_n, other=0).to(tl.int64)
        o_k = i_page * stride_k_block + i_key % PAGE * stride_k_slot
        o_v = i_page * stride_v_block + i_key % PAGE * stride_v_slot
        b_k = tl.load(p_k + o_k[None, :], mask=m_n[None, :] & m_d[:, None], other=0.0)
        b_s = tl.dot(b_q, b_k, input_precision=PRECISION) * scale
        if HAS_SOFTCAP:
            b_s = softcap * (1 - 2 / (1 + tl.exp2(b_s)))  # tanh
        m_s = m_n[None, :] & (i_key[None, :] <= i_position[:, None])
        if WINDOW:
            m_s = m_s & (i_position[:, None] - i_key[None, :] < WINDOW)
        b_s = tl.where(m_s, b_s, float("-inf"))

        b_new_max = tl.maximum(b_max, tl.max(b_s, axis=1))
        b_shift = tl.where(b_new_max == float("-inf"), 0.0, b_new_max)  # a row may see nothing yet
        b_p = tl.exp2(b_s - b_shift[:, None])
        b_rescale = tl.exp2(b_max - b_shift)
        b_sum = b_sum * b_rescale + tl.sum(b_p, axis=1)
        b_v = tl.load(p_v + o_v[:, None], mask=m_n[:, None] & m_d[None, :], other=0.0)
        b_o = tl.dot(b_p.to(b_v.dtype), b_v, b_o * b_rescale[:, None], input_precision=PRECISION)
        b_max = b_new_max

    o_head = o_row * num_heads + i_head
    b_sum = tl.where(b_sum == 0, 1.0, b_sum)  # of a row that sees nothing here, which the combination leaves out
    if SPLIT:
        o_head = o_head * num_splits + i_split
        tl.store(p_lse + o_head, b_max + tl.log2(b_sum), mask=m_m)
    b_o = b_o / b_sum[:, None]
    tl.store(p_o + o_head[:, None] * HEAD_SIZE + o_d[None, :], b_o, mask=m_m[:, None] & m_d[None, :])


@jit("num_splits")
def _combine_kernel(  # type: ignore[no-untyped-def]
    p_part,
    p_lse,
    p_o,
    p_table,
    p_starts,
    p_contexts,
    num_heads,
    num_splits,
    HEAD_SIZE: tl.constexpr,
    TOKENS: tl.constexpr,
    WINDOW: tl.constexpr,
    SPLIT: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    i_block, i_head = tl.program_id(0) // TOKENS, tl.program_id(1)
    i_sequence = tl.load(p_table + 2 * i_block)
    if i_sequence < 0:
        return
    i_token = tl.load(p_table + 2 * i_block + 1) + tl.program_id(0) % TOKENS
    i_start = tl.load(p_starts + i_sequence)
    query_len = tl.load(p_starts + i_sequence + 1) - i_start
    if i_token >= query_len:
        return
    i_position = tl.load(p_contexts + i_sequence) - query_len + i_token

    low = 0  # splits [low, high) hold a key that the token sees
    high = i_position // SPLIT + 1
    if WINDOW:
        low = tl.maximum(i_position - WINDOW + 1, 0) // SPLIT
    o_s, o_d = tl.arange(0, BLOCK_S), tl.arange(0, BLOCK_D)
    m_d = o_d < HEAD_SIZE
    o_head = (i_start + i_token).to(tl.int64) * num_heads + i_head
    p_lse += o_head * num_splits
    p_part += o_head * num_splits * HEAD_SIZE

    b_max = float("-inf")
    b_sum = 0.0
    b_o = tl.zeros([BLOCK_D], tl.float32)
    for o_start in range(low, high, BLOCK_S):
        i_split = o_start + o_s
        m_s = i_split < high
        b_lse = tl.load(p_lse + i_split, mask=m_s, other=float("-inf"))
        b_part = tl.load(
            p_part + i_split[:, None] * HEAD_SIZE + o_d[None, :], mask=m_s[:, None] & m_d[None, :], other=0.0
        )
        b_new_max = tl.maximum(b_max, tl.max(b_lse, axis=0))
        b_weight = tl.exp2(b_lse - b_new_max)
        b_rescale = tl.exp2(b_max - b_new_max)
        b_sum = b_sum * b_rescale + tl.sum(b_weight, axis=0)
        b_o = b_o * b_rescale + tl.sum(b_part * b_weight[:, None], axis=0)
        b_max = b_new_max
    tl.store(p_o + o_head * HEAD_SIZE + o_d, b_o / b_sum, mask=m_d)
