"""Gated activations, far into both tails."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from optimized.kernels import activation as op
from optimized.kernels.native import Library
from tandem.models.model_config import Activation
from tests.kernels.interpreted.checks import assert_close, dtypes, kernel_and_twin


@pytest.mark.parametrize("name", ["silu", "gelu", "gelu_tanh"])
@given(
    num_rows=st.integers(0, 4),
    size=st.sampled_from([1, 7, 128, 1000, 2500]),
    magnitude=st.sampled_from([0.1, 3.0, 40.0]),
    dtype=dtypes,
    seed=st.integers(0, 1 << 30),
)
def test_worst_row(
    name: Activation, num_rows: int, size: int, magnitude: float, dtype: torch.dtype, seed: int
) -> None:
    torch.manual_seed(seed)
    x = (torch.randn(num_rows, 2 * size + 5) * magnitude).to(dtype)[:, 2 : 2 + 2 * size]
    gate, up = x.double().chunk(2, dim=-1)
    if name == "silu":
        oracle = gate * torch.sigmoid(gate) * up
    elif name == "gelu":
        oracle = gate * 0.5 * torch.special.erfc(-gate / math.sqrt(2)) * up
    else:
        oracle = 0.5 * gate * (1 + torch.tanh(math.sqrt(2 / math.pi) * (gate + 0.044715 * gate**3))) * up
    for y, what in zip(kernel_and_twin(op, lambda: op.gated(x, name, Library())), ("kernel", "twin"), strict=True):
        assert_close(y, oracle, what)
