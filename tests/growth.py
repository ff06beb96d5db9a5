"""How the time that something takes grows with its input."""

from __future__ import annotations

import math
import time
from collections.abc import Callable


def assert_linear(work: Callable[[int], object], size: int) -> None:
    """The CPU time of ``work(size)`` grows in proportion to ``size``."""

    def seconds(size: int) -> float:
        began = time.thread_time()
        work(size)
        return time.thread_time() - began

    assert_seconds_are_linear(seconds, size)


def assert_seconds_are_linear(seconds: Callable[[int], float], size: int, attempts: int = 12) -> None:
    """``seconds(size)`` is less than eight times that of a quarter of ``size``: four times is linear, sixteen is
    quadratic. Other processes only ever make a measurement longer, so the shortest of each size counts, and more are
    taken until they agree with the claim. A clock says little about less than a millisecond, and so does this.
    """
    quarter = whole = math.inf
    for attempt in range(attempts):
        quarter = min(quarter, seconds(size // 4))
        whole = min(whole, seconds(size))
        if attempt and whole < 8 * max(quarter, 1e-3):
            return
    raise AssertionError(f"{whole * 1e3:.1f} ms for {size}, {quarter * 1e3:.1f} ms for a quarter of it")
