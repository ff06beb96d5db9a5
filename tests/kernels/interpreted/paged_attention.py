"""Paged attention: mixed batches over a poisoned cache."""

from __future__ import annotations

from dataclasses import dataclass
from unittest import mock

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from optimized.kernels import paged_attention as op
from optimized.kernels.native import Library
from tests.kernels.interpreted.checks import assert_close, dtypes, kernel_and_twin


@dataclass(frozen=True)
class Case:
    """Sequences as (tokens of the step, context), and everything else that a launch depends on."""

    sequences: list[tuple[int, int]]
    num_kv_heads: int
    group: int
    head_size: int
    block_size: int
    dtype: torch.dtype
    window: int | None
    softcap: float | None
    is_split: bool
    joint: bool  # queries are a slice of the projection, keys and values halves of one tensor
    unused: int  # entries at the end of the table of query blocks
    seed: int


@st.composite
def cases(draw: st.DrawFn) -> Case:
    longest = draw(st.sampled_from([1, 1, 3, 40]))
    lengths = st.integers(0, longest)
    sequences = [
        (length, length + before)
        for length, before in draw(st.lists(st.tuples(lengths, st.integers(0, 150)), min_size=1, max_size=4))
        if length + before
    ] or [(1, 1)]
    return Case(
        sequences=sequences,
        num_kv_heads=draw(st.integers(1, 3)),
        group=draw(st.sampled_from([1, 2, 3, 4, 7, 20])),
        head_size=draw(st.sampled_from([16, 24, 64, 80, 128, 160])),
        block_size=draw(st.sampled_from([1, 4, 16, 32])),
        dtype=draw(dtypes),
        window=draw(st.sampled_from([None, None, 1, 7, 64])),
        softcap=draw(st.sampled_from([None, 2.0, 30.0])),
        is_split=draw(st.booleans()),
        joint=draw(st.booleans()),
        unused=draw(st.integers(0, 2)),
        seed=draw(st.integers(0, 1 << 30)),
    )


@given(cases())
def test_worst_row(c: Case) -> None:
    check(c)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("window", [None, 33])
def test_decode_beside_prefill(dtype: torch.dtype, window: int | None) -> None:
    sequences = [(1, 130), (70, 70), (0, 9), (1, 1), (33, 90)]
    check(Case(sequences, 2, 4, 64, 16, dtype, window, None, False, True, 1, 0))


@pytest.mark.parametrize("window", [None, 100])
def test_long_decode_in_splits(window: int | None) -> None:
    check(Case([(1, 1100), (1, 5), (1, 64), (1, 65)], 1, 2, 32, 16, torch.float32, window, None, True, False, 0, 0))


@pytest.mark.parametrize("is_split", [False, True])
def test_decodes_and_chunks_launched_apart(is_split: bool) -> None:
    sequences = [(1, 130), (1, 65), (70, 70), (33, 90)]
    check(Case(sequences, 2, 4, 64, 16, torch.float32, None, None, is_split, True, 1, 0), num_apart=2)


def check(c: Case, num_apart: int = 0) -> None:
    """Against float64; with the first ``num_apart`` sequences, decodes, in a launch of their own."""
    torch.manual_seed(c.seed)
    lengths = [length for length, _ in c.sequences]
    contexts = [context for _, context in c.sequences]
    num_heads, scale = c.num_kv_heads * c.group, c.head_size**-0.5
    q = torch.randn(sum(lengths), num_heads + 2 * c.num_kv_heads, c.head_size).to(c.dtype)[:, :num_heads]
    q = q if c.joint else q.contiguous()
    keys, values = ([torch.randn(n, c.num_kv_heads, c.head_size).to(c.dtype) for n in contexts] for _ in "kv")
    k_cache, v_cache, tables = fill_cache(c, keys, values)

    def launch(query_lens: list[int], is_split: bool) -> op.Launch:
        blocks = op.query_blocks(query_lens, c.group)
        blocks = op.query_blocks(query_lens, c.group, size=len(blocks.table) + c.unused)
        return op.Launch(blocks, sum(query_lens), max(2, -(-max(contexts) // 64)) if is_split else 1)

    def call() -> torch.Tensor:
        if num_apart:
            chunks = launch([0] * num_apart + lengths[num_apart:], False)
            launches = (launch([1] * num_apart, c.is_split), chunks._replace(num_tokens=sum(lengths)))
        else:
            launches = (launch(lengths, c.is_split),)
        starts = torch.tensor([0, *torch.tensor(lengths).cumsum(0).tolist()], dtype=torch.int32)
        queries = op.Queries(starts, torch.tensor(contexts, dtype=torch.int32), tables, launches)
        return op.paged_attention(q, (k_cache, v_cache), queries, op.Form(scale, c.window, c.softcap), Library())

    with mock.patch.object(op, "SPLIT_SIZE", 64):
        results = kernel_and_twin(op, call)
    oracle = expected(c, q, keys, values, scale)
    for result, what in zip(results, ("kernel", "twin"), strict=True):
        assert result.dtype == c.dtype and result.is_contiguous()
        assert_close(result, oracle, what)


def fill_cache(
    c: Case, keys: list[torch.Tensor], values: list[torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Blocks in random order. Whatever no token of the step sees is NaN, behind the context or before the window."""
    counts = [-(-len(k) // c.block_size) for k in keys]
    shape = (sum(counts) + 2, c.num_kv_heads, c.block_size, c.head_size)
    both = torch.full((shape[0], 2, *shape[1:]) if c.joint else (2, *shape), float("nan"), dtype=c.dtype)
    k_cache, v_cache = (both[:, 0], both[:, 1]) if c.joint else (both[0], both[1])
    free = torch.randperm(shape[0]).tolist()
    poison = free.pop()
    tables = torch.full((len(keys), max(counts) + 1), poison, dtype=torch.int32)
    for i, ((length, context), k, v) in enumerate(zip(c.sequences, keys, values, strict=True)):
        first = 0 if c.window is None else max(0, context - length - c.window + 1)
        for start in range(first // c.block_size * c.block_size, context, c.block_size):
            block = free.pop()
            tables[i, start // c.block_size] = block
            begin, end = max(first, start), min(context, start + c.block_size)
            k_cache[block, :, begin - start : end - start] = k[begin:end].transpose(0, 1)
            v_cache[block, :, begin - start : end - start] = v[begin:end].transpose(0, 1)
    return k_cache, v_cache, tables


def expected(
    c: Case, q: torch.Tensor, keys: list[torch.Tensor], values: list[torch.Tensor], scale: float
) -> torch.Tensor:
    """Row by row, in float64."""
    rows = []
    start = 0
    for (length, context), k, v in zip(c.sequences, keys, values, strict=True):
        for t in range(length):
            i = context - length + t
            j = slice(0 if c.window is None else max(0, i - c.window + 1), i + 1)
            for head in range(q.shape[1]):
                s = k[j, head // c.group].double() @ q[start + t, head].double() * scale
                if c.softcap is not None:
                    s = c.softcap * torch.tanh(s / c.softcap)
                rows.append(torch.softmax(s, -1) @ v[j, head // c.group].double())
        start += length
    return torch.stack(rows).view(q.shape) if rows else torch.zeros(q.shape, dtype=torch.float64)
