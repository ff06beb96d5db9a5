"""Every kernel, compiled for each generation of GPUs without one, fits into shared memory and spills no register."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from optimized import kernels

ROOT = Path(__file__).parents[2]
SHARED_KIB = {80: 163, 90: 227, 100: 227}  # a program's most: CUDA C++ Programming Guide, "Technical specifications"
OPS = {path.stem for path in Path(kernels.__path__[0]).glob("*.py") if "\n@jit" in path.read_text(encoding="utf-8")}

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
