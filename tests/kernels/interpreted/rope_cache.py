"""Rotation and storing: heads as slices of a projection, partial rotation, tokens that are not stored."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from optimized.kernels import rope_cache as op
from optimized.kernels.native import Library
from tests.kernels.interpreted.checks import assert_close, dtypes, kernel_and_twin


@given(
    num_tokens=st.integers(0, 9),
    num_heads=st.sampled_from([1, 3, 4, 9]),
    num_kv_heads=st.sampled_from([1, 2, 5]),
    head_size=st.sampled_from([8, 24, 64, 80]),
    unrotated=st.sampled_from([0, 0, 2, 4]),
    block_size=st.sampled_from([1, 4, 16]),
    joint=st.booleans(),
    dtype=dtypes,
    seed=st.integers(0, 1 << 30),
)
def test_worst_row(
    num_tokens: int,
    num_heads: int,
    num_kv_heads: int,
    head_size: int,
    unrotated: int,
    block_size: int,
    joint: bool,
    dtype: torch.dtype,
    seed: int,
) -> None:
    torch.manual_seed(seed)
    half, max_len = head_size // 2 - unrotated, 50
    qkv = torch.randn(num_tokens, num_heads + 2 * num_kv_heads, head_size).to(dtype)
    q, k, v = qkv.split([num_heads, num_kv_heads, num_kv_heads], dim=1)
    angles = torch.rand(max_len, half) * 7
    cos, sin = angles.cos(), angles.sin()
    positions = torch.randint(max_len, (num_tokens,))
    num_blocks = -(-num_tokens // block_size) + 2
    slots = torch.randperm(num_blocks * block_size)[:num_tokens]
    slots[torch.rand(num_tokens) < 0.2] = -1
    shape = (num_blocks, num_kv_heads, block_size, head_size)

    def call() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        both = torch.full((num_blocks, 2, *shape[1:]) if joint else (2, *shape), float("nan"), dtype=dtype)
        keys, values = (both[:, 0], both[:, 1]) if joint else (both[0], both[1])
        y = op.rotate_and_store(q, k, v, (cos, sin), op.Places(positions, slots), (keys, values), Library())
        return y, *(x.transpose(1, 2).flatten(0, 1) for x in (keys, values))

    stored = slots >= 0
    at = slots[stored]
    for (y, keys, values), what in zip(kernel_and_twin(op, call), ("kernel", "twin"), strict=True):
        assert_close(y, rotated(q, cos, sin, positions), what)
        assert_close(keys[at], rotated(k, cos, sin, positions)[stored], what)
        assert torch.equal(values[at], v[stored])
        untouched = torch.ones(len(keys), dtype=torch.bool).index_fill_(0, at, False)
        assert bool(keys[untouched].isnan().all()) and bool(values[untouched].isnan().all())


def rotated(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """As a product of complex numbers, in float64."""
    half = cos.shape[1]
    z = torch.complex(x[..., :half].double(), x[..., half : 2 * half].double())
    z = z * torch.complex(cos[positions].double(), sin[positions].double())[:, None]
    return torch.cat((z.real, z.imag, x[..., 2 * half :].double()), dim=-1)
