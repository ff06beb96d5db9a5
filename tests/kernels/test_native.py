"""The CPU kernels in C++ against their twins and float64, an engine that uses them, and how they are built."""

from __future__ import annotations

import itertools
import os
import platform
import random
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import msgspec
import psutil
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from optimized import OptimizedEngine
from optimized.kernels import activation, matmul, native, paged_attention, rms_norm, rope_cache, sample
from optimized.kernels.native import Library
from optimized.layers.linear import Linear
from optimized.runner.local import LocalRunner
from optimized.runner.philox import gumbel
from tandem.config import SchedulerOptions
from tandem.engine import EngineRequest
from tandem.sampling_params import SamplingParams
from tests.equivalence.answers import run
from tests.equivalence.helpers import assert_as_reference, cpu_kernels, llama_config
from tests.kernels import draws
from tests.kernels.apart import run_apart
from tests.kernels.interpreted import edit_logits
from tests.reference.families import VOCAB

pytestmark = pytest.mark.skipif(not shutil.which("c++"), reason="no C++ compiler")

# Sums in another order, products not rounded before they are added: some units in the last place.
ULP = {torch.bfloat16: 2**-7, torch.float16: 2**-10, torch.float32: 2**-20}
dtypes = st.sampled_from(list(ULP))


def kernels() -> Library:
    """Those under test."""
    library = cpu_kernels()
    assert library.is_loaded
    return library


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
    got = rms_norm.rms_norm(x, weight, 1e-5, kernels(), late_rounding=late, added=other, added_scale=scale)
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
    assert_close(activation.gated(x, name, kernels()), activation._twin(x, name), roundings=2, floor=floor)


class Drawn(NamedTuple):
    """A step over a cache whose blocks lie anywhere and are NaN wherever nothing was written."""

    q: torch.Tensor
    cache: tuple[torch.Tensor, torch.Tensor]
    queries: paged_attention.Queries


