"""Each kernel as compiled for this GPU against its twin on the CPU in float32; the worst row counts."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from optimized.kernels import activation, moe_matmul, paged_attention, rms_norm, rope_cache, sample
from tandem.models.model_config import Activation

pytestmark = pytest.mark.gpu

TOLERANCE = {torch.float32: 1e-4, torch.float16: 5e-3, torch.bfloat16: 3e-2}  # of a row's greatest value, at least 1
dtypes = pytest.mark.parametrize("dtype", TOLERANCE, ids=str)


def on_gpu(value: Any) -> Any:
    """The same argument on the GPU."""
    return value.cuda() if isinstance(value, torch.Tensor) else value


def widened(value: Any) -> Any:
    """The same argument as the twin takes it."""
    return value.float() if isinstance(value, torch.Tensor) and value.is_floating_point() else value


def assert_close(actual: torch.Tensor, expected: torch.Tensor) -> None:
    actual, tolerance = actual.cpu().double(), TOLERANCE[actual.dtype]
    assert bool(torch.isfinite(actual).all())
    expected = expected.double()
    error = (actual - expected).abs().amax(-1) / expected.abs().amax(-1).clamp(min=1)
    assert float(error.max()) <= tolerance


@dtypes
@pytest.mark.parametrize("lengths", [[1] * 5, [1, 1, 70, 33]], ids=["decodes", "mixed"])
@pytest.mark.parametrize(("window", "softcap"), [(None, None), (100, None), (None, 30.0)])
@pytest.mark.parametrize(("heads", "kv_heads", "head_size"), [(8, 2, 128), (6, 2, 80), (4, 4, 256)])
def test_paged_attention(
    dtype: torch.dtype,
    lengths: list[int],
    window: int | None,
    softcap: float | None,
    heads: int,
    kv_heads: int,
    head_size: int,
) -> None:
    torch.manual_seed(0)
    contexts = [length + before for length, before in zip(lengths, [0, 700, 64, 300, 15], strict=False)]
    width = 64
    tables = torch.randperm(len(lengths) * width).view(len(lengths), width).int()
    keys, values = torch.randn(2, tables.numel(), 16, kv_heads, head_size, dtype=dtype)
    q = torch.randn(sum(lengths), heads, head_size, dtype=dtype)
    starts = torch.tensor([0, *torch.tensor(lengths).cumsum(0).tolist()], dtype=torch.int32)
    blocks = paged_attention.query_blocks(lengths, heads // kv_heads)
    rest = {"scale": head_size**-0.5, "window": window, "softcap": softcap}
    tensors = {
        "query_starts": starts,
        "context_lens": torch.tensor(contexts, dtype=torch.int32),
        "block_tables": tables,
    }
    want = paged_attention.paged_attention(q.float(), keys.float(), values.float(), blocks=blocks, **tensors, **rest)
    device_blocks = paged_attention.query_blocks(lengths, heads // kv_heads, "cuda", len(blocks.table) + 3)
    for num_splits in {1, paged_attention.choose_num_splits(device_blocks, kv_heads, max(contexts), 1000)}:
        got = paged_attention.paged_attention(
            *map(on_gpu, (q, keys, values)),
            blocks=device_blocks,
            num_splits=num_splits,
            **{name: x.cuda() for name, x in tensors.items()},
            **rest,
        )
        assert_close(got, want)


@dtypes
def test_rope_cache(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    q, k, v = torch.randn(37, 12, 80, dtype=dtype).split([8, 2, 2], dim=1)
    angles = torch.rand(50, 32) * 7
    slots = torch.randperm(64)[:37]
    slots[::5] = -1
    arguments = (q, k, v, angles.cos(), angles.sin(), torch.randint(50, (37,)))
    caches = [torch.zeros(2, 4, 16, 2, 80, dtype=kind) for kind in (torch.float32, dtype)]
    want = rope_cache.rotate_and_store(*map(widened, arguments), *caches[0], slots)
    on_device = caches[1].cuda()
    got = rope_cache.rotate_and_store(*map(on_gpu, arguments), *on_device, slots.cuda())
    assert_close(got, want)
    assert_close(on_device, caches[0])


@dtypes
@pytest.mark.parametrize("shape", [(33, 4096), (5, 100), (9, 7, 128)], ids=str)
@pytest.mark.parametrize("late", [True, False])
def test_rms_norm(dtype: torch.dtype, shape: tuple[int, ...], late: bool) -> None:
    torch.manual_seed(0)
    x, added = torch.randn(2, *shape, dtype=dtype)
    weight = torch.randn(shape[-1])
    weight = weight if late else weight.to(dtype)
    options = {"late_rounding": late, "added_scale": 0.5}
    want = rms_norm.rms_norm(x.float(), weight.float(), 1e-5, added=added.float(), **options)
    got = rms_norm.rms_norm(x.cuda(), weight.cuda(), 1e-5, added=added.cuda(), **options)
    for a, b in zip(got, want, strict=True):
        assert_close(a, b)


@dtypes
@pytest.mark.parametrize("name", ["silu", "gelu", "gelu_tanh"])
def test_gated(dtype: torch.dtype, name: Activation) -> None:
    torch.manual_seed(0)
    x = torch.randn(17, 2 * 1500, dtype=dtype)
    assert_close(activation.gated(x.cuda(), name), activation.gated(x.float(), name))


@dtypes
@pytest.mark.parametrize("num_tokens", [1, 40, 300])
def test_moe_matmul(dtype: torch.dtype, num_tokens: int) -> None:
    torch.manual_seed(0)
    x = torch.randn(num_tokens, 256, dtype=dtype)
    up, down = torch.randn(8, 2 * 200, 256, dtype=dtype) / 16, torch.randn(8, 256, 200, dtype=dtype) / 14
    share, chosen = torch.softmax(torch.randn(num_tokens, 8), -1).topk(2, dim=-1)
    want = moe_matmul.experts(*map(widened, (x, up, down, chosen, share)), "silu")
    assert_close(moe_matmul.experts(*map(on_gpu, (x, up, down, chosen, share)), "silu"), want)


def test_sample() -> None:
    torch.manual_seed(0)
    count = 24
    logits = 4 * torch.randn(count, 5000)
    rows = sample.Rows(
        (torch.arange(count) % 3) / 2.0,
        torch.arange(count) % 4 * 20,
        1 - (torch.arange(count) % 5).double() / 10,
        (torch.arange(count) % 2) / 50.0,
        torch.randint(-(1 << 62), 1 << 62, (count,)),
        torch.arange(count),
        torch.arange(count) % 2,
    )
    want = sample.sample(logits, rows)
    got = sample.sample(logits.cuda(), sample.Rows(*map(on_gpu, rows)))
    assert torch.equal(got.tokens.cpu(), want.tokens)
    assert torch.equal(got.least.cpu() > float("-inf"), want.least > float("-inf"))
