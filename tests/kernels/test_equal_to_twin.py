"""Each kernel in Triton's interpreter against its twin and float64.

The interpreter must be chosen before Triton is first imported, for the whole process; so each op's tests, the files
of ``interpreted/``, run in a process of their own, and nothing else of the suite ever sees the interpreter.
"""

from __future__ import annotations

import importlib.util

import pytest
from hypothesis import settings

from tests.kernels.apart import run_apart
from tests.kernels.test_compiles import OPS

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")


@pytest.mark.parametrize("op", sorted(OPS))
def test_worst_row(op: str) -> None:
    run_apart(f"interpreted/{op}", settings.get_current_profile_name(), TRITON_INTERPRET="1")


def test_planted_bugs_are_found() -> None:
    run_apart("interpreted/planted_bugs", "planted", TRITON_INTERPRET="1")
