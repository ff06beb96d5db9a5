"""The CPU kernels against their twins in plain PyTorch, and against memory: microseconds of one call.

The first table has products with weights, attention, norms, activations and the draw at the sizes of one layer of a
shape. Weights, caches and logits take turns, so that they come from memory as in a model; activations come from the
processor's caches, as there. Kernel and twin are interleaved, and medians taken. The last column is what the kernel
reads and writes in a second, over the read bandwidth measured in the same run. The last line is JSON.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import statistics
import time
from collections.abc import Callable, Iterator
from collections.abc import Sequence as Sized
from functools import partial
from typing import Any, NamedTuple

import torch

from optimized.cache import attention_cpu, native
from optimized.kernels import activation, rms_norm
from optimized.kernels.sample import Drawn, Rows, sample
from optimized.layers.linear import Linear
from optimized.layers.rotary import Table, rotary_table
from optimized.runner.batch import Batch, build_batch
from optimized.scheduling.scheduler import Schedule, Scheduled
from optimized.scheduling.sequence import Sequence
from tandem.engine import EngineRequest
from tandem.models.families import read_model_config
from tandem.models.model_config import ModelConfig
from tandem.sampling_params import SamplingParams
from tests.benchmarks.engines import read_bandwidth
from tests.benchmarks.shapes import SHAPES

COLD_BYTES = 1 << 28  # what takes turns takes so much memory together: more than any cache
DTYPE = torch.bfloat16


class Case(NamedTuple):
    """A name, a call, and the bytes that the call has to move."""

    name: str
    call: Callable[[], object]
    num_bytes: int


def in_turn(make: Callable[[], Any], num_bytes: int) -> Iterator[Any]:
    """For ever one of so many equal things that none is in a cache when its turn comes again."""
    return itertools.cycle([make() for _ in range(COLD_BYTES // num_bytes + 2)])


def products(c: ModelConfig) -> Iterator[Case]:
    shape = (2 * c.intermediate_size, c.hidden_size)
    size = math.prod(shape) * DTYPE.itemsize
    weights = in_turn(lambda: Linear(torch.randn(shape, dtype=DTYPE)), size)
    for count in (1, 4):
        x = torch.randn(count, c.hidden_size, dtype=DTYPE)
        yield Case(f"product, {count} rows", partial(multiply, weights, x), size)


def multiply(weights: Iterator[Linear], x: torch.Tensor) -> torch.Tensor:
    return next(weights)(x)


def attentions(c: ModelConfig) -> Iterator[Case]:
    heads = (c.num_heads, c.num_kv_heads, c.num_kv_heads)
    for num_seqs, context in ((1, 1024), (64, 256), (64, 1024)):
        shape = (2, num_seqs, c.num_kv_heads, context, c.head_dim)
        size = math.prod(shape) * DTYPE.itemsize
        caches = in_turn(lambda shape=shape: torch.randn(shape, dtype=DTYPE), size)
        table = rotary_table(c.rope_of(0), context)
        batch = build_batch(Schedule([Scheduled(decoding(row, context), 1) for row in range(num_seqs)]))
        qkv = torch.randn(num_seqs, sum(heads), c.head_dim, dtype=DTYPE).split(heads, dim=1)
        yield Case(f"attention, {num_seqs} × {context}", partial(attend, c, table, batch, qkv, caches), size)


def attend(
    c: ModelConfig, table: Table, batch: Batch, qkv: Sized[torch.Tensor], caches: Iterator[torch.Tensor]
) -> torch.Tensor:
    q, k, v = qkv
    keys, values = next(caches)
    plan = attention_cpu.plan(c, [table], batch, keys.shape[2], DTYPE)
    return attention_cpu.attend(c, 0, q, k, v, (keys, values), batch, plan)


def decoding(row: int, context: int) -> Sequence:
    request = EngineRequest(
        request_id="", prompt_token_ids=[1] * context, sampling=SamplingParams(), max_tokens=1, seed=0
    )
    sequence = Sequence(request, (0, row))
    sequence.row, sequence.num_computed_tokens = row, context - 1
    return sequence


def small_ops(c: ModelConfig) -> Iterator[Case]:
    weight = torch.ones(c.hidden_size, dtype=DTYPE)
    for count in (1, 64):
        x, added = torch.randn(2, count, c.hidden_size, dtype=DTYPE)
        norm = partial(rms_norm.rms_norm, x, weight, 1e-5, late_rounding=False, added=added)
        yield Case(f"sum and norm, {count} rows", norm, 4 * x.numel() * DTYPE.itemsize)
        gates = torch.randn(count, 2 * c.intermediate_size, dtype=DTYPE)
        gate = partial(activation.gated, gates, "silu")
        yield Case(f"gate, {count} rows", gate, 3 * count * c.intermediate_size * DTYPE.itemsize)


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


def draw(logits: Iterator[torch.Tensor], rows: Rows) -> Drawn:
    return sample(next(logits), rows)


def use_kernels(wanted: bool) -> None:
    native.forget()
    if wanted:
        native.Build().run()


def seconds(call: Callable[[], object], budget: float) -> float:
    """Median of as many calls as ``budget`` seconds allow, three at least."""
    call()
    times: list[float] = []
    while sum(times) < budget or len(times) < 3:
        began = time.perf_counter()
        call()
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
    figures: dict[str, dict[str, float]] = {}
    print(f"{options.shape}, microseconds{'kernel':>18}{'twin':>10}{'twin/kernel':>13}{'of bandwidth':>14}")
    for case in itertools.chain(products(config), attentions(config), small_ops(config), draws(config)):
        taken: dict[bool, list[float]] = {True: [], False: []}
        for _, wanted in itertools.product(range(options.rounds), taken):
            use_kernels(wanted)
            taken[wanted].append(seconds(case.call, options.seconds))
        kernel, twin = (statistics.median(taken[wanted]) for wanted in (True, False))
        share = case.num_bytes / kernel / bandwidth
        print(f"{case.name:<22}{kernel * 1e6:>18.1f}{twin * 1e6:>10.1f}{twin / kernel:>13.2f}{share:>14.2f}")
        figures[case.name] = {
            "kernel_us": round(kernel * 1e6, 1),
            "twin_us": round(twin * 1e6, 1),
            "of_read_bandwidth": round(share, 3),
        }
    machine = {"read_gb_s": round(bandwidth / 1e9, 1), "cores": os.cpu_count(), "torch": torch.__version__}
    print(json.dumps({"shape": options.shape, "kernels": figures} | machine, ensure_ascii=False))
