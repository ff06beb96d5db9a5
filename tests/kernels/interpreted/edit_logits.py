"""Masks and penalties, of rows in any order, with slots in any order."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import given
from hypothesis import strategies as st

from optimized.kernels import edit_logits as op
from optimized.kernels.native import Library
from tests.kernels.interpreted.checks import kernel_and_twin

NEVER = float("-inf")


@dataclass
class Case:
    """Some rows of logits, which may lie in wider rows, and their slots in a table of others."""

    logits: torch.Tensor
    rows: torch.Tensor
    slots: torch.Tensor
    allowed: torch.Tensor  # bool [S, V]
    prompt: torch.Tensor  # bool [S, V]
    output: torch.Tensor  # int32 [S, V]
    penalties: op.Penalties


@st.composite
def cases(draw: st.DrawFn) -> Case:
    torch.manual_seed(draw(st.integers(0, 1 << 30)))
    vocab, num_rows = draw(st.sampled_from([1, 31, 32, 33, 1000, 3000])), draw(st.integers(1, 5))
    logits = torch.randn(num_rows, vocab + 3)[:, : vocab if draw(st.booleans()) else None] * 5
    vocab = logits.shape[1]
    if draw(st.booleans()):
        logits[0, 0] = draw(st.sampled_from([float("nan"), float("inf"), NEVER, 0.0]))
    count, num_slots = draw(st.integers(0, num_rows)), num_rows + 2
    share = draw(st.sampled_from([0.0, 0.5, 1.0]))
    repetition, frequency, presence = torch.rand(3, count) * torch.tensor([[2.0], [2.0], [2.0]])
    return Case(
        logits,
        torch.randperm(num_rows)[:count],
        torch.randperm(num_slots)[:count],
        torch.rand(num_slots, vocab) < share,
        torch.rand(num_slots, vocab) < share,
        (torch.randint(0, 4, (num_slots, vocab)) * (torch.rand(num_slots, vocab) < 0.5)).int(),
        op.Penalties(repetition + 0.5, frequency - 1, presence - 1),
    )


def pack(allowed: torch.Tensor) -> torch.Tensor:
    """Bit by bit."""
    words = torch.zeros(len(allowed), op.num_words(allowed.shape[1]), dtype=torch.int64)
    for v in range(allowed.shape[1]):
        words[:, v // 32] |= allowed[:, v].long() << (v % 32)
    return words.to(torch.int32)


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    return bool(torch.allclose(a, b, rtol=1e-6, atol=1e-6, equal_nan=True))


def check_mask(c: Case, masked: torch.Tensor, before: torch.Tensor, after: torch.Tensor) -> None:
    """Against the definition."""
    want = c.logits.clone()
    for row, slot in zip(c.rows.tolist(), c.slots.tolist(), strict=True):
        want[row, ~c.allowed[slot]] = NEVER
    assert same(masked, want)
    assert same(before, c.logits[c.rows].amax(-1))
    for got, row in zip(after, c.rows.tolist(), strict=True):
        assert same(got, want[row].amax(-1)) or bool(c.logits[row].isnan().any())


def check_penalties(c: Case, penalized: torch.Tensor) -> None:
    """Against the definition, token by token."""
    want = c.logits.double()
    for i, (row, slot) in enumerate(zip(c.rows.tolist(), c.slots.tolist(), strict=True)):
        z, count = want[row], c.output[slot]
        repetition, frequency, presence = (x[i].double() for x in c.penalties)
        seen = c.prompt[slot] | (count > 0)
        z[seen] = torch.where(z > 0, z / repetition, z * repetition)[seen]
        z[count > 0] -= (frequency * count + presence)[count > 0]
    assert bool(torch.allclose(penalized.double(), want, rtol=1e-5, atol=1e-5, equal_nan=True))


def run_mask(c: Case, library: Library) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    z = torch.empty(len(c.logits), c.logits.shape[1] + 2)[:, : c.logits.shape[1]].copy_(c.logits)
    return z, *op.mask(z, c.rows, c.slots, pack(c.allowed), library)


def run_penalties(c: Case, library: Library) -> torch.Tensor:
    z = torch.empty(len(c.logits), c.logits.shape[1] + 2)[:, : c.logits.shape[1]].copy_(c.logits)
    counts = c.output | torch.where(c.prompt, op.IN_PROMPT, 0).int()
    op.penalize(z, c.rows, c.slots, counts, c.penalties, library)
    return z


@given(cases())
def test_masks_are_the_definition(c: Case) -> None:
    results: Any = kernel_and_twin(op, lambda: run_mask(c, Library()))
    for result in results:
        check_mask(c, *result)


@given(cases())
def test_penalties_are_the_definition(c: Case) -> None:
    for result in kernel_and_twin(op, lambda: run_penalties(c, Library())):
        check_penalties(c, result)
