"""How fast each kernel is on this GPU, beside what the GPU can do at most."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import NamedTuple

import torch

from optimized.kernels import activation, edit_logits, moe_matmul, paged_attention, rms_norm, rope_cache, sample
from optimized.kernels.native import Library
from tests.gpu.parts import Figure, Setting, Task, Values
from tests.gpu.timing import Call, seconds, turns

BF16 = torch.bfloat16
BLOCK_SIZE = 16
FEW = 8  # sequences whose keys are split
MANY_TOKENS = 1024  # from which on arithmetic is what limits experts
LIBRARY = Library()  # empty: it is for CPUs


class Mixture(NamedTuple):
    """A layer of experts, of which a token takes a few."""

    num_experts: int
    num_chosen: int
    hidden: int
    inner: int


class Sizes(NamedTuple):
    """What is measured.

    Attributes:
        heads, kv_heads, head_size, hidden, inner, vocab: of the model.
        mixtures: of experts.
        context, long_context: tokens of a sequence that is decoded.
        limits: tokens of a sequence at most, which decide the grid of a captured step.
        batches: sequences that are decoded at once.
        prompt: tokens of a prefill.
        tokens: of a step of decodes, and of one of prompts.
        rows: of logits.
        copied: bytes; the bandwidth is measured by copies of such sizes.
        square: side of the matrices that the rate of products is measured by.
    """

    heads: int
    kv_heads: int
    head_size: int
    hidden: int
    inner: int
    vocab: int
    mixtures: tuple[Mixture, ...]
    context: int
    long_context: int
    limits: tuple[int, ...]
    batches: tuple[int, ...]
    prompt: int
    tokens: tuple[int, ...]
    rows: tuple[int, ...]
    copied: tuple[int, ...]
    square: int


# Llama 3.1 8B, with the experts of Mixtral 8x7B and of Qwen3 30B
FULL = Sizes(
    *(32, 8, 128, 4096, 14336, 128256),
    mixtures=(Mixture(8, 2, 4096, 14336), Mixture(128, 8, 2048, 768)),
    context=4096,
    long_context=32768,
    limits=(8192, 131072),
    batches=(32, 64, 128, 256),
    prompt=4096,
    tokens=(64, 4096),
    rows=(1, 64, 256),
    copied=(1 << 29, 1 << 30, 1 << 31),
    square=8192,
)
DRY = Sizes(
    *(4, 2, 16, 64, 96, 512),
    mixtures=(Mixture(4, 2, 64, 96), Mixture(16, 4, 32, 48)),
    context=64,
    long_context=128,
    limits=(256, 1024),
    batches=(2, 4),
    prompt=32,
    tokens=(2, 8),
    rows=(1, 4),
    copied=(1 << 20,),
    square=128,
)


class Case(NamedTuple):
    """A call to time.

    Attributes:
        make: prepares one call, on an input of its own.
        num_bytes: that a call has to move.
        num_operations: multiplications and additions that it has to do, where these are its limit.
    """

    make: Callable[[], Call]
    num_bytes: int
    num_operations: int = 0


def limits(setting: Setting) -> Iterator[Task]:
    """What the GPU is, its copy bandwidth (bytes read and written) and its matrix rate, on random data."""
    s = DRY if setting.dry else FULL
    yield Task("device", lambda: [("device", _device(setting))])
    yield Task("limits", partial(_limits, s, setting))


def kernels(setting: Setting) -> Iterator[Task]:
    """By name: microseconds of a kernel, and its bytes or operations a second over the GPU's."""
    s = DRY if setting.dry else FULL
    for cases in (attentions, small_ops, samplers, edits, experts):
        for name, case in cases(s, setting):
            yield Task(name, partial(_measured, name, case, setting))


@torch.inference_mode()
def _measured(name: str, case: Case, setting: Setting) -> Iterable[Figure]:
    took = seconds([case.make() for _ in range(turns(case.num_bytes, setting.dry))])
    figures: Values = {"us": round(took * 1e6, 2)}
    if case.num_operations:
        figures |= setting.share("flop_per_s", case.num_operations / took)
    else:
        figures |= setting.share("bytes_per_s", case.num_bytes / took)
    return [(name, figures)]


def _limits(s: Sizes, setting: Setting) -> Iterable[Figure]:
    return [("limits", {"bytes_per_s": _bandwidth(s, setting), "flop_per_s": _rate(s, setting)})]


def _device(setting: Setting) -> Values:
    if setting.dry:
        return {"name": "cpu"}
    properties = torch.cuda.get_device_properties(0)
    return {
        "name": properties.name,
        "multiprocessors": properties.multi_processor_count,
        "memory_gib": round(properties.total_memory / (1 << 30), 1),
        "cuda": torch.version.cuda,
    }


@torch.inference_mode()
def _bandwidth(s: Sizes, setting: Setting) -> float:
    rates = []
    for size in s.copied:
        source = torch.randint(-100, 100, (size,), dtype=torch.int8, device=setting.device)
        rates.append(2 * size / seconds([partial(torch.empty_like(source).copy_, source)]))
    return max(rates)


