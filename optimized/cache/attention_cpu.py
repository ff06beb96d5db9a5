"""Attention on a CPU, over rows of the cache read in place.

Tokens that stand alone in their sequence's step (decodes) are computed together, by a kernel where it could be built:
each over its own context; short prompts join them. The kernel's twin is two batched products and a softmax over the
rows from 0 to the last one in use, of which PyTorch copies the keys and the values in use first. Longer stretches are
computed sequence by sequence.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from optimized.kernels.row_attention import attend_rows, is_ready, write_rotated
from optimized.layers.rotary import Table
from optimized.runner.batch import Batch, Chunk
from tandem.models.model_config import ModelConfig

ALIGN = 32  # decodes look at a multiple of so many tokens, so that shapes repeat
MAX_SCORES = 1 << 24  # held at once by one prefill
LONG = 768  # tokens of context up to which the kernel, query by query, beats products of matrices, by half at 256
SHORT = 256  # and up to which plain products beat PyTorch's fused ones
NEVER = float("-inf")


@dataclass(frozen=True, slots=True)
class TwinPlan:
    """What PyTorch's operations need besides, where the kernels are not there.

    Attributes:
        slots: int64 [T · H_kv], where each token's heads go in a layer's flattened keys.
        num_rows: rows that the decodes span.
        rows: int64 [D], the decodes' rows; None if they are 0 … D-1.
        length: tokens of context that the decodes look at, at most.
        hidden: by window, bool [num_rows, 1, 1, length], what a decode must not see.
    """

    slots: torch.Tensor
    num_rows: int
    rows: torch.Tensor | None
    length: int
    hidden: dict[int | None, torch.Tensor]


@dataclass(frozen=True, slots=True)
class AttentionPlan:
    """What all layers of a step share.

    Attributes:
        rotations: of each layer, the cosine and sine of each token, float32 [T, 1, R/2].
        contexts: int64 [T], how many tokens each token sees, itself included.
        twin: None if the kernels do the work.
    """

    rotations: list[Table]
    contexts: torch.Tensor
    twin: TwinPlan | None


def plan(config: ModelConfig, tables: list[Table], batch: Batch, capacity: int, dtype: torch.dtype) -> AttentionPlan:
    """Prepare a step: ``tables`` are those of the layers, ``capacity`` the tokens of a row, ``dtype`` the cache's."""
    at = batch.positions
    distinct = {id(table): _at(table, at) for table in dict.fromkeys(tables)}
    twin = None if is_ready(dtype) else _plan_twin(config, batch, capacity)
    return AttentionPlan([distinct[id(table)] for table in tables], at + 1, twin)


def _at(table: Table, positions: torch.Tensor) -> Table:
    """Cosine and sine of each of T positions, [T, 1, R/2]."""
    cos, sin = table
    return cos.index_select(0, positions)[:, None], sin.index_select(0, positions)[:, None]


