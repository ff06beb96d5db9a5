"""Tests in a process of their own, for what is chosen once per process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent


def run_apart(file: str, profile: str, **environment: str) -> None:
    """All tests of ``file``, a path within this folder without ``.py``, pass under the Hypothesis ``profile``."""
    options = ["-q", "-p", "no:cacheprovider", f"--hypothesis-profile={profile}"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, str(HERE / f"{file}.py")],
        cwd=HERE.parents[1],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
