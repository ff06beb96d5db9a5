"""The printed budget bounds the process: nothing of a sequence is outside the accounts."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("kind", ["shared", "distinct"])
def test_the_process_grows_by_no_more_than_the_printed_budget(kind: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.equivalence.memory_law", kind],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    figures = json.loads(done.stdout.splitlines()[-1])
    assert figures["growth"] <= 1.1 * (figures["cache"] + figures["steps"]), figures
    if kind == "shared":  # 64 × 4k tokens: what each would take by itself, and what they take together
        assert figures["copies"] > 7 * figures["cache"] and figures["usage"] < 0.5, figures
        assert figures["growth"] <= 0.5 * figures["cache"] + figures["steps"], figures
    else:
        assert figures["growth"] > 0.9 * figures["cache"], "the cache was not filled"
