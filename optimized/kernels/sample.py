"""Filters and draw of ``SamplingParams``, steps 4 and 5, for many rows at once and without a sort.

A value is kept by top-k or top-p if what lies strictly above it weighs less than a limit: each value weighs 1 and the
limit is k, or it weighs its probability and the limit is the share ``top_p`` of all. The weight above x only falls as
x grows, so one number, the least value that is kept, says all of it, ties included.

In Triton it is found by bisection over the bits of a float, whose order is that of the numbers. Every pass also moves
both ends of the interval to values that occur, so it ends after few passes, and exactly. Dividing by a temperature
keeps the order of logits, though it may make neighbours equal. So the search runs over logits; the least of them,
divided, is the least z that is kept, and comparing z with it keeps what has become equal too. Probabilities are
summed as integers, in units of 2**-42 of the greatest one: exact sums need no order to repeat. The second kernel cuts
rows into pieces, so that many multiprocessors sample from a single row; they agree through an atomic maximum over
(score, lowest id), which is the same in any order.

On a CPU a core takes a row, in a few passes over what its cache holds: ``sample.cpp``.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from optimized.kernels.compat import ceil_div, jit, next_power_of_2, tl, use_triton
from optimized.kernels.native import INT, POINTER, Library, declare
from optimized.runner.philox import NOISE_MAX, NOISE_MIN, gumbel

_LOW = 0xFFFFFFFF
_FIRST = -(1 << 63) + _LOW  # the least score, and token 0
_PIECE = 4096  # values of a row that are looked at together
_MASS_SCALE = float(1 << 42)  # 2**20 tokens of probability 1 still fit into 62 bits
_ORDERED = 1024  # tokens that the twin's top-p orders first
_NEVER = float("-inf")
_NATIVE = declare("tandem_sample", POINTER, INT, INT, INT, *[POINTER] * 10)


class Rows(NamedTuple):
    """What is asked of each row.

    Attributes:
        temperature: float32 [N]; 0 is greedy, and so is one so small that the greatest z is not finite.
        top_k: int64 [N]; off where it is below 1 or at least V.
        top_p: float64 [N]; off where it is at least 1.
        min_p: float32 [N]; off at 0.
        seeds: int64 [N], the 64-bit keys as two's complement.
        positions, choices: int64 [N], in [0, 2**32).
    """

    temperature: torch.Tensor
    top_k: torch.Tensor
    top_p: torch.Tensor
    min_p: torch.Tensor
    seeds: torch.Tensor
    positions: torch.Tensor
    choices: torch.Tensor


class Sampled(NamedTuple):
    """The token of each row, and what the filters left.

    Attributes:
        tokens: int64 [N], the lowest of equals.
        least: float32 [N], the least z = logit / temperature that top-k and top-p keep; -inf where both are off, and
            for greedy rows. Together with min-p it says what ``processed_logprobs`` normalizes over.
        greatest: float32 [N], the greatest logit; NaN if any of the row is.
    """

    tokens: torch.Tensor
    least: torch.Tensor
    greatest: torch.Tensor


def sample(logits: torch.Tensor, rows: Rows, library: Library) -> Sampled:
    """One token for each row.

    Args:
        logits: float32 [N, V], after masks and penalties. Channels contiguous, V at most 2**20. A row whose greatest
            is not finite gets any token of the vocabulary.
        rows: N of them.
        library: the CPU kernels.
    """
    if use_triton(logits):
        return _launch(logits, rows)
    run = library.find(_NATIVE)
    if run is None or logits.is_cuda or logits.stride(1) != 1:
        return _twin(logits, rows)
    sampled = Sampled(torch.empty(len(logits), dtype=torch.int64), *torch.empty(2, len(logits)))
    run(logits.data_ptr(), logits.stride(0), *logits.shape, *[x.data_ptr() for x in (*rows, *sampled)])
    return sampled


def _twin(logits: torch.Tensor, rows: Rows) -> Sampled:
    """Step by step; each only for the rows that need it."""
    greatest, tokens = logits.amax(-1), logits.argmax(-1)
    least = torch.full_like(greatest, _NEVER)
    random = ((rows.temperature > 0) & torch.isfinite(greatest / rows.temperature)).nonzero().squeeze(1)
    temperature, k, p, min_p, seeds, positions, choices = (column[random] for column in rows)
    z = logits[random] / temperature[:, None]
    vocab = logits.shape[1]

    by_k = ((k > 0) & (k < vocab)).nonzero().squeeze(1)
    if len(by_k):
        best = z[by_k].topk(int(k[by_k].max()), dim=-1).values
        least[random[by_k]] = best.gather(1, k[by_k, None] - 1).squeeze(1)
    by_p = (p < 1).nonzero().squeeze(1)
    if len(by_p):
        kept = z[by_p].masked_fill(z[by_p] < least[random[by_p], None], _NEVER)
        least[random[by_p]] = _least_within_mass(kept, p[by_p]).squeeze(1)

    z = z.masked_fill(z < least[random, None], _NEVER)
    z = z - z.amax(dim=-1, keepdim=True)
    by_min = (min_p > 0).nonzero().squeeze(1)
    if len(by_min):
        z[by_min] = z[by_min].masked_fill(torch.exp(z[by_min]) < min_p[by_min, None], _NEVER)
    # a token that could not win with the greatest noise against the least noise of the likeliest needs none
    at, ids = torch.nonzero(z >= NOISE_MIN - NOISE_MAX, as_tuple=True)
    scores = torch.full_like(z, _NEVER)
    scores[at, ids] = z[at, ids] + gumbel(ids, positions[at], choices[at], seeds[at])
    tokens[random] = scores.argmax(-1)
    return Sampled(tokens, least, greatest)


def _least_within_mass(z: torch.Tensor, top_p: torch.Tensor) -> torch.Tensor:
    """For each row of ``z`` [M, V] the least value that top-p keeps, [M, 1].

    The last token in order that has less than ``top_p`` [M] before it is kept, and with it all that tie with it.
    """
    total = torch.logsumexp(z.double(), dim=-1, keepdim=True)
    count, vocab = _ORDERED, z.shape[1]
    while True:  # most distributions have nearly all of their mass in few tokens: ordering those is enough
        ordered = z.topk(min(count, vocab), dim=-1).values
        p = torch.exp(ordered.double() - total)
        num_kept = (p.cumsum(-1) - p < top_p[:, None]).sum(-1, keepdim=True)
        if count >= vocab or bool((num_kept < count).all()):
            return ordered.gather(1, (num_kept - 1).clamp(min=0))
        count *= 16


def _launch(logits: torch.Tensor, rows: Rows) -> Sampled:
    num_rows, vocab = logits.shape
    greatest = logits.amax(dim=-1)
    temperature = torch.where(torch.isfinite(greatest / rows.temperature), rows.temperature, 0)
    least = torch.empty_like(greatest)
    best = torch.empty(num_rows, dtype=torch.int64, device=logits.device)
    piece = min(_PIECE, next_power_of_2(vocab))
    if num_rows:
        _filter_kernel[(num_rows,)](
            logits,
            temperature,
            rows.top_k,
            rows.top_p,
            greatest,
            least,
            best,
            logits.stride(0),
            vocab,
            FIRST=_FIRST,
            MASS_SCALE=_MASS_SCALE,
            BLOCK=piece,
            num_warps=max(1, piece // 256),
        )
        _draw_kernel[(num_rows, ceil_div(vocab, piece))](
            logits,
            temperature,
            rows.min_p,
            rows.seeds,
            rows.positions,
            rows.choices,
            greatest,
            least,
            best,
            logits.stride(0),
            vocab,
            HOPELESS=NOISE_MIN - NOISE_MAX,
            BLOCK=piece,
            num_warps=max(1, piece // 512),
        )
    return Sampled(best.bitwise_not_().bitwise_and_(_LOW), least, greatest)


@jit()
def _filter_kernel(  # type: ignore[no-untyped-def]
    p_logits,
    p_temperature,
    p_top_k,
    p_top_p,
    p_greatest,
    p_least,
    p_best,
    stride_logits,
    vocab,
    FIRST: tl.constexpr,
    MASS_SCALE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    i_row = tl.program_id(0).to(tl.int64)
    o_v = tl.arange(0, BLOCK)
    p_logits += i_row * stride_logits
    temperature = tl.load(p_temperature + i_row)
    top_k = tl.load(p_top_k + i_row)
    top_p = tl.load(p_top_p + i_row)

    tl.store(p_best + i_row, FIRST)
    tl.store(p_least + i_row, float("-inf"))
    if temperature == 0:
        return
    greatest = tl.load(p_greatest + i_row)
    has_k = (top_k > 0) & (top_k < vocab)
    has_p = top_p < 1
    least = float("-inf")
    if has_k:
        least = _least_kept(p_logits, vocab, greatest, temperature, least, top_k, False, MASS_SCALE, BLOCK)
        least = tl.div_rn(least, temperature)
    if has_p:
        b_total = tl.zeros([BLOCK], tl.int64)
        for o_start in range(0, vocab, BLOCK):
            i_v = o_start + o_v
            b_logit = tl.load(p_logits + i_v, mask=i_v < vocab, other=float("-inf"))
            b_total += _mass(b_logit, greatest, temperature, least, MASS_SCALE)
        share = top_p * tl.sum(b_total, axis=0).to(tl.float64)
        limit = tl.ceil(share).to(tl.int64)  # an integer is below the one as it is below the other
        by_p = _least_kept(p_logits, vocab, greatest, temperature, least, limit, True, MASS_SCALE, BLOCK)
        least = tl.maximum(least, tl.div_rn(by_p, temperature))
    tl.store(p_least + i_row, least)


@jit()
def _least_kept(  # type: ignore[no-untyped-def]
    p_logits,
    vocab,
    greatest,
    temperature,
    left,  # the least z that has any mass
    limit,
    BY_MASS: tl.constexpr,
    MASS_SCALE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The least logit of which all that is strictly greater weighs less than ``limit`` > 0."""
    o_v = tl.arange(0, BLOCK)
    low = tl.full([], -2139095042, tl.int64)  # up to here nothing is kept; at first the order of -inf, less one
    high = _order(greatest).to(tl.int64)  # a value that is kept
    while low + 1 < high:
        middle = (low + high) >> 1
        b_weight = tl.zeros([BLOCK], tl.int64)
        b_below = tl.full([BLOCK], -(1 << 31), tl.int32)  # greatest values up to the middle
        b_above = tl.full([BLOCK], (1 << 31) - 1, tl.int32)  # least values above it
        for o_start in range(0, vocab, BLOCK):
            i_v = o_start + o_v
            b_logit = tl.load(p_logits + i_v, mask=i_v < vocab, other=float("-inf"))
            b_order = _order(b_logit)
            m_above = b_order > middle
            if BY_MASS:
                b_weight += tl.where(m_above, _mass(b_logit, greatest, temperature, left, MASS_SCALE), 0)
            else:
                b_weight += m_above.to(tl.int64)
            b_above = tl.minimum(b_above, tl.where(m_above, b_order, (1 << 31) - 1))
            b_below = tl.maximum(b_below, tl.where(m_above, -(1 << 31), b_order))
        above = tl.min(b_above, axis=0).to(tl.int64)
        below = tl.max(b_below, axis=0).to(tl.int64)
        if tl.sum(b_weight, axis=0) >= limit:
            low = above - 1
        elif below > low:
            high = below
        else:
            low = above - 1
            high = above
    return _number(high.to(tl.int32))


