"""How fast each kernel is on this GPU, beside its twin and beside what the GPU can do at most."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from functools import partial
from types import ModuleType
from typing import Any
from unittest import mock

import torch

from optimized.kernels import activation, moe_matmul, paged_attention, rms_norm, rope_cache, sample

BF16 = torch.bfloat16
HEADS, KV_HEADS, HEAD_SIZE, HIDDEN, INNER, VOCAB = 32, 8, 128, 4096, 14336, 128256  # of Llama 3.1 8B
PAGE, CONTEXT = 16, 4096

Figures = dict[str, Any]
Case = tuple[str, ModuleType, Callable[[], object], int]  # name, op, call, bytes that it has to move


def seconds(call: Callable[[], object]) -> float:
    """Median time of a call on the GPU, the second-level cache emptied before each."""
    from triton.testing import do_bench

    return float(do_bench(call, warmup=50, rep=200, return_mode="median")) / 1000


@torch.inference_mode()
def limits(_: Figures) -> Figures:
    """Copy bandwidth (bytes read and written) and matrix rate of this GPU, both on random data."""
    copies = []
    for size in (1 << 29, 1 << 30, 1 << 31):
        source = torch.randint(-100, 100, (size,), dtype=torch.int8, device="cuda")
        copies.append(2 * size / seconds(partial(torch.empty_like(source).copy_, source)))
    n = 8192
    a, b = (torch.randn(n, n, dtype=BF16, device="cuda") for _ in "ab")
    return {"copy_bytes_per_s": max(copies), "bf16_flop_per_s": 2 * n**3 / seconds(partial(torch.matmul, a, b))}


@torch.inference_mode()
def kernels(limits: Figures) -> Figures:
    """By name: microseconds of the kernel and of its twin, and the kernel's bytes a second over those of a copy."""
    figures: Figures = {}
    for name, module, call, size in (*attentions(), *small_ops(), *experts()):
        took = seconds(call)
        figures[name] = {
            "us": round(took * 1e6, 1),
            "of_copy_bandwidth": round(size / took / limits["copy_bytes_per_s"], 3),
        }
        if module is not paged_attention:  # whose twin goes from sequence to sequence
            with without_kernels(module):
                figures[name]["twin_us"] = round(seconds(call) * 1e6, 1)
    return figures


@contextlib.contextmanager
def without_kernels(module: ModuleType) -> Iterator[None]:
    """Let an op, and the activation that experts call, run their twins."""
    with (
        mock.patch.object(module, "use_triton", lambda x: False),
        mock.patch.object(activation, "use_triton", lambda x: False),
    ):
        yield


def attentions() -> Iterator[Case]:
    """Decodes at a context of 4096, their blocks scattered; the bytes are those of keys and values."""
    pages = CONTEXT // PAGE
    for batch in (32, 64, 128):
        cache = torch.randn(2, batch * pages, PAGE, KV_HEADS, HEAD_SIZE, dtype=BF16, device="cuda")
        blocks = paged_attention.query_blocks([1] * batch, HEADS // KV_HEADS, "cuda")
        multiprocessors = torch.cuda.get_device_properties(0).multi_processor_count
        call = partial(
            paged_attention.paged_attention,
            torch.randn(batch, HEADS, HEAD_SIZE, dtype=BF16, device="cuda"),
            *cache,
            query_starts=torch.arange(batch + 1, dtype=torch.int32, device="cuda"),
            context_lens=torch.full((batch,), CONTEXT, dtype=torch.int32, device="cuda"),
            block_tables=torch.randperm(batch * pages, device="cuda").view(batch, pages).int(),
            blocks=blocks,
            scale=HEAD_SIZE**-0.5,
            num_splits=paged_attention.choose_num_splits(blocks, KV_HEADS, CONTEXT, multiprocessors),
        )
        yield f"paged_attention decode {batch} x {CONTEXT}", paged_attention, call, cache.numel() * cache.itemsize


def small_ops() -> Iterator[Case]:
    """What stands between the products of a layer, and the draw; for a batch of decodes and one of prompts."""
    for count in (64, 4096):
        x, added = torch.randn(2, count, HIDDEN, dtype=BF16, device="cuda")
        weight = torch.ones(HIDDEN, dtype=BF16, device="cuda")
        call: Callable[[], object] = partial(rms_norm.rms_norm, x, weight, 1e-5, late_rounding=False, added=added)
        yield f"rms_norm {count}", rms_norm, call, 4 * x.numel() * x.itemsize

        gates = torch.randn(count, 2 * INNER, dtype=BF16, device="cuda")
        yield f"gated {count}", activation, partial(activation.gated, gates, "silu"), 3 * count * INNER * 2

        sizes = [HEADS, KV_HEADS, KV_HEADS]
        qkv = torch.randn(count, sum(sizes), HEAD_SIZE, dtype=BF16, device="cuda")
        cos, sin = torch.rand(2, 8192, HEAD_SIZE // 2, device="cuda")
        cache = torch.zeros(2, count, PAGE, KV_HEADS, HEAD_SIZE, dtype=BF16, device="cuda")
        slots = torch.randperm(count * PAGE, device="cuda")[:count]
        positions = torch.randint(8192, (count,), device="cuda")
        call = partial(rope_cache.rotate_and_store, *qkv.split(sizes, dim=1), cos, sin, positions, *cache, slots)
        yield f"rope_cache {count}", rope_cache, call, 2 * qkv.numel() * qkv.itemsize
    for count in (1, 64):
        logits = 4 * torch.randn(count, VOCAB, device="cuda")
        number = torch.zeros(count, dtype=torch.int64, device="cuda")
        one = torch.ones(count, device="cuda")
        for name, top_k, top_p in (("plain", 0, 1.0), ("top-k 50, top-p 0.9", 50, 0.9)):
            rows = sample.Rows(one, number + top_k, one.double() * top_p, 0 * one, *[number] * 3)
            call = partial(sample.sample, logits, rows)
            yield f"sample {name} {count}", sample, call, logits.numel() * logits.itemsize


def experts() -> Iterator[Case]:
    """Mixtral 8x7B's experts, two of eight a token."""
    up = torch.randn(8, 2 * INNER, HIDDEN, dtype=BF16, device="cuda") / HIDDEN**0.5
    down = torch.randn(8, HIDDEN, INNER, dtype=BF16, device="cuda") / INNER**0.5
    for count in (1, 64, 1024):
        share, chosen = torch.softmax(torch.randn(count, 8, device="cuda"), dim=-1).topk(2, dim=-1)
        x = torch.randn(count, HIDDEN, dtype=BF16, device="cuda")
        call = partial(moe_matmul.experts, x, up, down, chosen, share, "silu")
        size = len(chosen.unique()) * (up[0].numel() + down[0].numel()) * up.itemsize
        yield f"moe_matmul {count}", moe_matmul, call, size
