"""Each op in every dtype against its twin on the CPU in float32; the worst row counts.

On a GPU that is the kernel as compiled for it. On a CPU it is the twin itself, which shows that what is asked of a
kernel can be met.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from optimized.kernels import activation, edit_logits, moe_matmul, paged_attention, rms_norm, rope_cache, sample
from optimized.kernels.native import Library
from tandem.models.model_config import Activation

TOLERANCE = {torch.float32: 1e-4, torch.float16: 5e-3, torch.bfloat16: 3e-2}  # of a row's greatest value, at least 1
LIBRARY = Library()
MULTIPROCESSORS = 1000  # so many that few sequences are split
dtypes = pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
devices = pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])


def to(device: str, value: Any) -> Any:
    """The same argument there."""
    return value.to(device) if isinstance(value, torch.Tensor) else value


def widened(value: Any) -> Any:
    """The same argument as the twin takes it."""
    return value.float() if isinstance(value, torch.Tensor) and value.is_floating_point() else value


def assert_close(actual: torch.Tensor, expected: torch.Tensor) -> None:
    actual, tolerance = actual.cpu().double(), TOLERANCE[actual.dtype]
    assert bool(torch.isfinite(actual).all())
    expected = expected.double()
    error = (actual - expected).abs().amax(-1) / expected.abs().amax(-1).clamp(min=1)
    assert float(error.max()) <= tolerance


@devices
@dtypes
@pytest.mark.parametrize("lengths", [[1] * 5, [1, 1, 70, 33]], ids=["decodes", "mixed"])
@pytest.mark.parametrize(("window", "softcap"), [(None, None), (100, None), (None, 30.0)])
@pytest.mark.parametrize(("heads", "kv_heads", "head_size"), [(8, 2, 128), (6, 2, 80), (4, 4, 256)])
def test_paged_attention(
    device: str,
    dtype: torch.dtype,
    lengths: list[int],
    window: int | None,
    softcap: float | None,
    heads: int,
    kv_heads: int,
    head_size: int,
) -> None:
    """With and without splits, and with a table that has room for more blocks."""
    torch.manual_seed(0)
    contexts = [length + before for length, before in zip(lengths, [0, 700, 64, 300, 15], strict=False)]
    width = 64
    tables = torch.randperm(len(lengths) * width).view(len(lengths), width).int()
    keys, values = torch.randn(2, tables.numel(), kv_heads, 16, head_size, dtype=dtype)
    q = torch.randn(sum(lengths), heads, head_size, dtype=dtype)
    starts = torch.tensor([0, *lengths]).cumsum(0).int()
    form = paged_attention.Form(head_size**-0.5, window, softcap)
    places = (starts, torch.tensor(contexts, dtype=torch.int32), tables)
    want = paged_attention.paged_attention(
        q.float(), (keys.float(), values.float()), paged_attention.Queries(*places), form, LIBRARY
    )
    group = heads // kv_heads
    size = len(paged_attention.query_blocks(lengths, group).table) + 3
    blocks = paged_attention.query_blocks(lengths, group, device, size)
    on_device = [x.to(device) for x in (*places, q, keys, values)]
    for splits in {1, paged_attention.choose_num_splits(blocks, kv_heads, max(contexts), MULTIPROCESSORS)}:
        launch = paged_attention.Launch(blocks, len(q), splits)
        queries = paged_attention.Queries(*on_device[:3], (launch,))
        got = paged_attention.paged_attention(on_device[3], (on_device[4], on_device[5]), queries, form, LIBRARY)
        assert_close(got, want)


@devices
@dtypes
def test_rope_cache(device: str, dtype: torch.dtype) -> None:
    """Every fifth token is stored nowhere."""
    torch.manual_seed(0)
    qkv = torch.randn(37, 12, 80, dtype=dtype).split([8, 2, 2], dim=1)
    angles = torch.rand(50, 32) * 7
    table, positions, slots = (angles.cos(), angles.sin()), torch.randint(50, (37,)), torch.randperm(64)[:37]
    slots[::5] = -1
    want, got = (torch.zeros(2, 4, 2, 16, 80, dtype=kind) for kind in (torch.float32, dtype))
    got = got.to(device)
    wanted = rope_cache.rotate_and_store(
        *map(widened, qkv), table, rope_cache.Places(positions, slots), (want[0], want[1]), LIBRARY
    )
    rotated = rope_cache.rotate_and_store(
        *(x.to(device) for x in qkv),
        (table[0].to(device), table[1].to(device)),
        rope_cache.Places(positions.to(device), slots.to(device)),
        (got[0], got[1]),
        LIBRARY,
    )
    assert_close(rotated, wanted)
    assert_close(got, want)


@devices
@dtypes
@pytest.mark.parametrize("shape", [(33, 4096), (5, 100), (9, 7, 128)], ids=str)
@pytest.mark.parametrize("late", [True, False])
def test_rms_norm(device: str, dtype: torch.dtype, shape: tuple[int, ...], late: bool) -> None:
    torch.manual_seed(0)
    x, added = torch.randn(2, *shape, dtype=dtype)
    weight = torch.randn(shape[-1])
    weight = weight if late else weight.to(dtype)

    def norm(x: torch.Tensor, weight: torch.Tensor, added: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return rms_norm.rms_norm(x, weight, 1e-5, LIBRARY, late_rounding=late, added=added, added_scale=0.5)

    want = norm(x.float(), weight.float(), added.float())
    for a, b in zip(norm(x.to(device), weight.to(device), added.to(device)), want, strict=True):
        assert_close(a, b)


@devices
@dtypes
@pytest.mark.parametrize("name", ["silu", "gelu", "gelu_tanh"])
def test_gated(device: str, dtype: torch.dtype, name: Activation) -> None:
    torch.manual_seed(0)
    x = torch.randn(17, 2 * 1500, dtype=dtype)
    assert_close(activation.gated(x.to(device), name, LIBRARY), activation.gated(x.float(), name, LIBRARY))


@devices
@dtypes
@pytest.mark.parametrize("num_tokens", [1, 40, 300])
def test_moe_matmul(device: str, dtype: torch.dtype, num_tokens: int) -> None:
    torch.manual_seed(0)
    x = torch.randn(num_tokens, 256, dtype=dtype)
    up, down = torch.randn(8, 2 * 200, 256, dtype=dtype) / 16, torch.randn(8, 256, 200, dtype=dtype) / 14
    share, chosen = torch.softmax(torch.randn(num_tokens, 8), -1).topk(2, dim=-1)
    arguments = (x, up, down, chosen, share)
    want = moe_matmul.experts(*map(widened, arguments), "silu", LIBRARY)
    assert_close(moe_matmul.experts(*(to(device, a) for a in arguments), "silu", LIBRARY), want)


@devices
def test_sample(device: str) -> None:
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
    want = sample.sample(logits, rows, LIBRARY)
    got = sample.sample(logits.to(device), sample.Rows(*(x.to(device) for x in rows)), LIBRARY)
    assert torch.equal(got.tokens.cpu(), want.tokens)
    assert torch.equal(got.least.cpu() > float("-inf"), want.least > float("-inf"))


@devices
def test_edit_logits(device: str) -> None:
    """Masks and penalties of some rows, in an order of their own; the other rows stay as they are."""
    torch.manual_seed(0)
    logits = 4 * torch.randn(9, 5003)
    rows, slots = torch.tensor([7, 0, 3]), torch.tensor([1, 4, 2])
    bits = torch.randint(-(1 << 31), (1 << 31) - 1, (5, edit_logits.num_words(5003)), dtype=torch.int32)
    counts = torch.randint(3, (5, 5003), dtype=torch.int32)
    counts[:, ::7] |= edit_logits.IN_PROMPT
    factors = torch.tensor([[1.3, 0.8, 1.0], [0.5, 0.0, -0.2], [0.1, 0.7, 0.0]])

    def edited(device: str) -> list[torch.Tensor]:
        z, at, of = logits.to(device, copy=True), rows.to(device), slots.to(device)
        greatest = edit_logits.mask(z, at, of, bits.to(device), LIBRARY)
        penalties = edit_logits.Penalties(*factors.to(device))
        edit_logits.penalize(z, at, of, counts.to(device), penalties, LIBRARY)
        return [z.cpu(), *(x.cpu() for x in greatest)]

    want, got = edited("cpu"), edited(device)
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)
    untouched = [i for i in range(9) if i not in rows]
    assert torch.equal(got[0][untouched], logits[untouched]) and bool((got[0] == float("-inf")).any())
