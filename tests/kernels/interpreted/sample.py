"""The draw: tokens, and what the filters leave."""

from __future__ import annotations

from unittest import mock

import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from optimized.kernels import sample as op
from optimized.kernels.native import Library
from tests.kernels.draws import Row, batches, check, tensors
from tests.kernels.interpreted.checks import kernel_and_twin


# borders that few drawn rows would show: the k-th value stays; what top-k drops has no mass for top-p
@example(batch=[Row([i / 64 for i in range(64)], 1.0, 7, 1.0, 0.0, 1, 0, 0)], piece=64, ordered=64, is_part=False)
@example(batch=[Row([i / 64 for i in range(64)], 1.0, 7, 0.5, 0.0, 1, 0, 0)], piece=64, ordered=64, is_part=False)
@settings(max_examples=5 * settings().max_examples)
@given(
    batch=batches(),
    piece=st.sampled_from([64, 4096]),
    ordered=st.sampled_from([1, 20, 1024]),
    is_part=st.booleans(),
)
def test_each_row_is_the_definition(batch: list[Row], piece: int, ordered: int, is_part: bool) -> None:
    logits, rows = tensors(batch, is_part)
    before = logits.clone()
    with mock.patch.multiple(op, _PIECE=piece, _ORDERED=ordered):
        kernel, twin = kernel_and_twin(op, lambda: op.sample(logits, rows, Library()))
    assert torch.equal(logits, before)
    check(batch, logits, rows, kernel, "kernel")
    check(batch, logits, rows, twin, "twin")


@given(
    vocab=st.sampled_from([1, 17, 64, 100]),
    odd=st.sampled_from([float("nan"), float("inf"), float("-inf")]),
    is_all=st.booleans(),
    temperature=st.sampled_from([0.0, 1.0]),
    top_p=st.sampled_from([1.0, 0.5]),
)
def test_a_row_of_no_numbers_gets_a_token_of_the_vocabulary(
    vocab: int, odd: float, is_all: bool, temperature: float, top_p: float
) -> None:
    """The next step may read it before anyone knows."""
    row = [odd if is_all or i == vocab // 2 else float(i % 5) for i in range(vocab)]
    logits, rows = tensors([Row(row, temperature, 0, top_p, 0.0, 1, 0, 0)] * 2)
    with mock.patch.multiple(op, _PIECE=64):
        for drawn in kernel_and_twin(op, lambda: op.sample(logits, rows, Library())):
            assert ((drawn.tokens >= 0) & (drawn.tokens < vocab)).all()
