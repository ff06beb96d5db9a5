"""Every kernel, compiled for each generation of GPUs without one, fits into shared memory and spills no register."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optimized import kernels
from optimized.kernels import moe_matmul

ROOT = Path(__file__).parents[2]
SHARED_KIB = {80: 163, 90: 227, 100: 227}  # a program's most: CUDA C++ Programming Guide, "Technical specifications"
OPS = {path.stem for path in Path(kernels.__path__[0]).glob("*.py") if "\n@jit(" in path.read_text(encoding="utf-8")}

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")


@pytest.mark.parametrize("arch", SHARED_KIB)
def test_fits_and_spills_nothing(arch: int, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.kernels.compile_all", str(arch)],
        cwd=ROOT,
        env={**os.environ, "TRITON_CACHE_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert {row["op"] for row in rows} == OPS
    too_large = [row for row in rows if row["shared"] > SHARED_KIB[arch] * 1024 or row["spilled"]]
    assert not too_large


# What is compiled for a step, by its size: tokens of a norm; splits of a decode.
VARIANTS = """
from functools import partial
import torch
from optimized.kernels import paged_attention, rms_norm
from tests.kernels.compile_all import LIBRARY, variants

def norm(count):
    x, weight = torch.zeros(count, 64), torch.zeros(64)
    return variants(rms_norm, partial(rms_norm.rms_norm, x, weight, 1e-5, LIBRARY, late_rounding=True, added=x))

def decode(splits):
    x, cache = torch.zeros(1, 4, 64), (torch.zeros(4, 2, 16, 64),) * 2
    ints = torch.zeros(16, dtype=torch.int32)
    launch = paged_attention.Launch(paged_attention.query_blocks([1], 2), 1, splits)
    queries = paged_attention.Queries(ints, ints, ints.view(1, 16), (launch,))
    return variants(paged_attention, partial(paged_attention.paged_attention, x, cache, queries, FORM, LIBRARY))

FORM = paged_attention.Form(0.1)
print([len(norm(count) | norm(3)) for count in (1, 2, 16, 33)], [len(decode(n) | decode(3)) for n in (2, 16, 33)])
"""


def test_a_steps_size_changes_no_variant() -> None:
    """Or a request would wait for a compiler: a norm is one kernel, a decode in splits two, however large."""
    done = subprocess.run([sys.executable, "-c", VARIANTS], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "[1, 1, 1, 1] [2, 2, 2]\n", done.stdout + done.stderr


@given(num_experts=st.integers(1, 512), share=st.floats(0, 1))
def test_every_tile_of_experts_is_warmed_up(num_experts: int, share: float) -> None:
    chosen = max(1, round(share * num_experts))
    counts = moe_matmul.tokens_by_tile(num_experts, chosen)
    assert [moe_matmul.tile_rows(n * chosen, num_experts) for n in counts] == list(moe_matmul.TILES)