@jit()
def _mass(b_logit, greatest, temperature, left, MASS_SCALE: tl.constexpr):  # type: ignore[no-untyped-def]
    b_z = tl.div_rn(b_logit, temperature)
    b_mass = tl.exp(b_z - tl.div_rn(greatest, temperature)) * MASS_SCALE
    return tl.where(b_z >= left, b_mass, 0.0).to(tl.int64)


@jit()
def _order(x):  # type: ignore[no-untyped-def]
    """int32 in the order of the floats ``x``."""
    bits = x.to(tl.int32, bitcast=True)
    return tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits)


@jit()
def _number(order):  # type: ignore[no-untyped-def]
    """The float that ``_order`` maps to ``order``."""
    return tl.where(order < 0, order ^ 0x7FFFFFFF, order).to(tl.float32, bitcast=True)


@jit()
def _draw_kernel(  # type: ignore[no-untyped-def]
    p_logits,
    p_temperature,
    p_min_p,
    p_seeds,
    p_positions,
    p_choices,
    p_greatest,
    p_least,
    p_best,
    stride_logits,
    vocab,
    HOPELESS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    i_row, i_piece = tl.program_id(0).to(tl.int64), tl.program_id(1)
    i_v = i_piece * BLOCK + tl.arange(0, BLOCK)
    temperature = tl.load(p_temperature + i_row)
    b_score = tl.load(p_logits + i_row * stride_logits + i_v, mask=i_v < vocab, other=float("-inf"))
    m_v = i_v < vocab
    if temperature > 0:
        b_z = tl.div_rn(b_score, temperature)
        b_score = b_z - tl.div_rn(tl.load(p_greatest + i_row), temperature)
        m_v = m_v & (b_z >= tl.load(p_least + i_row)) & (b_score >= HOPELESS)
        m_v = m_v & (tl.exp(b_score) >= tl.load(p_min_p + i_row))
        if tl.max(m_v.to(tl.int32), axis=0) == 0:
            return
        seed = tl.load(p_seeds + i_row)
        b_zero = tl.zeros([BLOCK], tl.uint32)
        b_position = b_zero + tl.load(p_positions + i_row).to(tl.uint32)
        b_choice = b_zero + tl.load(p_choices + i_row).to(tl.uint32)
        b_word, _, _, _ = tl.philox(seed, i_v.to(tl.uint32), b_position, b_choice, b_zero)
        b_u = ((b_word >> 9).to(tl.float32) + 0.5) * (1.0 / (1 << 23))
        b_score = b_score - tl.log(-tl.log(b_u))

    b_score = tl.where(b_score == 0, 0.0, b_score)  # -0 equals 0, but its bits lie below
    b_best = (_order(b_score).to(tl.int64) << 32) | (i_v.to(tl.int64) ^ 0xFFFFFFFF)  # of equals the lowest id
    best = tl.max(tl.where(m_v, b_best, -(1 << 63)), axis=0)
    tl.atomic_max(p_best + i_row, best)