@st.composite
def steps(draw: st.DrawFn, dtype: torch.dtype) -> Drawn:
    """Single tokens and chunks, short and long, of sequences in any blocks."""
    torch.manual_seed(draw(st.integers(0, 2**31)))
    num_kv_heads, group = draw(st.integers(1, 3)), draw(st.integers(1, 5))
    d, block_size = draw(st.sampled_from([8, 24, 48, 64, 80, 128])), draw(st.sampled_from([1, 3, 16, 32]))
    longest = draw(st.sampled_from([5, 40, 300, 800]))
    sequences = draw(
        st.lists(st.tuples(st.integers(1, longest), st.sampled_from([0, 1, 1, 1, 3, 20])), min_size=1, max_size=5)
    )
    contexts = [context for context, _ in sequences]
    lengths = [min(context, length) for context, length in sequences]
    counts = [-(-context // block_size) for context in contexts]
    shape = (sum(counts) + 2, num_kv_heads, block_size, d)
    keys, values = torch.full((2, *shape), float("nan"), dtype=dtype)
    free = torch.randperm(shape[0]).tolist()
    tables = torch.full((len(contexts), max(counts) + 1), free.pop(), dtype=torch.int32)
    for i, context in enumerate(contexts):
        for place in range(counts[i]):
            block, end = free.pop(), min(block_size, context - place * block_size)
            tables[i, place] = block
            keys[block, :, :end] = torch.randn(num_kv_heads, end, d) * 2
            values[block, :, :end] = torch.randn(num_kv_heads, end, d)
    q = torch.randn(sum(lengths), num_kv_heads * group, d).to(dtype)
    starts = torch.tensor([0, *itertools.accumulate(lengths)], dtype=torch.int32)
    queries = paged_attention.Queries(starts, torch.tensor(contexts, dtype=torch.int32), tables)
    return Drawn(q, (keys, values), queries)


def attention(c: Drawn, form: paged_attention.Form) -> torch.Tensor:
    """The definition in float64."""
    outputs = []
    block_size = c.cache[0].shape[2]
    starts = c.queries.starts.tolist()
    for i, whole in enumerate(c.queries.contexts.tolist()):
        for t in range(starts[i], starts[i + 1]):
            context = whole - (starts[i + 1] - 1 - t)
            j = torch.arange(max(0, context - form.window) if form.window else 0, context)
            at = c.queries.tables[i, j // block_size].long(), j % block_size
            keys, values = (x[at[0], :, at[1]].double() for x in c.cache)  # [S, H_kv, d]
            z = torch.einsum("kgd,skd->kgs", c.q[t].double().view(keys.shape[1], -1, c.q.shape[-1]), keys)
            z = z * form.scale
            if form.softcap is not None:
                z = form.softcap * torch.tanh(z / form.softcap)
            outputs.append(torch.einsum("kgs,skd->kgd", torch.softmax(z, -1), values).flatten(0, 1))
    return torch.stack(outputs) if outputs else torch.zeros(c.q.shape, dtype=torch.float64)


@settings(max_examples=settings().max_examples * 2)
@given(
    data=st.data(),
    dtype=dtypes,
    softcap=st.sampled_from([None, 3.0]),
    window=st.sampled_from([None, 1, 7, 260]),
    scale=st.sampled_from([0.125, 0.3]),
    is_native=st.booleans(),
)
def test_attention(
    data: Any, dtype: torch.dtype, softcap: float | None, window: int | None, scale: float, is_native: bool
) -> None:
    """By the kernel and by products of matrices."""
    c, form = data.draw(steps(dtype)), paged_attention.Form(scale, window, softcap)
    got = paged_attention.paged_attention(c.q, c.cache, c.queries, form, kernels() if is_native else Library())
    want = attention(c, form)
    assert got.dtype == dtype and got.shape == want.shape
    bound = max(ULP[dtype], 2**-16)  # scores of some tens are off by as many units in the last place of 1
    if not is_native:
        bound = max(8 * ULP[dtype], 2**-16)  # weights are rounded to the dtype, too
    assert ((got.double() - want).abs() <= bound * want.abs().clamp(min=0.5)).all()


@given(data=st.data(), threads=st.integers(1, 3))
def test_attention_depends_neither_on_neighbours_nor_on_threads(data: Any, threads: int) -> None:
    c, form = data.draw(steps(torch.float32)), paged_attention.Form(0.125)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        together = paged_attention.paged_attention(c.q, c.cache, c.queries, form, kernels())
    finally:
        torch.set_num_threads(before)
    starts, contexts, tables = c.queries.starts, c.queries.contexts, c.queries.tables
    for i in range(len(contexts)):
        rows = slice(int(starts[i]), int(starts[i + 1]))
        one = paged_attention.Queries(starts[i : i + 2] - starts[i], contexts[i : i + 1], tables[i : i + 1])
        alone = paged_attention.paged_attention(c.q[rows], c.cache, one, form, kernels())
        assert torch.equal(alone, together[rows])
        for t in range(rows.start, rows.stop):  # as if it were decoded
            context = contexts[i : i + 1] - (rows.stop - 1 - t)
            one = paged_attention.Queries(torch.tensor([0, 1], dtype=torch.int32), context, tables[i : i + 1])
            alone = paged_attention.paged_attention(c.q[t : t + 1], c.cache, one, form, kernels())
            assert torch.equal(alone[0], together[t])


def test_a_nan_spoils_its_own_sequence_alone() -> None:
    q, (keys, values) = torch.randn(2, 2, 16), torch.randn(2, 2, 1, 50, 16)
    keys[0, 0, 49] = float("nan")
    tables, contexts = torch.tensor([[0], [1]], dtype=torch.int32), torch.tensor([50, 50], dtype=torch.int32)
    queries = paged_attention.Queries(torch.tensor([0, 1, 2], dtype=torch.int32), contexts, tables)
    out = paged_attention.paged_attention(q, (keys, values), queries, paged_attention.Form(0.2), kernels())
    assert out[0].isnan().all() and out[1].isfinite().all()


@given(
    dtype=dtypes,
    num_heads=st.sampled_from([1, 3, 8]),
    num_kv_heads=st.integers(1, 3),
    d=st.sampled_from([8, 24, 64, 128]),
    block_size=st.sampled_from([1, 3, 16]),
    count=st.integers(1, 40),
    seed=st.integers(0, 2**31),
)
def test_rotation_and_write(
    dtype: torch.dtype, num_heads: int, num_kv_heads: int, d: int, block_size: int, count: int, seed: int
) -> None:
    torch.manual_seed(seed)
    half = int(torch.randint(1, d // 2 + 1, ()))
    sizes = [num_heads * d, num_kv_heads * d, num_kv_heads * d]
    q, k, v = (x.view(count, -1, d) for x in torch.randn(count, sum(sizes)).to(dtype).split(sizes, dim=1))
    table = torch.randn(50, half), torch.randn(50, half)
    num_blocks = -(-count // block_size) + 2
    slots = torch.randperm(num_blocks * block_size)[:count]
    slots[torch.rand(count) < 0.2] = -1
    places = rope_cache.Places(torch.randint(50, (count,)), slots)
    got, want = (torch.full((2, num_blocks, num_kv_heads, block_size, d), float("nan"), dtype=dtype) for _ in "gw")
    y, twin = torch.empty(2, *q.shape, dtype=dtype)
    y = rope_cache.rotate_and_store(q, k, v, table, places, (got[0], got[1]), kernels())
    rope_cache._twin(rope_cache.Heads(q, k, v), table, places, (want[0], want[1]), twin)
    assert_close(y, twin, floor=1.0)
    assert torch.equal(got.isnan(), want.isnan()), "something else was written"
    assert_close(got.nan_to_num(), want.nan_to_num(), floor=1.0)


@given(edit_logits.cases())
def test_masks(c: edit_logits.Case) -> None:
    edit_logits.check_mask(c, *edit_logits.run_mask(c, kernels()))


@given(edit_logits.cases())
def test_penalties(c: edit_logits.Case) -> None:
    edit_logits.check_penalties(c, edit_logits.run_penalties(c, kernels()))


@given(
    rows=st.integers(0, 8) | st.integers(90, 100) | st.just(200),
    outputs=st.sampled_from([1, 63, 64, 65, 200, 1000]),
    pairs=st.integers(1, 150) | st.integers(2040, 2060),
    has_bias=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_matmul(rows: int, outputs: int, pairs: int, has_bias: bool, seed: int) -> None:
    torch.manual_seed(seed)
    weight, wide = torch.randn(outputs, 2 * pairs).bfloat16(), torch.randn(rows, 2 * pairs + 5).bfloat16()
    bias = torch.randn(outputs).bfloat16() if has_bias else None
    packed, x = matmul.pack(weight), wide[:, : 2 * pairs]
    got = matmul.matmul(x, packed, outputs, bias, kernels())
    want = x.double() @ weight.double().T + (0 if bias is None else bias.double())
    bound = 2**-8 * want.abs() + 2**-20 * (x.double().abs() @ weight.double().abs().T)  # half a unit; a float32 sum
    assert ((got.double() - want).abs() <= bound).all()
    for row in {0, rows // 2, rows - 1} if rows else ():
        assert torch.equal(got[row], matmul.matmul(x[row : row + 1], packed, outputs, bias, kernels())[0])


@settings(max_examples=5 * settings().max_examples)
@given(batch=draws.batches(), is_part=st.booleans())
def test_draw(batch: list[draws.Row], is_part: bool) -> None:
    logits, columns = draws.tensors(batch, is_part)
    before = logits.clone()
    drawn = sample.sample(logits, columns, kernels())
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
    drawn = sample.sample(x, columns, kernels())
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
    drawn = sample.sample(z, columns, kernels())
    want = sample._twin(z, columns)
    assert torch.equal(drawn.least, want.least)
    kept = z >= want.least[:, None]
    for row, is_kept, token, other in zip(z, kept, drawn.tokens.tolist(), want.tokens.tolist(), strict=True):
        assert is_kept[token]
        scores = row + gumbel(torch.arange(size), one[:1], one[:1], one[:1])
        assert token == other or abs(scores[token] - scores[other]) < 1e-5


@pytest.mark.skipif(platform.machine() != "x86_64", reason="of x86 alone")
@pytest.mark.parametrize("flag", ["-mno-avx512bf16", "-march=haswell"])
def test_matmul_of_another_cpu(flag: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "FLAGS", (*native.FLAGS, flag))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    library = Library()
    native.Build(library).run()
    assert library.is_loaded
    monkeypatch.setattr(sys.modules[__name__], "kernels", lambda: library)
    test_matmul()


@given(outputs=st.integers(1, 200), inputs=st.integers(1, 100), dtype=dtypes, seed=st.integers(0, 2**31))
def test_a_product_goes_on_when_the_library_is_there(
    outputs: int, inputs: int, dtype: torch.dtype, seed: int
) -> None:
    torch.manual_seed(seed)
    weight, x, bias = (torch.randn(*shape).to(dtype) for shape in ((outputs, inputs), (3, inputs), (outputs,)))
    library = Library()
    product = Linear(weight, library, bias)
    before = product(x)
    native.Build(library).run()
    assert library.is_loaded
    at_once = Linear(weight, library, bias)
    assert torch.equal(product(x), at_once(x))
    torch.testing.assert_close(product(x), before, rtol=ULP[dtype], atol=0.1 if dtype != torch.float32 else 1e-4)


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
    config = msgspec.structs.replace(
        llama_config(), scheduler=SchedulerOptions(max_num_seqs=4, max_num_batched_tokens=40, block_size=4)
    )
    engine = OptimizedEngine(config)
    answers = run(engine, requests)
    engine.close()
    assert_as_reference(requests, answers)


def test_eager_engines_and_others_share_a_process() -> None:
    """One engine's wish for no kernels is no other's."""
    kernels()  # are built
    libraries = []
    for enforce_eager in (False, True, False):
        config = msgspec.structs.replace(llama_config(), scheduler=SchedulerOptions(enforce_eager=enforce_eager))
        engine = OptimizedEngine(config)
        assert isinstance(engine.runner, LocalRunner)
        libraries.append(engine.runner.library)
    assert [library.is_loaded for library in libraries] == [True, False, True]


def test_planted_bugs_are_found() -> None:
    run_apart("native_bugs", "planted")


# ---------------------------------------------------------------------- how they are built


@pytest.fixture
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "tandem"


def test_what_was_built_is_found_again(empty_cache: Path) -> None:
    first, second = Library(), Library()
    build = native.Build(first)
    assert not first.is_loaded
    build.run()
    assert first.is_loaded and [path.suffix for path in empty_cache.iterdir()] == [".so"]
    native.Build(second)
    assert second.is_loaded


def test_where_nothing_can_build_them_twins_run(
    empty_cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    broken = empty_cache.parent / "compiler"
    broken.write_text("#!/bin/sh\necho 'error: no headers' >&2\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("CXX", str(broken))
    library = Library()
    native.Build(library).run()
    assert not library.is_loaded and "no headers" in caplog.text
    assert not list(empty_cache.iterdir()), "something was left behind"


def test_a_user_without_a_home_has_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", mock.Mock(side_effect=RuntimeError("Could not determine home directory.")))
    library = Library()
    native.Build(library).run()
    assert library.is_loaded


def test_a_damaged_library_is_not_used(empty_cache: Path, caplog: pytest.LogCaptureFixture) -> None:
    library = Library()
    build = native.Build(library)
    build._path.parent.mkdir()
    build._path.write_bytes(b"no library")
    again = native.Build(library)
    assert not library.is_loaded and "cannot be loaded" in caplog.text
    again.run()
    assert library.is_loaded, "it is built anew"


SLOW_COMPILER = """#!/bin/sh
touch "$TMPDIR/half-done.s"
echo $$ > {pids}
sleep 60 &
echo $! >> {pids}
wait
"""


@pytest.fixture
def slow_compiler(empty_cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A compiler that begins a file, notes its process and its child's, and does nothing for a minute."""
    compiler, pids = empty_cache.parent / "compiler", empty_cache.parent / "pids"
    compiler.write_text(SLOW_COMPILER.format(pids=pids))
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    (empty_cache / "temporary").mkdir(parents=True)
    monkeypatch.setenv("TMPDIR", str(empty_cache / "temporary"))
    return pids


def compilers(pids: Path) -> list[int]:
    """Its processes, when they have started."""
    for _ in range(200):
        if pids.exists() and len(found := pids.read_text().split()) == 2:
            return list(map(int, found))
        time.sleep(0.05)
    raise AssertionError("the compiler has not started")


def is_running(pid: int) -> bool:
    """Zombies don't, which nobody may wait for in a container."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def assert_gone(processes: list[int], directory: Path) -> None:
    """Within seconds, and nothing is left of them."""
    for _ in range(100):
        # os.walk, unlike rglob, goes on where a directory disappears under it
        left = [name for _, *names in os.walk(directory) for name in itertools.chain(*names) if name != "temporary"]
        if not left and not any(map(is_running, processes)):
            return
        time.sleep(0.05)
    raise AssertionError(f"left: {processes}, {left}")


def test_closing_ends_a_build_and_nothing_is_loaded_later(slow_compiler: Path, empty_cache: Path) -> None:
    library = Library()
    build = native.Build(library)
    thread = threading.Thread(target=build.run)
    thread.start()
    processes = compilers(slow_compiler)
    build.close()
    thread.join(timeout=10)
    assert not thread.is_alive() and not library.is_loaded
    assert_gone(processes, empty_cache)


def test_a_killed_process_leaves_no_compiler_and_no_files(slow_compiler: Path, empty_cache: Path) -> None:
    code = "from optimized.kernels.native import Build, Library; Build(Library()).run()"
    process = subprocess.Popen([sys.executable, "-c", code])
    processes = compilers(slow_compiler)
    process.kill()
    process.wait()
    assert_gone(processes, empty_cache)
