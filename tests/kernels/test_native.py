"""The CPU kernels in C++ against their twins and float64, an engine that uses them, and how they are built."""

from __future__ import annotations

import random
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from optimized.cache import attention_cpu, native
from optimized.kernels import activation, matvec, rms_norm, row_attention, sample
from optimized.runner.philox import gumbel
from tandem.engine import EngineRequest
from tandem.sampling_params import SamplingParams
from tests.equivalence.comparison import assert_same
from tests.equivalence.helpers import llama_optimized, llama_reference, run, use_kernels
from tests.kernels import draws
from tests.kernels.apart import run_apart
from tests.reference.families import VOCAB

pytestmark = pytest.mark.skipif(not shutil.which("c++"), reason="no C++ compiler")

# Sums in another order, products not rounded before they are added: some units in the last place.
ULP = {torch.bfloat16: 2**-7, torch.float16: 2**-10, torch.float32: 2**-20}
dtypes = st.sampled_from(list(ULP))


@pytest.fixture(autouse=True)
def kernels() -> Iterator[None]:
    use_kernels(True)
    assert row_attention.is_ready(torch.float32)
    yield
    native.forget()


def assert_close(
    got: torch.Tensor, want: torch.Tensor, roundings: int = 1, floor: float | torch.Tensor = 2**-6
) -> None:
    """So many roundings to the dtype may differ; ``floor`` is how great summands are that cancel each other out."""
    assert got.shape == want.shape and got.dtype == want.dtype and got.is_contiguous()
    bound = roundings * ULP[got.dtype] * want.float().abs().clamp(min=torch.as_tensor(floor))
    assert ((got.float() - want.float()).abs() <= bound).all()


@st.composite
def rows(draw: st.DrawFn) -> torch.Tensor:
    """[T, D] or [T, H, d], whole or as a part of wider rows."""
    torch.manual_seed(draw(st.integers(0, 2**31)))
    dtype, count = draw(dtypes), draw(st.sampled_from([1, 2, 7, 130]))
    size, before, behind = draw(st.integers(1, 200)), draw(st.integers(0, 9)), draw(st.integers(0, 9))
    heads = draw(st.sampled_from([None, 1, 3]))
    wide = torch.randn(count, before + (heads or 1) * size + behind) * draw(st.sampled_from([1e-3, 1.0, 30.0]))
    part = wide.to(dtype)[:, before : before + (heads or 1) * size]
    return part if heads is None else part.view(count, heads, size)


@given(x=rows(), late=st.booleans(), scale=st.sampled_from([1.0, 0.22]), added=st.booleans())
def test_norm(x: torch.Tensor, late: bool, scale: float, added: bool) -> None:
    weight = torch.randn(x.shape[-1], dtype=torch.float32 if late else x.dtype)
    other = torch.randn_like(x) if added else None
    got = rms_norm.rms_norm(x, weight, 1e-5, late_rounding=late, added=other, added_scale=scale)
    want = rms_norm._twin(x, weight, 1e-5, late, other, scale)
    if other is None:
        assert got[1] is x
        assert_close(got[0], want[0], roundings=1 if late else 2)
        return
    summands = x.float().abs() + other.float().abs()
    assert_close(got[1], want[1], floor=summands)
    factor = weight.float().abs() * torch.rsqrt(want[1].float().square().mean(-1, keepdim=True) + 1e-5)
    assert_close(got[0], want[0], roundings=1 if late else 2, floor=summands * factor)


