"""Masks and penalties of ``SamplingParams``, steps 2 and 3, on some rows of the logits.

Each row that needs them has a slot in a table that stays on the device: what may be sampled as packed bits, and what
stands in its prompt and output as counts. So a step costs the same however many tokens a request allows and however
long its prompt is.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from optimized.kernels.compat import ceil_div, jit, tl, use_triton
from optimized.kernels.native import INT, POINTER, Library, declare

WORD = 32  # tokens of a word of bits, the lowest bit first
IN_PROMPT = 1 << 30  # of a count: the token stands in the prompt, too
NEVER = float("-inf")
_BLOCK = 1024
_MASK = declare("tandem_mask", POINTER, INT, INT, *[POINTER] * 2, INT, POINTER, INT, *[POINTER] * 2)
_PENALIZE = declare("tandem_penalize", POINTER, INT, INT, *[POINTER] * 2, INT, POINTER, *[POINTER] * 3)


class Penalties(NamedTuple):
    """Of E rows, float32 [E] each; neutral at 1, 0 and 0."""

    repetition: torch.Tensor
    frequency: torch.Tensor
    presence: torch.Tensor


def num_words(vocab_size: int) -> int:
    """Of a row of bits."""
    return ceil_div(vocab_size, WORD)


def mask(
    logits: torch.Tensor, rows: torch.Tensor, slots: torch.Tensor, bits: torch.Tensor, library: Library
) -> tuple[torch.Tensor, torch.Tensor]:
    """Set what may not be sampled to -inf, in place.

    Args:
        logits: float32 [N, V]; channels contiguous.
        rows: int64 [E], distinct rows of ``logits``.
        slots: int64 [E], their rows of ``bits``.
        bits: int32 [S, ceil(V / 32)], contiguous; bit v % 32 of word v // 32 allows token v.
        library: the CPU kernels.

    Returns:
        The greatest logit of each row before and after, float32 [E] each; NaN if any of the row is.
    """
    run = library.find(_MASK)
    if use_triton(logits):
        before = logits.index_select(0, rows).amax(-1)
        if len(rows):
            _mask_kernel[(len(rows), ceil_div(logits.shape[1], _BLOCK))](
                logits,
                rows,
                slots,
                bits,
                logits.stride(0),
                bits.stride(0),
                logits.shape[1],
                BLOCK=_BLOCK,
                num_warps=4,
            )
        return before, logits.index_select(0, rows).amax(-1)
    if run is None or logits.is_cuda or logits.stride(1) != 1:
        return _mask_twin(logits, rows, slots, bits)
    before, after = torch.empty(2, len(rows))
    run(
        logits.data_ptr(), logits.stride(0), logits.shape[1], rows.data_ptr(), slots.data_ptr(), len(rows),
        bits.data_ptr(), bits.stride(0), before.data_ptr(), after.data_ptr(),
    )  # fmt: skip
    return before, after


def _mask_twin(
    logits: torch.Tensor, rows: torch.Tensor, slots: torch.Tensor, bits: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    z = logits.index_select(0, rows)
    before = z.amax(-1)
    words = bits.index_select(0, slots)[:, :, None]  # [E, W, 1]
    allowed = (words >> torch.arange(WORD, dtype=torch.int32, device=bits.device)) & 1
    z = z.masked_fill(allowed.flatten(1)[:, : z.shape[1]] == 0, NEVER)
    logits.index_copy_(0, rows, z)
    return before, z.amax(-1)


def penalize(
    logits: torch.Tensor,
    rows: torch.Tensor,
    slots: torch.Tensor,
    counts: torch.Tensor,
    penalties: Penalties,
    library: Library,
) -> None:
    """Repetition, then frequency and presence penalties, in place.

    Args:
        logits: float32 [N, V]; channels contiguous.
        rows: int64 [E], distinct rows of ``logits``.
        slots: int64 [E], their rows of ``counts``.
        counts: int32 [S, V], contiguous: how often each token stands in the output, and ``IN_PROMPT``.
        penalties: of each row.
        library: the CPU kernels.
    """
    run = library.find(_PENALIZE)
    if use_triton(logits):
        if len(rows):
            _penalize_kernel[(len(rows), ceil_div(logits.shape[1], _BLOCK))](
                logits, rows, slots, counts, *penalties, logits.stride(0), logits.shape[1], BLOCK=_BLOCK, num_warps=4
            )
    elif run is None or logits.is_cuda or logits.stride(1) != 1:
        _penalize_twin(logits, rows, slots, counts, penalties)
    else:
        run(
            logits.data_ptr(), logits.stride(0), logits.shape[1], rows.data_ptr(), slots.data_ptr(), len(rows),
            counts.data_ptr(), *[x.data_ptr() for x in penalties],
        )  # fmt: skip


def _penalize_twin(
    logits: torch.Tensor, rows: torch.Tensor, slots: torch.Tensor, counts: torch.Tensor, penalties: Penalties
) -> None:
    repetition, frequency, presence = (x[:, None] for x in penalties)
    z, c = logits.index_select(0, rows), counts.index_select(0, slots)
    z = torch.where(c != 0, torch.where(z > 0, z / repetition, z * repetition), z)
    c = c & (IN_PROMPT - 1)
    logits.index_copy_(0, rows, torch.where(c > 0, z - (frequency * c + presence), z))


@jit()
def _mask_kernel(  # type: ignore[no-untyped-def]
    p_logits, p_rows, p_slots, p_bits, stride_logits, stride_bits, vocab, BLOCK: tl.constexpr
):
    i_row, i_slot = tl.load(p_rows + tl.program_id(0)), tl.load(p_slots + tl.program_id(0))
    i_v = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    m_v = i_v < vocab
    b_word = tl.load(p_bits + i_slot * stride_bits + i_v // 32, mask=m_v, other=0)
    m_never = m_v & (((b_word >> (i_v % 32)) & 1) == 0)
    tl.store(p_logits + i_row * stride_logits + i_v, float("-inf"), mask=m_never)


@jit()
def _penalize_kernel(  # type: ignore[no-untyped-def]
    p_logits,
    p_rows,
    p_slots,
    p_counts,
    p_repetition,
    p_frequency,
    p_presence,
    stride_logits,
    vocab,
    BLOCK: tl.constexpr,
):
    i_edit = tl.program_id(0)
    i_row, i_slot = tl.load(p_rows + i_edit), tl.load(p_slots + i_edit)
    i_v = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    m_v = i_v < vocab
    b_count = tl.load(p_counts + i_slot * vocab + i_v, mask=m_v, other=0)
    m_seen = m_v & (b_count != 0)
    b_z = tl.load(p_logits + i_row * stride_logits + i_v, mask=m_seen, other=0.0)
    repetition = tl.load(p_repetition + i_edit)
    b_z = tl.where(b_z > 0, tl.div_rn(b_z, repetition), b_z * repetition)
    b_count = b_count & 0x3FFFFFFF
    b_taken = tl.load(p_frequency + i_edit) * b_count.to(tl.float32) + tl.load(p_presence + i_edit)
    b_z = tl.where(b_count > 0, b_z - b_taken, b_z)
    tl.store(p_logits + i_row * stride_logits + i_v, b_z, mask=m_seen)