def _plan_twin(config: ModelConfig, batch: Batch, capacity: int) -> TwinPlan:
    at = batch.positions
    heads = torch.arange(config.num_kv_heads)
    slots = ((batch.rows[:, None] * config.num_kv_heads + heads) * capacity + at[:, None]).flatten()
    count = len(batch.decodes)
    if not count:
        return TwinPlan(slots, 0, None, 0, {})
    rows, contexts = batch.rows[:count], at[:count] + 1
    num_rows = batch.decodes[-1].row + 1
    length = min(capacity, -(-int(contexts.max()) // ALIGN) * ALIGN)
    seen = torch.zeros(num_rows, dtype=torch.int64).index_copy_(0, rows, contexts)[:, None]
    j = torch.arange(length)
    hidden: dict[int | None, torch.Tensor] = {}
    for window in set(config.windows):
        outside = j >= seen
        if window is not None:
            outside = outside | (j < seen - window)
        hidden[window] = outside.view(num_rows, 1, 1, length)
    return TwinPlan(slots, num_rows, None if num_rows == count else rows, length, hidden)


def attend(
    config: ModelConfig,
    layer: int,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    cache: tuple[torch.Tensor, torch.Tensor],
    batch: Batch,
    plan: AttentionPlan,
) -> torch.Tensor:
    """Rotate queries and keys, write the step's keys and values, then attend.

    Args:
        q: [T, H, d]; k, v: [T, H_kv, d].
        cache: the layer's keys and values, each [R, H_kv, C, d].

    Returns:
        [T, H · d].
    """
    rotation, window, twin = plan.rotations[layer], config.windows[layer], plan.twin
    if twin is None:
        q = write_rotated(q, k, v, rotation, batch.rows, batch.positions, cache)
    else:
        q = _rotate(q, *rotation)
        for rows, new in zip(cache, (_rotate(k, *rotation), v.contiguous()), strict=True):
            rows.view(-1, config.head_dim).index_copy_(0, twin.slots, new.view(-1, config.head_dim))

    def one_by_one(start: int, end: int) -> torch.Tensor:
        if twin is not None:
            return _decode(config, window, q[start:end], cache, twin)
        rows, contexts = batch.rows[start:end], plan.contexts[start:end]
        return attend_rows(
            q[start:end], cache, rows, contexts, config.attention_scale, config.attention_softcap, window
        )

    parts, start = [], 0
    for chunk in batch.prefills:
        if twin is None and chunk.context <= LONG:
            continue
        if chunk.start > start:
            parts.append(one_by_one(start, chunk.start))
        parts.append(_prefill(config, window, q[chunk.start : chunk.end], cache, chunk))
        start = chunk.end
    if start < len(q):
        parts.append(one_by_one(start, len(q)))
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Turn the channel pairs (i, i + R/2) of ``x`` [T, heads, d] by angles [T, 1, R/2], in float32."""
    half = cos.shape[-1]
    y = torch.empty_like(x, memory_format=torch.contiguous_format)
    a, b = x[..., :half].float(), x[..., half : 2 * half].float()
    y[..., :half] = a * cos - b * sin
    y[..., half : 2 * half] = b * cos + a * sin
    if 2 * half < x.shape[-1]:
        y[..., 2 * half :] = x[..., 2 * half :]
    return y


def _decode(
    c: ModelConfig, window: int | None, q: torch.Tensor, cache: tuple[torch.Tensor, torch.Tensor], plan: TwinPlan
) -> torch.Tensor:
    """[D, H, d] → [D, H · d]."""
    if plan.rows is not None:
        q = q.new_zeros((plan.num_rows, *q.shape[1:])).index_copy_(0, plan.rows, q)
    keys, values = (x[: plan.num_rows, :, : plan.length].flatten(0, 1) for x in cache)  # [N · H_kv, S, d]
    q = q.reshape(len(keys), -1, c.head_dim)  # [N · H_kv, G, d]
    scores = torch.bmm(keys, q.transpose(1, 2)).view(plan.num_rows, c.num_kv_heads, plan.length, -1).transpose(2, 3)
    weights = _softmax(scores, plan.hidden[window], c)  # [N, H_kv, G, S]; no numbers in rows without a decode
    o = torch.bmm(weights.flatten(0, 1), values).view(plan.num_rows, -1)
    return o if plan.rows is None else o[plan.rows]


def _softmax(scores: torch.Tensor, hidden: torch.Tensor, c: ModelConfig) -> torch.Tensor:
    """Over the last dimension in float32, without what is ``hidden``; contiguous, in the dtype of ``scores``."""
    scale = torch.tensor([c.attention_scale])  # a number would let the product be rounded to half precision
    y = torch.mul(scores, scale, out=torch.empty(scores.shape, dtype=torch.float32))
    if c.attention_softcap is not None:
        y.div_(c.attention_softcap).tanh_().mul_(c.attention_softcap)
    return torch.softmax(y.masked_fill_(hidden, NEVER), dim=-1).to(scores.dtype)


def _prefill(
    c: ModelConfig, window: int | None, q: torch.Tensor, cache: tuple[torch.Tensor, torch.Tensor], chunk: Chunk
) -> torch.Tensor:
    """[T, H, d] → [T, H · d] for one sequence."""
    first = 0 if window is None else max(0, chunk.position - window + 1)
    keys, values = (x[chunk.row, :, first : chunk.context] for x in cache)  # [H_kv, S, d]
    is_whole = first == chunk.position == 0 and (window is None or window >= chunk.context)
    if is_whole and chunk.context > SHORT and c.attention_softcap is None:
        queries = q.transpose(0, 1)[None]  # [1, H, T, d]
        o = F.scaled_dot_product_attention(
            queries, keys[None], values[None], is_causal=True, scale=c.attention_scale, enable_gqa=True
        )
        return o[0].transpose(0, 1).flatten(1)
    j = torch.arange(first, chunk.context)
    pieces = []
    rows = max(1, MAX_SCORES // (c.num_heads * len(j)))
    for start in range(0, chunk.num_tokens, rows):
        piece = q[start : start + rows]
        i = torch.arange(chunk.position + start, chunk.position + start + len(piece))[:, None]
        visible = j <= i if window is None else (j <= i) & (j > i - window)
        pieces.append(_masked(c, piece, keys, values, visible))
    return torch.cat(pieces)


def _masked(
    c: ModelConfig, q: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, visible: torch.Tensor
) -> torch.Tensor:
    """[T, H, d] → [T, H · d] over what is ``visible`` [T, S]."""
    if c.attention_softcap is None and len(keys[0]) > SHORT:
        queries = q.transpose(0, 1)[None]  # [1, H, T, d]
        o = F.scaled_dot_product_attention(
            queries, keys[None], values[None], attn_mask=visible, scale=c.attention_scale, enable_gqa=True
        )
        return o[0].transpose(0, 1).flatten(1)
    heads, size = len(keys), len(q)
    grouped = q.view(size, heads, -1, c.head_dim).permute(1, 2, 0, 3)  # [H_kv, G, T, d]
    scores = torch.bmm(grouped.flatten(1, 2), keys.transpose(1, 2)).view(heads, -1, size, keys.shape[1])
    weights = _softmax(scores, ~visible, c)  # [H_kv, G, T, S]
    o = torch.bmm(weights.view(heads, -1, keys.shape[1]), values).view(heads, -1, size, c.head_dim)
    return o.permute(2, 0, 1, 3).flatten(1)