@given(x=rows(), name=st.sampled_from(activation._NAMES))
@example(x=torch.linspace(-4, 4, 300).view(1, -1), name="gelu_tanh")  # where its constants tell
def test_gated(x: torch.Tensor, name: Any) -> None:
    x = x.flatten(1) if x.dim() == 3 else x
    x = x[:, : x.shape[1] // 2 * 2]
    gate, up = x.float().abs().chunk(2, dim=1)
    floor = (gate * up).clamp(min=2**-6) if x.dtype == torch.float32 else 2**-6  # 1 + erf(-3) is little
    assert_close(activation.gated(x, name), activation._twin(x, name), roundings=2, floor=floor)


@st.composite
def caches(draw: st.DrawFn, dtype: torch.dtype) -> dict[str, Any]:
    """Sizes of heads, a cache that is no numbers wherever nothing was written, and sequences in some of its rows."""
    torch.manual_seed(draw(st.integers(0, 2**31)))
    num_kv_heads, group = draw(st.integers(1, 3)), draw(st.integers(1, 5))
    d = draw(st.sampled_from([8, 24, 48, 64, 80, 128]))
    longest = draw(st.sampled_from([5, 40, 300, 800]))
    contexts = draw(st.lists(st.integers(1, longest), min_size=1, max_size=5))
    places = random.Random(d).sample(range(7), len(contexts))
    keys, values = torch.full((2, 7, num_kv_heads, longest + 3, d), float("nan"), dtype=dtype)
    for row, context in zip(places, contexts, strict=True):
        keys[row, :, :context] = torch.randn(num_kv_heads, context, d) * 2
        values[row, :, :context] = torch.randn(num_kv_heads, context, d)
    q = torch.randn(len(contexts), num_kv_heads * group, d).to(dtype)
    return {"q": q, "cache": (keys, values), "rows": torch.tensor(places), "contexts": torch.tensor(contexts)}


def attention(
    q: torch.Tensor,
    cache: tuple[torch.Tensor, torch.Tensor],
    rows: torch.Tensor,
    contexts: torch.Tensor,
    scale: float,
    softcap: float | None,
    window: int | None,
) -> torch.Tensor:
    """The definition in float64."""
    outputs = []
    for heads, row, context in zip(q.double(), rows.tolist(), contexts.tolist(), strict=True):
        first = max(0, context - window) if window else 0
        keys, values = (x[row, :, first:context].double() for x in cache)
        z = torch.einsum("kgd,ksd->kgs", heads.view(len(keys), -1, q.shape[-1]), keys) * scale
        if softcap is not None:
            z = softcap * torch.tanh(z / softcap)
        outputs.append(torch.einsum("kgs,ksd->kgd", torch.softmax(z, -1), values).flatten())
    return torch.stack(outputs)


@settings(max_examples=settings().max_examples * 2)
@given(
    data=st.data(),
    dtype=dtypes,
    softcap=st.sampled_from([None, 3.0]),
    window=st.sampled_from([None, 1, 7, 260]),
    scale=st.sampled_from([0.125, 0.3]),
)
def test_attention(data: Any, dtype: torch.dtype, softcap: float | None, window: int | None, scale: float) -> None:
    drawn = data.draw(caches(dtype))
    got = row_attention.attend_rows(**drawn, scale=scale, softcap=softcap, window=window)
    want = attention(**drawn, scale=scale, softcap=softcap, window=window)
    assert got.dtype == dtype
    bound = max(ULP[dtype], 2**-16)  # scores of some tens are off by as many units in the last place of 1
    assert ((got.double() - want).abs() <= bound * want.abs().clamp(min=0.5)).all()


@given(data=st.data(), threads=st.integers(1, 3))
def test_attention_depends_neither_on_neighbours_nor_on_threads(data: Any, threads: int) -> None:
    drawn = data.draw(caches(torch.float32))
    options = {"cache": drawn["cache"], "scale": 0.125, "softcap": None, "window": None}
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        together = row_attention.attend_rows(drawn["q"], rows=drawn["rows"], contexts=drawn["contexts"], **options)
    finally:
        torch.set_num_threads(before)
    for i in range(len(together)):
        one = slice(i, i + 1)
        alone = row_attention.attend_rows(
            drawn["q"][one], rows=drawn["rows"][one], contexts=drawn["contexts"][one], **options
        )
        assert torch.equal(alone[0], together[i])


def test_what_is_no_number_spoils_its_own_sequence_alone() -> None:
    q, (keys, values) = torch.randn(2, 2, 16), torch.randn(2, 2, 1, 50, 16)
    keys[0, 0, 49] = float("nan")
    out = row_attention.attend_rows(
        q, (keys, values), torch.tensor([0, 1]), torch.tensor([50, 50]), scale=0.2, softcap=None, window=None
    )
    assert out[0].isnan().all() and out[1].isfinite().all()


@given(data=st.data(), dtype=dtypes)
def test_rotation_and_write(data: Any, dtype: torch.dtype) -> None:
    drawn = data.draw(caches(dtype))
    keys, values = drawn["cache"]
    num_kv_heads, capacity, d = keys.shape[1:]
    count, num_heads = len(drawn["q"]), drawn["q"].shape[1]
    half = data.draw(st.integers(1, d // 2))
    sizes = [num_heads * d, num_kv_heads * d, num_kv_heads * d]
    q, k, v = (x.view(count, -1, d) for x in torch.randn(count, sum(sizes)).to(dtype).split(sizes, dim=1))
    rotation = torch.randn(count, 1, half), torch.randn(count, 1, half)
    want = keys.clone(), values.clone()
    at = drawn["contexts"]  # the place behind what is there
    got = row_attention.write_rotated(q, k, v, rotation, drawn["rows"], at, drawn["cache"])
    assert_close(got, attention_cpu._rotate(q, *rotation), floor=1.0)
    for one, new in zip(want, (attention_cpu._rotate(k, *rotation), v), strict=True):
        one[drawn["rows"], :, at] = new
    for one, other in zip(drawn["cache"], want, strict=True):
        assert torch.equal(one.isnan(), other.isnan()), "something else was written"
        assert_close(one.nan_to_num(), other.nan_to_num(), floor=1.0)


@given(
    rows=st.integers(1, matvec.MAX_ROWS),
    outputs=st.sampled_from([1, 63, 64, 65, 200, 1000]),
    inputs=st.integers(1, 150).map(lambda half: 2 * half),
    has_bias=st.booleans(),
    seed=st.integers(0, 2**31),
)
@pytest.mark.skipif(not torch.ops.mkldnn._is_mkldnn_bf16_supported(), reason="no bfloat16 in oneDNN on this CPU")
def test_matvec(rows: int, outputs: int, inputs: int, has_bias: bool, seed: int) -> None:
    torch.manual_seed(seed)
    weight, wide = torch.randn(outputs, inputs).bfloat16(), torch.randn(rows, inputs + 5).bfloat16()
    bias = torch.randn(outputs).bfloat16() if has_bias else None
    packed = torch.ops.mkldnn._reorder_linear_weight(weight, 1)
    blocks = matvec.Blocks.of(weight, packed)
    if blocks is None:  # oneDNN has chosen another layout for this size, or on this machine
        return
    x = wide[:, :inputs]
    got = matvec.matvec(x, blocks, bias)
    want = x.double() @ weight.double().T + (0 if bias is None else bias.double())
    bound = 2**-8 * want.abs() + 2**-20 * (x.double().abs() @ weight.double().abs().T)  # half a unit; a float32 sum
    assert ((got.double() - want).abs() <= bound).all()
    for row, alone in zip(got, x, strict=True):
        assert torch.equal(row, matvec.matvec(alone[None], blocks, bias)[0])


@settings(max_examples=5 * settings().max_examples)
@given(batch=draws.batches(), is_part=st.booleans())
def test_draw(batch: list[draws.Row], is_part: bool) -> None:
    logits, columns = draws.tensors(batch, is_part)
    before = logits.clone()
    drawn = sample.sample(logits, columns)
    assert torch.equal(logits, before)
    draws.check(batch, logits, columns, drawn, "kernel")


@given(
    count=st.integers(1, 5),
    size=st.sampled_from([1, 17, 255, 256, 257, 3000]),
    levels=st.sampled_from([2, 50, 1 << 20]),
    odd=st.sampled_from([None, float("nan"), float("inf"), float("-inf")]),
    temperature=st.sampled_from([0.0, 1.0]),
    seed=st.integers(0, 2**31),
)
def test_greatest_of_a_row(
    count: int, size: int, levels: int, odd: float | None, temperature: float, seed: int
) -> None:
    torch.manual_seed(seed)
    x = torch.randint(-levels, levels, (count, size + 3)).float()[:, :size]  # few levels: many equals
    if odd is not None:
        x[-1, torch.randint(size, (1,))] = odd
    nothing = torch.zeros(count, dtype=torch.int64)
    off = torch.ones(count, dtype=torch.float64)
    columns = sample.Rows(nothing + temperature, nothing, off, nothing * 0.0, nothing, nothing, nothing)
    drawn = sample.sample(x, columns)
    torch.testing.assert_close(drawn.greatest, x.amax(-1), rtol=0, atol=0, equal_nan=True)
    for row, best, token in zip(x, drawn.greatest, drawn.tokens.tolist(), strict=True):
        assert 0 <= token < size
        if not (best.isnan() or temperature):
            assert token == int((row == best).nonzero()[0])


@given(
    size=st.sampled_from([20_000, 160_000]),
    spread=st.sampled_from([0.0, 0.01, 1.0, 5.0]),
    levels=st.sampled_from([None, 8]),
    top_k=st.sampled_from([0, 1, 50, 5000]),
    top_p=st.sampled_from([0.1, 0.5, 0.9, 0.999, 1.0]),
    seed=st.integers(0, 2**31),
)
@example(size=160_000, spread=1.0, levels=None, top_k=0, top_p=0.5, seed=1)  # halved many times
@settings(max_examples=max(settings().max_examples // 2, 1))
def test_filters_of_a_great_vocabulary(
    size: int, spread: float, levels: int | None, top_k: int, top_p: float, seed: int
) -> None:
    torch.manual_seed(seed)
    z = torch.randn(2, size) * spread
    z = z if levels is None else (z * levels).round() / levels
    one = torch.ones(2, dtype=torch.int64)
    columns = sample.Rows(one.float(), one * top_k, one.double() * top_p, one * 0.0, one, one, one)
    drawn = sample.sample(z, columns)
    want = sample._twin(z, columns)
    assert torch.equal(drawn.least, want.least)
    kept = z >= want.least[:, None]
    for row, is_kept, token, other in zip(z, kept, drawn.tokens.tolist(), want.tokens.tolist(), strict=True):
        assert is_kept[token]
        scores = row + gumbel(torch.arange(size), one[:1], one[:1], one[:1])
        assert token == other or abs(scores[token] - scores[other]) < 1e-5


def test_another_layout_is_not_taken_for_oneDNNs() -> None:
    weight = torch.randn(128, 64).bfloat16()
    packed = torch.ops.mkldnn._reorder_linear_weight(weight, 1)
    assert matvec.Blocks.of(weight.flip(0), packed) is None
    assert matvec.Blocks.of(weight.flip(1), packed) is None
    assert matvec.Blocks.of(weight.float(), packed) is None


def test_an_engine_that_uses_them_agrees_with_the_reference() -> None:
    draw = random.Random(3)
    requests = [
        EngineRequest(
            request_id=str(i),
            prompt_token_ids=draw.choices(range(VOCAB), k=draw.randint(1, 60)),
            sampling=SamplingParams(temperature=i % 2, logprobs=3, prompt_logprobs=2),
            max_tokens=20,
            seed=i,
        )
        for i in range(10)
    ]
    engine = llama_optimized(max_num_seqs=4, max_num_batched_tokens=40, block_size=4, enforce_eager=False)
    answers = run(engine, requests)
    engine.close()
    for request in requests:
        want = run(llama_reference(), [request])[request.request_id]
        assert_same(llama_reference(), request, answers[request.request_id], want)


def test_planted_bugs_are_found() -> None:
    run_apart("native_bugs", "planted")


# ---------------------------------------------------------------------- how they are built


@pytest.fixture
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    native.forget()
    return tmp_path / "tandem"


def test_what_was_built_is_found_again(empty_cache: Path) -> None:
    first = native.Build()
    assert not first.is_loaded
    first.run()
    assert first.is_loaded and [path.suffix for path in empty_cache.iterdir()] == [".so"]
    native.forget()
    assert native.Build().is_loaded and row_attention.is_ready(torch.bfloat16)


def test_where_nothing_can_build_them_twins_run(
    empty_cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    broken = empty_cache.parent / "compiler"
    broken.write_text("#!/bin/sh\necho 'error: no headers' >&2\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("CXX", str(broken))
    build = native.Build()
    build.run()
    assert not build.is_loaded and "no headers" in caplog.text
    assert not list(empty_cache.iterdir()), "something was left behind"
    assert not row_attention.is_ready(torch.float32)


def test_a_user_without_a_home_has_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", mock.Mock(side_effect=RuntimeError("Could not determine home directory.")))
    native.forget()
    build = native.Build()
    build.run()
    assert build.is_loaded and row_attention.is_ready(torch.float32)


def test_a_damaged_library_is_not_used(empty_cache: Path, caplog: pytest.LogCaptureFixture) -> None:
    build = native.Build()
    build._path.parent.mkdir()
    build._path.write_bytes(b"no library")
    again = native.Build()
    assert not again.is_loaded and "cannot be loaded" in caplog.text and not row_attention.is_ready(torch.float32)
    again.run()
    assert again.is_loaded, "it is built anew"


def test_closing_ends_a_build_and_nothing_is_loaded_later(empty_cache: Path) -> None:
    build = native.Build()
    thread = threading.Thread(target=build.run)
    thread.start()
    build.close()
    thread.join(timeout=10)
    assert not thread.is_alive() and not build.is_loaded and not row_attention.is_ready(torch.float32)
