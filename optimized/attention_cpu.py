"""Attention on a CPU, over rows of the cache read in place.

Tokens that stand alone in their sequence's step (decodes) are computed together: two batched products and a softmax,
over the rows from 0 to the last one in use. Longer stretches (prefill) are computed sequence by sequence.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from optimized.batch import Batch, Chunk
from optimized.rotary import Table
from tandem.model_config import ModelConfig

ALIGN = 32  # decodes look at a multiple of so many tokens, so that shapes repeat
MAX_SCORES = 1 << 24  # held at once by one prefill


@dataclass(frozen=True, slots=True)
class AttentionPlan:
    """What all layers of a step share.

    Attributes:
        rotations: of each layer, the cosine and sine of each token, float32 [T, 1, R/2].
        slots: int64 [T · H_kv], where each token's heads go in a layer's flattened keys.
        num_rows: rows that the decodes span.
        rows: int64 [D], the decodes' rows; None if they are 0 … D-1.
        length: tokens of context that the decodes look at, at most.
        hidden: by window, bool [num_rows, 1, 1, length], what a decode must not see.
    """

    rotations: list[Table]
    slots: torch.Tensor
    num_rows: int
    rows: torch.Tensor | None
    length: int
    hidden: dict[int | None, torch.Tensor]


def plan(config: ModelConfig, tables: list[Table], batch: Batch, capacity: int) -> AttentionPlan:
    """Prepare a step: ``tables`` are those of the layers, ``capacity`` the tokens of a row."""
    at = batch.positions
    distinct = {id(table): (table[0][at, None], table[1][at, None]) for table in dict.fromkeys(tables)}
    rotations = [distinct[id(table)] for table in tables]
    heads = torch.arange(config.num_kv_heads)
    slots = ((batch.rows[:, None] * config.num_kv_heads + heads) * capacity + batch.positions[:, None]).flatten()
    count = len(batch.decodes)
    if not count:
        return AttentionPlan(rotations, slots, 0, None, 0, {})
    rows, contexts = batch.rows[:count], batch.positions[:count] + 1
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
    return AttentionPlan(rotations, slots, num_rows, None if num_rows == count else rows, length, hidden)


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
    d = config.head_dim
    q, k = (_rotate(x, *plan.rotations[layer]) for x in (q, k))
    for rows, new in zip(cache, (k, v), strict=True):
        rows.view(-1, d).index_copy_(0, plan.slots, new.reshape(-1, d))
    count = len(batch.decodes)
    parts = []
    if count:
        parts.append(_decode(config, config.windows[layer], q[:count], cache, plan))
    for chunk in batch.prefills:
        parts.append(_prefill(config, config.windows[layer], q[chunk.start : chunk.end], cache, chunk))
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
    c: ModelConfig, window: int | None, q: torch.Tensor, cache: tuple[torch.Tensor, torch.Tensor], plan: AttentionPlan
) -> torch.Tensor:
    """[D, H, d] → [D, H · d]."""
    if plan.rows is not None:
        q = q.new_zeros((plan.num_rows, *q.shape[1:])).index_copy_(0, plan.rows, q)
    keys, values = (x[: plan.num_rows, :, : plan.length] for x in cache)  # [N, H_kv, S, d]
    q = q.view(plan.num_rows, c.num_kv_heads, -1, c.head_dim)  # [N, H_kv, G, d]
    scores = torch.matmul(q, keys.transpose(2, 3)).float() * c.attention_scale  # [N, H_kv, G, S]
    if c.attention_softcap is not None:
        scores = c.attention_softcap * torch.tanh(scores / c.attention_softcap)
    # a row without a decode is hidden as a whole; the least finite number keeps its softmax finite
    scores.masked_fill_(plan.hidden[window], torch.finfo(torch.float32).min)
    o = torch.matmul(torch.softmax(scores, dim=-1).to(values.dtype), values)  # [N, H_kv, G, d]
    o = o.view(plan.num_rows, -1)
    return o if plan.rows is None else o[plan.rows]


def _prefill(
    c: ModelConfig, window: int | None, q: torch.Tensor, cache: tuple[torch.Tensor, torch.Tensor], chunk: Chunk
) -> torch.Tensor:
    """[T, H, d] → [T, H · d] for one sequence."""
    first = 0 if window is None else max(0, chunk.position - window + 1)
    keys, values = (x[chunk.row, :, first : chunk.context] for x in cache)  # [H_kv, S, d]
    if first == chunk.position == 0 and (window is None or window >= chunk.context) and c.attention_softcap is None:
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
    if c.attention_softcap is None:
        queries = q.transpose(0, 1)[None]  # [1, H, T, d]
        o = F.scaled_dot_product_attention(
            queries, keys[None], values[None], attn_mask=visible, scale=c.attention_scale, enable_gqa=True
        )
        return o[0].transpose(0, 1).flatten(1)
    grouped = q.view(len(q), c.num_kv_heads, -1, c.head_dim).permute(1, 2, 0, 3)  # [H_kv, G, T, d]
    scores = torch.matmul(grouped, keys[:, None].transpose(2, 3)).float() * c.attention_scale
    scores = c.attention_softcap * torch.tanh(scores / c.attention_softcap)
    weights = torch.softmax(scores.masked_fill(~visible, float("-inf")), dim=-1).to(values.dtype)
    return torch.matmul(weights, values[:, None]).permute(2, 0, 1, 3).flatten(1)
