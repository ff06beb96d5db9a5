"""Attention of single tokens over rows of a contiguous cache, and the write before it, on a CPU.

Their twins are PyTorch's own operations: see ``attention_cpu``.
"""

from __future__ import annotations

import torch

from optimized.kernels.native import FLOAT, INT, POINTER, TYPES, Function

_WRITE = Function("tandem_write_rotated", INT, *[POINTER] * 3, *[INT] * 3, *[POINTER] * 2, INT, *[POINTER] * 2,
                  *[INT] * 5, *[POINTER] * 3)  # fmt: skip
_ATTEND = Function("tandem_attend_rows", INT, *[POINTER] * 5, *[INT] * 5, *[FLOAT] * 2, INT, POINTER)


def is_ready(dtype: torch.dtype) -> bool:
    """Whether the kernels are there, for activations of this type."""
    return _ATTEND.run is not None and dtype in TYPES


def write_rotated(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    rotation: tuple[torch.Tensor, torch.Tensor],
    rows: torch.Tensor,
    positions: torch.Tensor,
    cache: tuple[torch.Tensor, torch.Tensor],
) -> torch.Tensor:
    """Rotate queries and keys, and write keys and values into their places.

    Args:
        q: [T, H, d]; k, v: [T, H_kv, d]; the heads of a token beside each other.
        rotation: cosine and sine of the tokens' angles, each float32 [T, 1, R/2]; channels (i, i + R/2) are a pair.
        rows, positions: int64 [T], the tokens' places.
        cache: keys and values, each [R, H_kv, C, d], contiguous.

    Returns:
        The rotated queries, contiguous.
    """
    assert _WRITE.run is not None
    num_tokens, num_heads, d = q.shape
    assert all(x.stride(2) == 1 and x.stride(1) == d for x in (q, k, v))
    cos, sin = rotation
    keys, values = cache
    rotated = torch.empty(q.shape, dtype=q.dtype)
    _WRITE.run(
        TYPES[q.dtype], q.data_ptr(), k.data_ptr(), v.data_ptr(), q.stride(0), k.stride(0), v.stride(0),
        cos.data_ptr(), sin.data_ptr(), cos.shape[-1], rows.data_ptr(), positions.data_ptr(),
        num_tokens, num_heads, k.shape[1], keys.shape[2], d, rotated.data_ptr(), keys.data_ptr(), values.data_ptr(),
    )  # fmt: skip
    return rotated


def attend_rows(
    q: torch.Tensor,
    cache: tuple[torch.Tensor, torch.Tensor],
    rows: torch.Tensor,
    contexts: torch.Tensor,
    scale: float,
    softcap: float | None,
    window: int | None,
) -> torch.Tensor:
    """softmax(softcap · tanh(scale · q Kᵀ / softcap)) V in float32, each query over its own row.

    Nothing outside a query's context is read.

    Args:
        q: [D, H, d], contiguous.
        cache: keys and values, each [R, H_kv, C, d], contiguous.
        rows, contexts: int64 [D], each query's row and how many of its tokens there are.
        window: how many of them, counted from the last, are seen; None means all.

    Returns:
        [D, H · d].
    """
    assert _ATTEND.run is not None
    num_seqs, num_heads, d = q.shape
    keys, values = cache
    out = torch.empty((num_seqs, num_heads * d), dtype=q.dtype)
    _ATTEND.run(
        TYPES[q.dtype], q.data_ptr(), keys.data_ptr(), values.data_ptr(), rows.data_ptr(), contexts.data_ptr(),
        num_seqs, num_heads, keys.shape[1], keys.shape[2], d, scale, softcap or 0.0, window or 0, out.data_ptr(),
    )  # fmt: skip
    return out