@torch.inference_mode()
def _rate(s: Sizes, setting: Setting) -> float:
    a, b = (torch.randn(s.square, s.square, dtype=BF16, device=setting.device) for _ in "ab")
    return 2 * s.square**3 / seconds([partial(torch.matmul, a, b)])


# ---------------------------------------------------------------------- attention


def attentions(s: Sizes, setting: Setting) -> Iterator[tuple[str, Case]]:
    """Decodes: many sequences, one that is split, lengths that differ, a captured grid; and a prefill.

    Blocks are scattered.
    """
    for batch in s.batches:
        yield f"attention decode {batch} x {s.context}", decode_case(s, setting, [s.context] * batch)
    yield f"attention decode 1 x {s.long_context}", decode_case(s, setting, [s.long_context])
    mixed = [s.long_context, *[s.context // 4] * (s.batches[0] - 1)]
    yield f"attention decode mixed, 1 x {mixed[0]} + {len(mixed) - 1} x {mixed[1]}", decode_case(s, setting, mixed)
    for limit in s.limits:
        name = f"attention decode {FEW} x {s.context}, captured for {limit}"
        yield name, decode_case(s, setting, [s.context] * FEW, limit)
    pairs = s.prompt * (s.prompt + 1) // 2  # of a query and a key that it sees
    make = partial(attention, s, setting, [s.prompt], [s.prompt])
    size = 2 * s.prompt * (s.heads + s.kv_heads) * s.head_size * BF16.itemsize
    yield f"attention prefill {s.prompt}", Case(make, size, 4 * s.heads * s.head_size * pairs)


def decode_case(s: Sizes, setting: Setting, contexts: list[int], limit: int | None = None) -> Case:
    """A token for each context, in a grid for contexts up to ``limit``; the bytes are those of keys and values."""
    size = 2 * sum(contexts) * s.kv_heads * s.head_size * BF16.itemsize
    return Case(partial(attention, s, setting, [1] * len(contexts), contexts, limit), size)


def attention(
    s: Sizes, setting: Setting, query_lens: list[int], contexts: list[int], limit: int | None = None
) -> Call:
    """A call over a cache of its own; without ``limit`` the grid is for the longest context there is."""
    device, longest = setting.device, limit or max(contexts)
    width = -(-longest // BLOCK_SIZE)
    used = [-(-context // BLOCK_SIZE) for context in contexts]
    order = torch.randperm(sum(used), dtype=torch.int32)
    tables = torch.zeros(len(contexts), width, dtype=torch.int32)
    for row, blocks in zip(tables, order.split(used), strict=True):
        row[: len(blocks)] = blocks
    shape = (2, sum(used), s.kv_heads, BLOCK_SIZE, s.head_size)
    keys, values = torch.randn(shape, dtype=BF16, device=device)
    q = torch.randn(sum(query_lens), s.heads, s.head_size, dtype=BF16, device=device)
    blocks = paged_attention.query_blocks(query_lens, s.heads // s.kv_heads, device)
    splits = paged_attention.choose_num_splits(blocks, s.kv_heads, longest, _multiprocessors(setting))
    queries = paged_attention.Queries(
        torch.tensor([0, *query_lens]).cumsum(0).to(device, torch.int32),
        torch.tensor(contexts, dtype=torch.int32, device=device),
        tables.to(device),
        (paged_attention.Launch(blocks, len(q), splits),),
    )
    form = paged_attention.Form(s.head_size**-0.5)
    return partial(paged_attention.paged_attention, q, (keys, values), queries, form, LIBRARY)


def _multiprocessors(setting: Setting) -> int:
    return 1 if setting.dry else torch.cuda.get_device_properties(0).multi_processor_count


# ---------------------------------------------------------------------- between the products of a layer


def small_ops(s: Sizes, setting: Setting) -> Iterator[tuple[str, Case]]:
    """For a step of decodes and one of prompts."""
    for count in s.tokens:
        yield f"sum and norm {count}", Case(partial(norm, s, setting, count), 4 * count * s.hidden * BF16.itemsize)
        yield f"gate {count}", Case(partial(gate, s, setting, count), 3 * count * s.inner * BF16.itemsize)
        size = 2 * count * (s.heads + 2 * s.kv_heads) * s.head_size * BF16.itemsize
        yield f"rope and cache {count}", Case(partial(rotation, s, setting, count), size)


def norm(s: Sizes, setting: Setting, count: int) -> Call:
    x, added = torch.randn(2, count, s.hidden, dtype=BF16, device=setting.device)
    weight = torch.ones(s.hidden, dtype=BF16, device=setting.device)
    return partial(rms_norm.rms_norm, x, weight, 1e-5, LIBRARY, late_rounding=False, added=added)


def gate(s: Sizes, setting: Setting, count: int) -> Call:
    x = torch.randn(count, 2 * s.inner, dtype=BF16, device=setting.device)
    return partial(activation.gated, x, "silu", LIBRARY)


def rotation(s: Sizes, setting: Setting, count: int) -> Call:
    device, sizes = setting.device, [s.heads, s.kv_heads, s.kv_heads]
    q, k, v = torch.randn(count, sum(sizes), s.head_size, dtype=BF16, device=device).split(sizes, dim=1)
    cos, sin = torch.rand(2, s.context, s.head_size // 2, device=device)
    num_blocks = -(-count // BLOCK_SIZE) * 2
    keys, values = torch.zeros(2, num_blocks, s.kv_heads, BLOCK_SIZE, s.head_size, dtype=BF16, device=device)
    places = rope_cache.Places(
        torch.randint(s.context, (count,), device=device),
        torch.randperm(num_blocks * BLOCK_SIZE, device=device)[:count],
    )
    return partial(rope_cache.rotate_and_store, q, k, v, (cos, sin), places, (keys, values), LIBRARY)


# ---------------------------------------------------------------------- logits to tokens


def samplers(s: Sizes, setting: Setting) -> Iterator[tuple[str, Case]]:
    """Greedy rows, plain draws and each filter; the bytes are those of the logits."""
    for count in s.rows:
        for name, temperature, top_k, top_p in (
            ("greedy", 0.0, 0, 1.0),
            ("draw", 1.0, 0, 1.0),
            ("top-k 50", 1.0, 50, 1.0),
            ("top-p 0.9", 1.0, 0, 0.9),
            ("top-k 50, top-p 0.9", 1.0, 50, 0.9),
        ):
            make = partial(draw, s, setting, count, temperature, top_k, top_p)
            yield f"sample {count}, {name}", Case(make, 4 * count * s.vocab)


def draw(s: Sizes, setting: Setting, count: int, temperature: float, top_k: int, top_p: float) -> Call:
    number = torch.zeros(count, dtype=torch.int64, device=setting.device)
    single = torch.zeros(count, device=setting.device)
    rows = sample.Rows(single + temperature, number + top_k, single.double() + top_p, single, *[number] * 3)
    return partial(sample.sample, _logits(s, setting, count), rows, LIBRARY)


def edits(s: Sizes, setting: Setting) -> Iterator[tuple[str, Case]]:
    """Masks and penalties on all rows. A penalized row reads its counts, a masked one its bits, and its logits."""
    for count in s.rows:
        yield f"mask {count}", Case(partial(mask, s, setting, count), count * s.vocab * 4 + count * s.vocab // 8)
        yield f"penalties {count}", Case(partial(penalties, s, setting, count), 4 * count * s.vocab)


def mask(s: Sizes, setting: Setting, count: int) -> Call:
    """One token of two is allowed."""
    rows = torch.arange(count, device=setting.device)
    shape = (count, edit_logits.num_words(s.vocab))
    bits = torch.randint(-(1 << 31), (1 << 31) - 1, shape, dtype=torch.int32, device=setting.device)
    return partial(edit_logits.mask, _logits(s, setting, count), rows, rows, bits, LIBRARY)


def penalties(s: Sizes, setting: Setting, count: int) -> Call:
    """As many tokens as a context has stand in each row; neutral, so that a repetition finds what it found."""
    device = setting.device
    rows = torch.arange(count, device=device)
    counts = torch.zeros(count, s.vocab, dtype=torch.int32, device=device)
    counts.scatter_(1, torch.randint(s.vocab, (count, s.context), device=device), 1)
    neutral = edit_logits.Penalties(torch.ones(count, device=device), *torch.zeros(2, count, device=device))
    return partial(edit_logits.penalize, _logits(s, setting, count), rows, rows, counts, neutral, LIBRARY)


def _logits(s: Sizes, setting: Setting, count: int) -> torch.Tensor:
    return 4 * torch.randn(count, s.vocab, device=setting.device)


# ---------------------------------------------------------------------- experts


def experts(s: Sizes, setting: Setting) -> Iterator[tuple[str, Case]]:
    """One token, and the steps above; the bytes are the weights of the experts that somebody takes."""
    for m in s.mixtures:
        for count in (1, *s.tokens):
            of_expert = 3 * m.inner * m.hidden
            size = min(m.num_experts, count * m.num_chosen) * of_expert * BF16.itemsize
            operations = 2 * count * m.num_chosen * of_expert if count >= MANY_TOKENS else 0
            name = f"experts {count}, {m.num_chosen} of {m.num_experts}"
            yield name, Case(partial(mixture, m, setting, count), size, operations)


def mixture(m: Mixture, setting: Setting, count: int) -> Call:
    """Tokens take experts in turn, so that each gets as many."""
    device = setting.device
    up = torch.randn(m.num_experts, 2 * m.inner, m.hidden, dtype=BF16, device=device) / m.hidden**0.5
    down = torch.randn(m.num_experts, m.hidden, m.inner, dtype=BF16, device=device) / m.inner**0.5
    chosen = torch.arange(count * m.num_chosen, device=device).view(count, -1) % m.num_experts
    share = torch.full(chosen.shape, 1 / m.num_chosen, device=device)
    x = torch.randn(count, m.hidden, dtype=BF16, device=device)
    return partial(moe_matmul.experts, x, up, down, chosen, share, "silu", LIBRARY)
