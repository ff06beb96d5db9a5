"""Small operations compiled for the CPU against the functions they were compiled from."""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from optimized import OptimizedEngine, attention_cpu, compiled
from optimized.kernels import activation, rms_norm
from optimized.row_cache import RowCache
from tandem.engine import EngineRequest
from tandem.sampling_params import SamplingParams
from tests.equivalence.comparison import assert_same
from tests.equivalence.helpers import llama_optimized, llama_reference, run
from tests.reference.families import VOCAB

HEADS, KV_HEADS, D = 6, 2, 16
HIDDEN = 96
NORM = (torch.bfloat16, HIDDEN, 1e-5, False, 1.0)
FIRST_NORM = (torch.float32, HIDDEN, 1e-6, True, None)
GATED = (torch.bfloat16, 2 * HIDDEN, "silu")
WIDTH = (HEADS + 2 * KV_HEADS) * D
ROTATED = (torch.bfloat16, HEADS, KV_HEADS, D, 4, WIDTH, WIDTH, WIDTH)
SINGLE: list[compiled.Variant] = [
    (rms_norm.cpu, NORM),
    (rms_norm.cpu, FIRST_NORM),
    (activation.cpu, GATED),
    (attention_cpu.rotate_cpu, ROTATED),
]
# A chain in one pass keeps what single operations round in between: one unit in the last place of the greatest.
ULP = {torch.bfloat16: 2**-7, torch.float32: 2**-21}

pytestmark = pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="no C++ compiler")


@pytest.fixture(scope="module", autouse=True)
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OptimizedEngine]:
    """All variants compiled into a cache of their own, and an engine that uses them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        made = llama_optimized(max_num_seqs=4, max_num_batched_tokens=40, block_size=4, enforce_eager=False)
        assert isinstance(made.cache, RowCache)
        variants = list(dict.fromkeys([*SINGLE, *made.model.variants(), *made.cache.variants()]))
        compiler = compiled.Compiler(variants, 1)
        assert len(compiler.missing) == len(variants)
        compiler.run()
        assert not compiler.missing and all(op.get(key) for op, key in variants)
        yield made
        for op, _ in variants:
            op.forget()
        assert not compiled.Compiler(variants, 1).missing, "what was compiled is found again"
    for op, _ in variants:
        op.forget()


def test_an_engine_that_uses_them_agrees_with_the_reference(engine: OptimizedEngine) -> None:
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
    answers = run(engine, requests)
    for request in requests:
        want = run(llama_reference(), [request])[request.request_id]
        assert_same(llama_reference(), request, answers[request.request_id], want)


tokens = given(count=st.integers(1, 70), seed=st.integers(0, 2**31))
some = settings(max_examples=max(10, settings().max_examples // 2))


def assert_close(got: torch.Tensor, want: torch.Tensor) -> None:
    assert got.shape == want.shape and got.dtype == want.dtype and got.is_contiguous()
    bound = ULP[got.dtype] * want.float().abs().clamp(min=2**-6)
    assert ((got.float() - want.float()).abs() <= bound).all()


@some
@tokens
def test_norm_of_a_sum(count: int, seed: int) -> None:
    torch.manual_seed(seed)
    x, y, w = (torch.randn(*size, dtype=torch.bfloat16) for size in ((count, HIDDEN), (count, HIDDEN), (HIDDEN,)))
    run = rms_norm.cpu.get(NORM)
    assert run is not None
    for got, want in zip(run([x, w, y]), rms_norm._twin(x, w, 1e-5, False, y, 1.0), strict=True):
        assert_close(got, want)


@some
@tokens
def test_norm_with_late_rounding(count: int, seed: int) -> None:
    torch.manual_seed(seed)
    x, w = torch.randn(count, HIDDEN), torch.randn(HIDDEN)
    got, same = rms_norm.rms_norm(x, w, 1e-6, late_rounding=True)
    assert same is x
    assert_close(got, rms_norm._twin(x, w, 1e-6, True, None, 1.0)[0])


@some
@tokens
def test_gated(count: int, seed: int) -> None:
    torch.manual_seed(seed)
    x = torch.randn(count, 2 * HIDDEN, dtype=torch.bfloat16)
    assert_close(activation.gated(x, "silu"), activation._twin(x, "silu"))


@some
@tokens
def test_rotation(count: int, seed: int) -> None:
    torch.manual_seed(seed)
    qkv = torch.randn(count, WIDTH, dtype=torch.bfloat16)
    parts = torch.split(qkv, [HEADS * D, KV_HEADS * D, KV_HEADS * D], dim=-1)
    q, k, v = (part.view(count, -1, D) for part in parts)
    cos, sin = torch.randn(count, 1, 4), torch.randn(count, 1, 4)
    got = attention_cpu._rotated(q, k, v, cos, sin)
    want = attention_cpu._rotate(q, cos, sin), attention_cpu._rotate(k, cos, sin), v.contiguous()
    for one, other in zip(got, want, strict=True):
        assert_close(one, other)
