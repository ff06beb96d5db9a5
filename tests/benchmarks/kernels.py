"""The CPU kernels against their twins in plain PyTorch, and against memory: microseconds of one call.

The first table has products with weights, attention, norms, activations, edits of logits and the draw at the sizes of
one layer of a shape. Weights, caches and logits take turns, so that they come from memory as in a model; activations
come from the processor's caches, as there. Kernel and twin are interleaved, and medians taken. The last column is
what the kernel reads and writes in a second, over the read bandwidth measured in the same run. The last line is JSON.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any, NamedTuple

import torch

from optimized.kernels import activation, edit_logits, rms_norm, rope_cache
from optimized.kernels.gathered_attention import Form
from optimized.kernels.native import Build, Library
from optimized.kernels.paged_attention import Queries, paged_attention
from optimized.kernels.sample import Rows, Sampled, sample
from optimized.layers.linear import Linear
from optimized.layers.rotary import rotary_table
from tandem.models.families import read_model_config
from tandem.models.model_config import ModelConfig
from tests.benchmarks.engines import read_bandwidth
from tests.benchmarks.shapes import SHAPES

COLD_BYTES = 1 << 28  # what takes turns takes so much memory together: more than any cache
DTYPE = torch.bfloat16
BLOCK_SIZES = (16, 32, 64)
LOADS = tuple(itertools.product((1, 64), (256, 1024)))  # sequences at once, and tokens of each

Call = Callable[[Library], object]  # with the kernels, or with none, which runs the twin


class Case(NamedTuple):
    """A name, a call, and the bytes that the call has to move."""

    name: str
    call: Call
    num_bytes: int


def in_turn(make: Callable[[], Any], num_bytes: int) -> Iterator[Any]:
    """For ever one of so many equal things that none is in a cache when its turn comes again."""
    return itertools.cycle([make() for _ in range(COLD_BYTES // num_bytes + 2)])


# ---------------------------------------------------------------------- products


def products(c: ModelConfig, libraries: Iterable[Library]) -> Iterator[Case]:
    """A weight is packed for each library, and either packing takes turns."""
    shape = (2 * c.intermediate_size, c.hidden_size)
    size = math.prod(shape) * DTYPE.itemsize
    weights = {
        library: in_turn(lambda library=library: Linear(torch.randn(shape, dtype=DTYPE), library), size)
        for library in libraries
    }
    for count in (1, 4):
        x = torch.randn(count, c.hidden_size, dtype=DTYPE)
        yield Case(f"product, {count} rows", partial(multiply, weights, x), size)


def multiply(weights: dict[Library, Iterator[Linear]], x: torch.Tensor, library: Library) -> torch.Tensor:
    return next(weights[library])(x)


# ---------------------------------------------------------------------- attention


def attentions(c: ModelConfig) -> Iterator[Case]:
    """A token of each sequence over its blocks, which lie scattered."""
    for block_size, (num_seqs, context) in itertools.product(BLOCK_SIZES, LOADS):
        num_blocks = num_seqs * context // block_size
        shape = (2, num_blocks, c.num_kv_heads, block_size, c.head_dim)
        size = math.prod(shape) * DTYPE.itemsize
        caches = in_turn(lambda shape=shape: torch.randn(shape, dtype=DTYPE).unbind(), size)
        queries = Queries(
            torch.arange(num_seqs + 1, dtype=torch.int32),
            torch.full((num_seqs,), context, dtype=torch.int32),
            torch.randperm(num_blocks).view(num_seqs, -1).int(),
        )
        q = torch.randn(num_seqs, c.num_heads, c.head_dim, dtype=DTYPE)
        name = f"attention, {num_seqs} × {context}, blocks of {block_size}"
        yield Case(name, partial(attend, q, caches, queries, Form(c.attention_scale)), size)


def attend(
    q: torch.Tensor,
    caches: Iterator[tuple[torch.Tensor, torch.Tensor]],
    queries: Queries,
    form: Form,
    library: Library,
) -> torch.Tensor:
    return paged_attention(q, next(caches), queries, form, library)


# ---------------------------------------------------------------------- between the products


def small_ops(c: ModelConfig) -> Iterator[Case]:
    weight = torch.ones(c.hidden_size, dtype=DTYPE)
    for count in (1, 64):
        x, added = torch.randn(2, count, c.hidden_size, dtype=DTYPE)
        norm = partial(normalize, x, weight, added)
        yield Case(f"sum and norm, {count} rows", norm, 4 * x.numel() * DTYPE.itemsize)
        gates = torch.randn(count, 2 * c.intermediate_size, dtype=DTYPE)
        gate = partial(activation.gated, gates, "silu")
        yield Case(f"gate, {count} rows", gate, 3 * count * c.intermediate_size * DTYPE.itemsize)
        yield rotation(c, count)


def normalize(x: torch.Tensor, weight: torch.Tensor, added: torch.Tensor, library: Library) -> object:
    return rms_norm.rms_norm(x, weight, 1e-5, library, late_rounding=False, added=added)


def rotation(c: ModelConfig, count: int) -> Case:
    """A token of each sequence, into a block of its own."""
    sizes = [c.num_heads, c.num_kv_heads, c.num_kv_heads]
    q, k, v = torch.randn(count, sum(sizes), c.head_dim, dtype=DTYPE).split(sizes, dim=1)
    keys, values = torch.zeros(2, count, c.num_kv_heads, BLOCK_SIZES[0], c.head_dim, dtype=DTYPE)
    places = rope_cache.Places(torch.full((count,), 1000), BLOCK_SIZES[0] * torch.randperm(count) + 3)
    table = rotary_table(c.rope_of(0), 1024)
    call = partial(rope_cache.rotate_and_store, q, k, v, table, places, (keys, values))
    return Case(f"rope and cache, {count} rows", call, 2 * count * sum(sizes) * c.head_dim * DTYPE.itemsize)


# ---------------------------------------------------------------------- logits to tokens


def edits(c: ModelConfig) -> Iterator[Case]:
    """Masks that allow every second token, and penalties for a thousand tokens; all rows have them."""
    for count in (1, 64):
        shape, at = (count, c.vocab_size), torch.arange(count)
        size = math.prod(shape) * 4
        logits = in_turn(lambda shape=shape: 2.5 * torch.randn(shape), size)
        bits = torch.randint(
            -(1 << 31), (1 << 31) - 1, (count, edit_logits.num_words(c.vocab_size)), dtype=torch.int32
        )
        yield Case(f"mask, {count} rows", partial(mask, logits, at, bits), 2 * size)
        neutral = edit_logits.Penalties(torch.ones(count), *torch.zeros(2, count))  # for any number of calls
        counted = in_turn(lambda shape=shape: (2.5 * torch.randn(shape), counts(shape)), 2 * size)
        yield Case(f"penalties, {count} rows", partial(penalize, counted, at, neutral), 3 * size)


def counts(shape: tuple[int, int]) -> torch.Tensor:
    """Of prompts of a thousand tokens."""
    count, vocab_size = shape
    return torch.zeros(shape, dtype=torch.int32).scatter_(1, torch.randint(vocab_size, (count, 1024)), 1)


def mask(logits: Iterator[torch.Tensor], at: torch.Tensor, bits: torch.Tensor, library: Library) -> object:
    return edit_logits.mask(next(logits), at, at, bits, library)


def penalize(
    counted: Iterator[tuple[torch.Tensor, torch.Tensor]],
    at: torch.Tensor,
    penalties: edit_logits.Penalties,
    library: Library,
) -> None:
    logits, table = next(counted)
    edit_logits.penalize(logits, at, at, table, penalties, library)


def draws(c: ModelConfig) -> Iterator[Case]:
    for count in (1, 64):
        shape = (count, c.vocab_size)
        size = math.prod(shape) * 4
        logits = in_turn(lambda shape=shape: 2.5 * torch.randn(shape), size)
        one = torch.ones(count, dtype=torch.int64)
        for name, temperature, top_k, top_p in (
            ("best", 0.0, 0, 1.0),
            ("draw", 1.0, 0, 1.0),
            ("top-k 50", 1.0, 50, 1.0),
            ("top-p 0.9", 1.0, 0, 0.9),
        ):
            rows = Rows(one * temperature, one * top_k, one.double() * top_p, one * 0.0, one, one, one)
            yield Case(f"{name}, {count} rows", partial(draw, logits, rows), size)


def draw(logits: Iterator[torch.Tensor], rows: Rows, library: Library) -> Sampled:
    return sample(next(logits), rows, library)


# ---------------------------------------------------------------------- the program


def built() -> Library:
    """The kernels.

    Raises:
        SystemExit: nothing here can build them.
    """
    library = Library()
    Build(library).run()
    if not library.is_loaded:
        raise SystemExit("there is no kernel to measure: nothing can build them here")
    return library


def seconds(call: Call, library: Library, budget: float) -> float:
    """Median of as many calls as ``budget`` seconds allow, three at least."""
    call(library)
    times: list[float] = []
    while sum(times) < budget or len(times) < 3:
        began = time.perf_counter()
        call(library)
        times.append(time.perf_counter() - began)
    return statistics.median(times)


@torch.inference_mode()
def main(arguments: list[str]) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="kernels", description=__doc__)
    parser.add_argument("--shape", choices=SHAPES, default="88m")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=0.1, help="for each of kernel and twin in a round")
    options = parser.parse_args(arguments)
    config = read_model_config(SHAPES[options.shape])
    bandwidth = read_bandwidth()
    libraries = {"kernel": built(), "twin": Library()}
    figures: dict[str, dict[str, float]] = {}
    print(f"{options.shape + ', microseconds':<40}{'kernel':>10}{'twin':>10}{'twin/kernel':>13}{'of bandwidth':>14}")
    others = (attentions, small_ops, edits, draws)
    for case in itertools.chain(products(config, libraries.values()), *(cases(config) for cases in others)):
        taken: dict[str, list[float]] = {name: [] for name in libraries}
        for _, name in itertools.product(range(options.rounds), libraries):
            taken[name].append(seconds(case.call, libraries[name], options.seconds))
        kernel, twin = (statistics.median(taken[name]) for name in libraries)
        share = case.num_bytes / kernel / bandwidth
        print(f"{case.name:<40}{kernel * 1e6:>10.1f}{twin * 1e6:>10.1f}{twin / kernel:>13.2f}{share:>14.2f}")
        figures[case.name] = {
            "kernel_us": round(kernel * 1e6, 1),
            "twin_us": round(twin * 1e6, 1),
            "of_read_bandwidth": round(share, 3),
        }
    machine = {"read_gb_s": round(bandwidth / 1e9, 1), "cores": os.cpu_count(), "torch": torch.__version__}
    print(json.dumps({"shape": options.shape, "kernels": figures} | machine, ensure_ascii=False))
