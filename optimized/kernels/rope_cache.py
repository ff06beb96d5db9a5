"""Rotary position embedding of queries and keys, and the step's keys and values into the paged cache, in one launch.

Su et al., "RoFormer: enhanced transformer with rotary position embedding" (2021), with the pairs of channels (i, i +
R/2) of the first R channels of a head, as checkpoints in the format of transformers have them.

Letters in shapes: T tokens of the step, H query heads, H_kv key-value heads, d head size, R rotated channels.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch

from optimized.kernels.compat import ceil_div, jit, next_power_of_2, tl, use_triton
from optimized.kernels.native import INT, POINTER, TYPES, Library, declare

Table = tuple[torch.Tensor, torch.Tensor]
LayerCache = tuple[torch.Tensor, torch.Tensor]
_HEADS = 4  # of a program
_NATIVE = declare("tandem_rotate_and_store", INT, *[POINTER] * 3, *[INT] * 3, *[POINTER] * 2, INT, *[POINTER] * 2,
                  *[INT] * 5, *[POINTER] * 3)  # fmt: skip


class Heads(NamedTuple):
    """Queries [T, H, d], keys and values [T, H_kv, d] of a step."""

    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor


class Places(NamedTuple):
    """Where the tokens of a step stand.

    Attributes:
        positions: int64 [T], in their sequences.
        slots: int64 [T], block · block_size + place in the block; distinct; below 0 for a token that is not stored.
    """

    positions: torch.Tensor
    slots: torch.Tensor


def rotate_and_store(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    table: Table,
    places: Places,
    cache: LayerCache,
    library: Library,
) -> torch.Tensor:
    """Rotate ``q`` and ``k`` in float32, and write ``k`` and ``v`` where their tokens belong.

    Args:
        q: [T, H, d]; k, v: [T, H_kv, d], as the projections made them; channels contiguous.
        table: cosine and sine of all positions, each float32 [max_len, R/2], contiguous.
        places: of the tokens.
        cache: a layer's keys and values, each [num_blocks, H_kv, block_size, d]; written in place.
        library: the CPU kernels.

    Returns:
        The rotated queries [T, H, d], contiguous.
    """
    x, y = Heads(q, k, v), torch.empty(q.shape, dtype=q.dtype, device=q.device)
    if use_triton(q):
        _launch(x, table, places, cache, y)
    elif (run := library.find(_NATIVE, q.dtype)) and cache[0].is_contiguous() and cache[1].is_contiguous():
        _run_native(run, x, table, places, cache, y)
    else:
        _twin(x, table, places, cache, y)
    return y


def _twin(x: Heads, table: Table, places: Places, cache: LayerCache, y: torch.Tensor) -> None:
    q, k, v = x
    (cos, sin), (keys, values) = table, cache
    c, s = cos[places.positions, None], sin[places.positions, None]  # [T, 1, R/2]
    y.copy_(_rotated(q, c, s))
    stored = places.slots >= 0
    page, place = places.slots[stored] // keys.shape[2], places.slots[stored] % keys.shape[2]
    keys[page, :, place] = _rotated(k, c, s)[stored]
    values[page, :, place] = v[stored]


def _rotated(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    half = cos.shape[-1]
    a, b, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    turned = (a.float() * cos - b.float() * sin, b.float() * cos + a.float() * sin)
    return torch.cat((*(part.to(x.dtype) for part in turned), rest), dim=-1)


def _run_native(
    run: Callable[..., None], x: Heads, table: Table, places: Places, cache: LayerCache, y: torch.Tensor
) -> None:
    q, k, v = x
    (cos, sin), (keys, values) = table, cache
    num_tokens, num_heads, d = q.shape
    (q_stride, *q_inner), (k_stride, *k_inner), (v_stride, *v_inner) = q.stride(), k.stride(), v.stride()
    assert q_inner == k_inner == v_inner == [d, 1]
    run(
        TYPES[q.dtype], q.data_ptr(), k.data_ptr(), v.data_ptr(), q_stride, k_stride, v_stride,
        cos.data_ptr(), sin.data_ptr(), cos.shape[1], places.positions.data_ptr(), places.slots.data_ptr(),
        num_tokens, num_heads, k.shape[1], keys.shape[2], d, y.data_ptr(), keys.data_ptr(), values.data_ptr(),
    )  # fmt: skip


def _launch(x: Heads, table: Table, places: Places, cache: LayerCache, y: torch.Tensor) -> None:
    q, k, v = x
    (cos, sin), (keys, values) = table, cache
    num_tokens, num_heads, head_size = q.shape
    num_kv_heads, half = k.shape[1], cos.shape[1]
    rest = head_size - 2 * half
    if not num_tokens:
        return
    _rotate_and_store_kernel[(num_tokens, ceil_div(num_heads, _HEADS) + ceil_div(num_kv_heads, _HEADS))](
        q,
        k,
        v,
        y,
        cos,
        sin,
        places.positions,
        keys,
        values,
        places.slots,
        *q.stride()[:2],
        *k.stride()[:2],
        *v.stride()[:2],
        *keys.stride()[:3],
        *values.stride()[:3],
        NUM_HEADS=num_heads,
        NUM_KV_HEADS=num_kv_heads,
        HEAD_SIZE=head_size,
        HALF=half,
        REST=rest,
        PAGE=keys.shape[2],
        BLOCK_H=_HEADS,
        BLOCK_HALF=next_power_of_2(half),
        BLOCK_REST=next_power_of_2(max(rest, 1)),
        BLOCK_D=next_power_of_2(head_size),
        num_warps=2,
    )


@jit()
def _rotate_and_store_kernel(  # type: ignore[no-untyped-def]
    p_q,
    p_k,
    p_v,
    p_y,
    p_cos,
    p_sin,
    p_positions,
    p_keys,
    p_values,
    p_slots,
    stride_q_token,
    stride_q_head,
    stride_k_token,
    stride_k_head,
    stride_v_token,
    stride_v_head,
    stride_keys_block,
    stride_keys_head,
    stride_keys_slot,
    stride_values_block,
    stride_values_head,
    stride_values_slot,
    NUM_HEADS: tl.constexpr,
    NUM_KV_HEADS: tl.constexpr,
    HEAD_SIZE: tl.constexpr,
    HALF: tl.constexpr,
    REST: tl.constexpr,
    PAGE: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_HALF: tl.constexpr,
    BLOCK_REST: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    i_token, i_part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    Q_PARTS: tl.constexpr = (NUM_HEADS + BLOCK_H - 1) // BLOCK_H
    o_half = tl.arange(0, BLOCK_HALF)
    o_angle = tl.load(p_positions + i_token) * HALF + o_half
    b_cos = tl.load(p_cos + o_angle, mask=o_half < HALF, other=0.0)[None, :]
    b_sin = tl.load(p_sin + o_angle, mask=o_half < HALF, other=0.0)[None, :]
    o_h = tl.arange(0, BLOCK_H)
    if i_part < Q_PARTS:
        i_head = (i_part * BLOCK_H + o_h)[:, None]
        m_h = i_head < NUM_HEADS
        p_from = p_q + i_token * stride_q_token + i_head * stride_q_head
        p_to = p_y + (i_token * NUM_HEADS + i_head) * HEAD_SIZE
        _rotate(p_from, p_to, m_h, b_cos, b_sin, HALF, REST, BLOCK_HALF, BLOCK_REST)
    else:
        i_slot = tl.load(p_slots + i_token)
        if i_slot < 0:
            return
        i_head = ((i_part - Q_PARTS) * BLOCK_H + o_h)[:, None]
        m_h = i_head < NUM_KV_HEADS
        p_from = p_k + i_token * stride_k_token + i_head * stride_k_head
        o_key = i_slot // PAGE * stride_keys_block + i_slot % PAGE * stride_keys_slot
        p_to = p_keys + o_key + i_head * stride_keys_head
        _rotate(p_from, p_to, m_h, b_cos, b_sin, HALF, REST, BLOCK_HALF, BLOCK_REST)
        o_d = tl.arange(0, BLOCK_D)[None, :]
        m_v = m_h & (o_d < HEAD_SIZE)
        b_v = tl.load(p_v + i_token * stride_v_token + i_head * stride_v_head + o_d, mask=m_v)
        o_value = i_slot // PAGE * stride_values_block + i_slot % PAGE * stride_values_slot
        tl.store(p_values + o_value + i_head * stride_values_head + o_d, b_v, mask=m_v)


@jit()
def _rotate(  # type: ignore[no-untyped-def]
    p_from,  # [BLOCK_H, 1], first channel of each head
    p_to,
    m_h,
    b_cos,
    b_sin,
    HALF: tl.constexpr,
    REST: tl.constexpr,
    BLOCK_HALF: tl.constexpr,
    BLOCK_REST: tl.constexpr,
):
    o_half = tl.arange(0, BLOCK_HALF)[None, :]
    m_half = m_h & (o_half < HALF)
    b_a = tl.load(p_from + o_half, mask=m_half).to(tl.float32)
    b_b = tl.load(p_from + HALF + o_half, mask=m_half).to(tl.float32)
    tl.store(p_to + o_half, b_a * b_cos - b_b * b_sin, mask=m_half)
    tl.store(p_to + HALF + o_half, b_b * b_cos + b_a * b_sin, mask=m_half)
    if REST:
        o_rest = 2 * HALF + tl.arange(0, BLOCK_REST)[None, :]
        m_rest = m_h & (o_rest < 2 * HALF + REST)
        tl.store(p_to + o_rest, tl.load(p_from + o_rest, mask=m_rest), mask=m_rest)
