"""Each kernel in Triton's interpreter against its twin and float64.

The interpreter must be chosen before Triton is first imported, for the whole process; so each op's tests, the files
of ``interpreted/``, run in a process of their own, and nothing else of the suite ever sees the interpreter.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import settings

from tests.kernels.test_compiles import OPS

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")


@pytest.mark.parametrize("op", sorted(OPS))
def test_worst_row(op: str) -> None:
    run(op, settings.get_current_profile_name())


def test_planted_bugs_are_found() -> None:
    run("planted_bugs", "unshrunk")


def run(file: str, profile: str) -> None:
    options = ["-q", "-p", "no:cacheprovider", f"--hypothesis-profile={profile}"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, f"tests/kernels/interpreted/{file}.py"],
        cwd=ROOT,
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
