"""Compile every kernel ahead of time in the engine's configurations, and print what each needs as a line of JSON.

Run as a program, without a GPU. The ops' own functions are called on small CPU tensors with their kernels replaced by
a recorder, so what is compiled is what they would launch: ``python -m tests.kernels.compile_all 90``, or ``… 90
"d=128 rows=16"`` for the cases whose names hold that.
"""

from __future__ import annotations

import contextlib
import inspect
import io
import json
import os
import re
import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

os.environ["TRITON_DEFAULT_FP_FUSION"] = "1"
os.environ["TRITON_DUMP_PTXAS_LOG"] = "1"
os.environ["TRITON_ALWAYS_COMPILE"] = "1"
os.environ.pop("TRITON_INTERPRET", None)

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from optimized.kernels import activation, edit_logits, moe_matmul, paged_attention, rms_norm, rope_cache, sample
from optimized.kernels.native import Library
from tandem.models.model_config import Activation

LIBRARY = Library()
Case = tuple[str, Any, Callable[[], object]]  # name, module of the op, what launches it
DTYPES = (torch.float16, torch.bfloat16)
NAMES = {
    torch.float16: "fp16",
    torch.bfloat16: "bf16",
    torch.float32: "fp32",
    torch.float64: "fp64",
    torch.int32: "i32",
    torch.int64: "i64",
}


class Recorder:
    """Stands in for a kernel and notes its launches."""

    def __init__(self, kernel: Any) -> None:
        self.kernel = kernel
        self.launches: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def __getitem__(self, grid: Any) -> Callable[..., None]:
        return lambda *args, **options: self.launches.append((args, options))


def recorded(module: Any, call: Callable[[], object]) -> list[Recorder]:
    """Run ``call`` with all kernels of ``module`` replaced."""
    kernels = {name: value for name, value in vars(module).items() if isinstance(value, triton.JITFunction)}
    recorders = {name: Recorder(kernel) for name, kernel in kernels.items()}
    use_triton = module.use_triton
    try:
        vars(module).update(recorders)
        module.use_triton = lambda x: True
        call()
    finally:
        vars(module).update(kernels)
        module.use_triton = use_triton
    return list(recorders.values())


def source(kernel: Any, args: tuple[Any, ...], options: dict[str, Any]) -> tuple[ASTSource, dict[str, Any]]:
    """What Triton's launcher would compile for these arguments, pointers and integers specialized as it does."""
    bound = inspect.signature(kernel.fn).bind(*args, **{k: v for k, v in options.items() if k in kernel.arg_names})
    signature: dict[str, str] = {}
    constants: dict[str, Any] = {}
    attributes: dict[tuple[int, ...], list[list[Any]]] = {}
    for i, parameter in enumerate(kernel.params):
        value = bound.arguments[parameter.name]
        is_fixed = not parameter.do_not_specialize
        if parameter.is_constexpr or value is None or (is_fixed and type(value) is int and value == 1):
            signature[parameter.name], constants[parameter.name] = "constexpr", value
            continue
        is_tensor = isinstance(value, torch.Tensor)
        signature[parameter.name] = (
            f"*{NAMES[value.dtype]}" if is_tensor else "fp32" if isinstance(value, float) else "i32"
        )
        if is_tensor or (is_fixed and isinstance(value, int) and value % 16 == 0):
            attributes[(i,)] = [["tt.divisibility", 16]]
    rest = {k: v for k, v in options.items() if k not in kernel.arg_names}
    return ASTSource(kernel, signature, constants, attributes), rest


def variants(module: Any, call: Callable[[], object]) -> set[str]:
    """What Triton would compile for ``call``."""
    recorders = recorded(module, call)
    launches = [(recorder.kernel, *launch) for recorder in recorders for launch in recorder.launches]
    return {source(*launch)[0].hash() for launch in launches}


def needs(log: str) -> dict[str, int]:
    """Registers of a thread, and bytes of them that are spilled, from what ``ptxas -v`` says."""
    return {
        "registers": max(int(n) for n in re.findall(r"Used (\d+) registers", log)),
        "spilled": sum(int(n) for n in re.findall(r"(\d+) bytes spill stores", log)),
    }


def attention(dtype: torch.dtype) -> Iterator[Case]:
    """Decodes with and without splits, and prefill; with a window and a cap, and without."""
    for head_size, group in ((64, 4), (128, 8), (256, 4)):
        for query_len, num_splits in ((1, 1), (1, 4), (40, 1)):
            for window, softcap in ((None, None), (512, 50.0)):
                blocks = paged_attention.query_blocks([query_len], group)
                cache = torch.zeros(4, 2, 16, head_size, dtype=dtype)
                queries = paged_attention.Queries(
                    torch.zeros(16, dtype=torch.int32),
                    torch.zeros(16, dtype=torch.int32),
                    torch.zeros(1, 16, dtype=torch.int32),
                    (paged_attention.Launch(blocks, query_len, num_splits),),
                )
                yield (
                    f"d={head_size} rows={blocks.num_rows} splits={num_splits} window={window}",
                    paged_attention,
                    partial(
                        paged_attention.paged_attention,
                        torch.zeros(query_len, 2 * group, head_size, dtype=dtype),
                        (cache, cache),
                        queries,
                        paged_attention.Form(0.1, window, softcap),
                        LIBRARY,
                    ),
                )


