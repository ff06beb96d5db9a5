"""Attention on a CPU by products of matrices, over keys and values gathered from their blocks.

Gathering copies a sequence's keys once; chunks of a prompt have work enough to make up for it. Where there is no
kernel in C++, decodes take this way, too, many sequences at once.

Letters in shapes: H query heads, H_kv key-value heads, G = H / H_kv, d head size, S tokens of context.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F

MAX_SCORES = 1 << 24  # held at once by one chunk
SHORT = 256  # tokens of context up to which plain products beat PyTorch's fused attention
NEVER = float("-inf")
Cache = tuple[torch.Tensor, torch.Tensor]  # keys and values, each [num_blocks, H_kv, block_size, d]


class Form(NamedTuple):
    """A layer's attention.

    Attributes:
        scale: multiplies the scores.
        window: a token sees so many tokens, itself included; None for all.
        softcap: c in c · tanh(score / c), after ``scale``.
    """

    scale: float
    window: int | None = None
    softcap: float | None = None


def attend_chunk(
    q: torch.Tensor, cache: Cache, table: torch.Tensor, context: int, form: Form, out: torch.Tensor
) -> None:
    """The last tokens of one sequence, each over those up to itself.

    Args:
        q: [T, H, d], rotated.
        cache: with the tokens themselves written.
        table: int32 [max_blocks], the sequence's blocks.
        context: tokens of it in the cache.
        out: [T, H, d], where the result goes.
    """
    position = context - len(q)
    first = 0 if form.window is None else max(0, position - form.window + 1)
    keys, values = (_gather(x, table, first, context) for x in cache)  # [H_kv, S, d]
    is_whole = first == position == 0 and (form.window is None or form.window >= context)
    if is_whole and context > SHORT and form.softcap is None:
        queries = q.transpose(0, 1)[None]  # [1, H, T, d]
        o = F.scaled_dot_product_attention(
            queries, keys[None], values[None], is_causal=True, scale=form.scale, enable_gqa=True
        )
        out.copy_(o[0].transpose(0, 1))
        return
    j = torch.arange(first, context)
    rows = max(1, MAX_SCORES // (q.shape[1] * len(j)))
    for start in range(0, len(q), rows):
        piece = q[start : start + rows]
        i = torch.arange(position + start, position + start + len(piece))[:, None]
        visible = j <= i if form.window is None else (j <= i) & (j > i - form.window)
        out[start : start + rows] = _masked(piece, keys, values, visible, form)


def attend_singles(
    q: torch.Tensor, cache: Cache, tables: torch.Tensor, contexts: list[int], form: Form, out: torch.Tensor
) -> None:
    """One token of each of N sequences. Those of about the same length are computed together.

    Args:
        q: [N, H, d], rotated.
        cache: with the tokens themselves written.
        tables: int32 [N, max_blocks], the blocks of each sequence.
        contexts: tokens of each in the cache.
        out: [N, H, d], where the result goes.
    """
    order = sorted(range(len(contexts)), key=contexts.__getitem__)
    while order:
        longest = contexts[order[-1]]
        rows = [i for i in order if 2 * contexts[i] >= longest]  # at most half of what is gathered is not needed
        order = order[: len(order) - len(rows)]
        out[rows] = _together(q[rows], cache, tables[rows], [contexts[i] for i in rows], form)


def _together(q: torch.Tensor, cache: Cache, tables: torch.Tensor, contexts: list[int], form: Form) -> torch.Tensor:
    """[N, H, d] → [N, H, d]; what is behind a context may be any number, or NaN."""
    num_kv_heads, block_size = cache[0].shape[1:3]
    blocks = tables[:, : -(-max(contexts) // block_size)].long()
    keys, values = (x[blocks].transpose(1, 2).flatten(0, 1).flatten(1, 2) for x in cache)  # [N · H_kv, S, d]
    seen, j = torch.tensor(contexts)[:, None], torch.arange(keys.shape[1])
    hidden = j >= seen if form.window is None else (j >= seen) | (j < seen - form.window)  # [N, S]
    values.view(len(q), num_kv_heads, *values.shape[1:]).masked_fill_(hidden[:, None, :, None], 0)
    scores = torch.bmm(keys, q.reshape(len(keys), -1, q.shape[2]).transpose(1, 2))  # [N · H_kv, S, G]
    scores = scores.view(len(q), num_kv_heads, keys.shape[1], -1).transpose(2, 3)
    weights = _softmax(scores, hidden[:, None, None], form)  # [N, H_kv, G, S]
    return torch.bmm(weights.flatten(0, 1), values).view(q.shape)


def _gather(x: torch.Tensor, table: torch.Tensor, first: int, end: int) -> torch.Tensor:
    """Tokens [first, end) of a sequence, [H_kv, end - first, d]."""
    block_size = x.shape[2]
    start = first // block_size
    blocks = table[start : -(-end // block_size)].long()
    tokens = x[blocks].transpose(0, 1).flatten(1, 2)  # [H_kv, S, d]
    return tokens[:, first - start * block_size : end - start * block_size]


def _softmax(scores: torch.Tensor, hidden: torch.Tensor, form: Form) -> torch.Tensor:
    """Over the last dimension in float32, without what is ``hidden``; contiguous, in the dtype of ``scores``."""
    scale = torch.tensor([form.scale])  # a number would let the product be rounded to half precision
    y = torch.mul(scores, scale, out=torch.empty(scores.shape, dtype=torch.float32))
    if form.softcap is not None:
        y.div_(form.softcap).tanh_().mul_(form.softcap)
    return torch.softmax(y.masked_fill_(hidden, NEVER), dim=-1).to(scores.dtype)


def _masked(
    q: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, visible: torch.Tensor, form: Form
) -> torch.Tensor:
    """[T, H, d] → [T, H, d] over what is ``visible`` [T, S]."""
    if form.softcap is None and keys.shape[1] > SHORT:
        queries = q.transpose(0, 1)[None]  # [1, H, T, d]
        o = F.scaled_dot_product_attention(
            queries, keys[None], values[None], attn_mask=visible, scale=form.scale, enable_gqa=True
        )
        return o[0].transpose(0, 1)
    heads, size = len(keys), len(q)
    grouped = q.view(size, heads, -1, q.shape[2]).permute(1, 2, 0, 3)  # [H_kv, G, T, d]
    scores = torch.bmm(grouped.flatten(1, 2), keys.transpose(1, 2)).view(heads, -1, size, keys.shape[1])
    weights = _softmax(scores, ~visible, form)  # [H_kv, G, T, S]
    o = torch.bmm(weights.view(heads, -1, keys.shape[1]), values).view(heads, -1, size, q.shape[2])
    return o.permute(2, 0, 1, 3).flatten(1, 2)
