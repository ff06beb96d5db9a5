"""Rows to draw from, and what the definition says of them.

Ties, masked tokens and both zeros are among the logits; every filter comes alone and together with others.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from hypothesis import strategies as st

from optimized.kernels.sample import Rows, Sampled

NEVER = float("-inf")
UNDECIDED = 1e-5  # so close to a border, or to each other, float32 need not agree with float64
KINDS = {
    "temperature": torch.float32,
    "top_k": torch.int64,
    "top_p": torch.float64,
    "min_p": torch.float32,
    "seed": torch.int64,
    "position": torch.int64,
    "choice": torch.int64,
}


@dataclass(frozen=True)
class Row:
    logits: list[float]
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    seed: int
    position: int
    choice: int


@st.composite
def batches(draw: st.DrawFn) -> list[Row]:
    vocab = draw(st.sampled_from([1, 2, 17, 64, 130, 300, 700]))
    return [draw(single_rows(vocab)) for _ in range(draw(st.integers(1, 4)))]


@st.composite
def single_rows(draw: st.DrawFn, vocab: int) -> Row:
    torch.manual_seed(draw(st.integers(0, 1 << 30)))
    logits = torch.randn(vocab) * draw(st.sampled_from([0.1, 3.0, 20.0]))
    if draw(st.booleans()):
        logits = (logits * 2).round() / 2  # ties, and zeros of both signs
    if draw(st.booleans()):
        logits[torch.rand(vocab) < 0.5] = NEVER
        logits[draw(st.integers(0, vocab - 1))] = 1.0
    return Row(
        logits.tolist(),
        temperature=draw(st.sampled_from([0.0, 1.0, 0.3, 1.7, 50.0, 1e-39])),
        top_k=draw(st.sampled_from([0, -1, 1, 2, 7, vocab - 1, vocab, 1 << 40])),
        top_p=draw(st.sampled_from([1.0, 0.95, 0.5, 0.1, 1e-9])),
        min_p=draw(st.sampled_from([0.0, 0.0, 0.05, 1.0])),
        seed=draw(st.integers(-(1 << 63), (1 << 63) - 1)),
        position=draw(st.sampled_from([0, 5, (1 << 32) - 1])),
        choice=draw(st.sampled_from([0, 3])),
    )


def tensors(batch: list[Row], is_part: bool = False) -> tuple[torch.Tensor, Rows]:
    """The arguments of the op; with ``is_part`` the logits lie in wider rows."""
    logits = torch.tensor([row.logits for row in batch])
    if is_part:
        logits = torch.cat((logits, torch.full((len(batch), 3), math.nan)), dim=1)[:, : logits.shape[1]]
    columns = [torch.tensor([getattr(row, name) for row in batch], dtype=kind) for name, kind in KINDS.items()]
    return logits, Rows(*columns)


def check(batch: list[Row], logits: torch.Tensor, rows: Rows, drawn: Sampled, what: str) -> None:
    """Each row of ``drawn`` is as defined."""
    assert torch.equal(drawn.greatest, logits.amax(-1)), what
    for row, given, divisor, token, least in zip(
        batch, logits, rows.temperature, drawn.tokens.tolist(), drawn.least, strict=True
    ):
        kept, scores, is_sure = defined(row, given, divisor)
        assert 0 <= token < len(row.logits), what
        if not math.isfinite(given.max() / divisor):
            assert token == row.logits.index(max(row.logits)), what
            assert least == NEVER, what
        elif is_sure:
            z = given / divisor
            is_left = (z >= least) & (torch.exp(z - z.max()) >= row.min_p)
            assert torch.equal(is_left & (z > NEVER), kept & (z > NEVER)), what
            assert scores[token] >= scores.max() - UNDECIDED, what
            if (scores == scores.max()).sum() > 1:
                assert token == int(scores.argmax()), what


def defined(row: Row, logits: torch.Tensor, temperature: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, bool]:
    """Which tokens are kept, their scores, and whether none of them lies on a border that rounding may move."""
    if not math.isfinite(logits.max() / temperature):
        return logits > NEVER, logits, True
    z = (logits / temperature).double()  # the quotient is rounded to float32 by definition
    kept = torch.ones(len(z), dtype=torch.bool)
    if 0 < row.top_k < len(z):
        kept &= (z[None] > z[:, None]).sum(1) < row.top_k
    is_sure = True
    if row.top_p < 1:
        p = torch.softmax(z.masked_fill(~kept, NEVER), -1)
        above = (p[None] * (z[None] > z[:, None])).sum(1)
        is_sure &= bool(((above - row.top_p).abs() > UNDECIDED * row.top_p).all())
        kept &= above < row.top_p
    share = torch.exp(z - z.max())
    if row.min_p not in (0.0, 1.0):
        is_sure &= bool(((share - row.min_p).abs() > UNDECIDED * row.min_p).all())
    kept &= share >= row.min_p
    noise = torch.tensor([noise_of(v, row) for v in range(len(z))], dtype=torch.float64)
    return kept, (z - z.max() + noise).masked_fill(~kept, NEVER), is_sure


def noise_of(token: int, row: Row) -> float:
    """Philox-4x32-10 with plain integers, after the paper."""
    mask = (1 << 32) - 1
    counter, key = [token, row.position, row.choice, 0], [row.seed & mask, row.seed >> 32 & mask]
    for _ in range(10):
        a, b = 0xD2511F53 * counter[0], 0xCD9E8D57 * counter[2]
        counter = [b >> 32 ^ counter[1] ^ key[0], b & mask, a >> 32 ^ counter[3] ^ key[1], a & mask]
        key = [(key[0] + 0x9E3779B9) & mask, (key[1] + 0xBB67AE85) & mask]
    return -math.log(-math.log(((counter[0] >> 9) + 0.5) / (1 << 23)))