def rotation(dtype: torch.dtype) -> Iterator[Case]:
    """All channels of a head, or half of them."""
    for head_size in (64, 128, 256):
        for half in (head_size // 2, head_size // 4):
            q, k, v = torch.zeros(2, 48, head_size, dtype=dtype).split([32, 8, 8], dim=1)
            table, cache = torch.zeros(32, half), torch.zeros(4, 8, 16, head_size, dtype=dtype)
            at = torch.zeros(2, dtype=torch.int64)
            call = partial(
                rope_cache.rotate_and_store,
                *(q, k, v),
                (table, table),
                rope_cache.Places(at, at),
                (cache, cache),
                LIBRARY,
            )
            yield f"d={head_size} R={2 * half}", rope_cache, call


def norms(dtype: torch.dtype) -> Iterator[Case]:
    """Of the residual stream, and of heads; both ways to round."""
    for shape in ((4, 1024), (4, 4096), (4, 8192), (4, 32, 128)):
        for late in (True, False):
            for has_added in (True, False):
                x = torch.zeros(shape, dtype=dtype)
                weight = torch.zeros(shape[-1], dtype=torch.float32 if late else dtype)
                added = x if has_added else None
                call = partial(rms_norm.rms_norm, x, weight, 1e-5, LIBRARY, late_rounding=late, added=added)
                yield f"shape={shape} late={late} added={has_added}", rms_norm, call


def gates(dtype: torch.dtype) -> Iterator[Case]:
    """Each activation."""
    names: tuple[Activation, ...] = ("silu", "gelu", "gelu_tanh")
    for name in names:
        yield name, activation, partial(activation.gated, torch.zeros(4, 2 * 14336, dtype=dtype), name, LIBRARY)


def draws(dtype: torch.dtype) -> Iterator[Case]:
    """Logits are float32 whatever the model's dtype."""
    single, number = torch.zeros(2), torch.zeros(2, dtype=torch.int64)
    rows = sample.Rows(single, number, single.double(), single, number, number, number)
    yield "V=131072", sample, partial(sample.sample, torch.zeros(2, 131072), rows, LIBRARY)


def edits(dtype: torch.dtype) -> Iterator[Case]:
    """Of logits, whatever the model's dtype."""
    logits, at = torch.zeros(2, 131072), torch.zeros(2, dtype=torch.int64)
    bits, counts = torch.zeros(2, 4096, dtype=torch.int32), torch.zeros(2, 131072, dtype=torch.int32)
    penalties = edit_logits.Penalties(*torch.ones(3, 2))
    yield "mask", edit_logits, partial(edit_logits.mask, logits, at, at, bits, LIBRARY)
    yield "penalize", edit_logits, partial(edit_logits.penalize, logits, at, at, counts, penalties, LIBRARY)


def experts(dtype: torch.dtype) -> Iterator[Case]:
    """From few rows for each expert to many."""
    for num_tokens in (1, 32, 64, 128):
        chosen = torch.arange(4).expand(num_tokens, 4)
        weights = torch.zeros(4, 1024, 512, dtype=dtype), torch.zeros(4, 512, 512, dtype=dtype)
        x = torch.zeros(num_tokens, 512, dtype=dtype)
        call = partial(moe_matmul.experts, x, *weights, chosen, torch.zeros(num_tokens, 4), "silu", LIBRARY)
        yield f"rows={moe_matmul.tile_rows(chosen.numel(), 4)}", moe_matmul, call


def main(arch: int, part: str = "") -> None:
    done: set[str] = set()
    for dtype in DTYPES:
        products = (attention, experts)
        for cases in products if dtype == torch.float16 else (*products, rotation, norms, gates, draws, edits):
            for name, module, call in cases(dtype):
                name = f"{NAMES[dtype]} {name}"
                for recorder in recorded(module, call) if part in name else ():
                    for args, options in recorder.launches:
                        src, rest = source(recorder.kernel, args, options)
                        if src.hash() in done:
                            continue
                        done.add(src.hash())
                        log = io.StringIO()
                        with contextlib.redirect_stdout(log):
                            compiled = triton.compile(src, target=GPUTarget("cuda", arch, 32), options=rest)
                        row = {
                            "op": module.__name__.rpartition(".")[2],
                            "kernel": recorder.kernel.__name__,
                            "case": name,
                            "arch": arch,
                            "shared": compiled.metadata.shared,
                            **needs(log.getvalue()),
                        }
                        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), *sys.argv[2:])
