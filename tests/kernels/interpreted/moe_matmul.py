"""Experts: any split of tokens among them, from none to all."""

from __future__ import annotations

from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from optimized.kernels import moe_matmul as op
from optimized.kernels.native import Library
from tests.kernels.interpreted.checks import assert_close, dtypes, kernel_and_twin


@given(
    num_tokens=st.sampled_from([0, 1, 3, 40]),
    num_experts=st.sampled_from([1, 3, 8]),
    per_token=st.integers(1, 3),
    hidden_size=st.sampled_from([16, 40, 130]),
    intermediate_size=st.sampled_from([8, 70]),
    is_uneven=st.booleans(),
    dtype=dtypes,
    seed=st.integers(0, 1 << 30),
)
def test_worst_row(
    num_tokens: int,
    num_experts: int,
    per_token: int,
    hidden_size: int,
    intermediate_size: int,
    is_uneven: bool,
    dtype: torch.dtype,
    seed: int,
) -> None:
    torch.manual_seed(seed)
    k = min(per_token, num_experts)
    x = torch.randn(num_tokens, hidden_size).to(dtype)
    gate_up = (torch.randn(num_experts, 2 * intermediate_size, hidden_size) / hidden_size**0.5).to(dtype)
    down = (torch.randn(num_experts, hidden_size, intermediate_size) / intermediate_size**0.5).to(dtype)
    odds = torch.randn(num_tokens, num_experts) + (9.0 * torch.arange(num_experts) if is_uneven else 0)
    share, chosen = torch.softmax(odds, -1).topk(k, dim=-1)

    oracle = torch.zeros(num_tokens, hidden_size, dtype=torch.float64)
    for t in range(num_tokens):
        for weight, expert in zip(share[t].double(), chosen[t].tolist(), strict=True):
            gate, up = (gate_up[expert].double() @ x[t].double()).chunk(2)
            oracle[t] += weight * (down[expert].double() @ (F.silu(gate) * up))
    # the kernels of the activation are in a module of their own, which has its own test
    with mock.patch.object(op.activations, "use_triton", lambda x: False):
        results = kernel_and_twin(op, lambda: op.experts(x, gate_up, down, chosen, share, "silu", Library()))
    for y, what in zip(results, ("kernel", "twin"), strict=True):
        assert_close(y, oracle, what)


@pytest.mark.parametrize("num_tokens", [1, 7, 300])
@pytest.mark.parametrize("num_experts", [2, 60])
def test_tiles_cover_each_place_once(num_tokens: int, num_experts: int) -> None:
    torch.manual_seed(num_tokens)
    chosen = torch.rand(num_tokens, num_experts).topk(2).indices
    routing = op.route(chosen, num_experts)
    seen: list[int] = []
    for expert, first in routing.tiles.tolist():
        if expert >= 0:
            end = min(first + routing.rows, int(routing.starts[expert + 1]))
            places = routing.order[first:end].tolist()
            assert places and all(int(chosen.flatten()[place]) == expert for place in places)
            seen += places
    assert sorted(seen) == list(range(2 * num_tokens))
