"""Triton where it is installed, and when to use it."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import torch

os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")  # Triton's own default, said aloud since 3.9 asks for it


try:
    import triton
    import triton.language as tl

    HAS_TRITON = True
except ImportError:  # no wheels for this platform: the twins do the work
    tl, HAS_TRITON = None, False

INTERPRETED = HAS_TRITON and os.environ.get("TRITON_INTERPRET") == "1"

__all__ = ["HAS_TRITON", "INTERPRETED", "ceil_div", "jit", "next_power_of_2", "tl", "use_triton"]


def jit(*varying: str) -> Callable[[Callable[..., Any]], Any]:
    """A kernel of Triton's, or a function that nobody calls.

    Args:
        varying: integers that differ from step to step. Triton compiles a variant for 1 and one for multiples of 16
            of all others, and a step must not wait for a compiler.
    """

    def decorate(kernel: Callable[..., Any]) -> Any:
        return triton.jit(kernel, do_not_specialize=list(varying)) if HAS_TRITON else kernel

    return decorate


def use_triton(x: torch.Tensor) -> bool:
    """Whether an op on ``x`` runs its kernel and not its twin."""
    return HAS_TRITON and (x.is_cuda or INTERPRETED)


def ceil_div(x: int, y: int) -> int:
    """x / y, rounded up."""
    return -(-x // y)


def next_power_of_2(x: int) -> int:
    """The least power of two that is at least ``x`` ≥ 1; Triton's blocks have such sizes."""
    return 1 << (x - 1).bit_length()
