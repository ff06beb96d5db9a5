"""Tests and measurements on a CUDA machine: ``python -m tests.gpu.check --out FILE``, or ``make gpu-check``.

Prints a table and writes the same figures as JSON, with the machine, the versions and the commit. Each figure stands
beside what the same run measured as the machine's limit: copy bandwidth, and the rate of a large matrix product.
Needs torch, triton, transformers, pytest and hypothesis beside what the engines need; no web packages.
"""

from __future__ import annotations

import argparse
import gc
import json
import platform
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from tests.gpu.measure_engine import engines, peers
from tests.gpu.measure_kernels import Figures, kernels, limits

ROOT = Path(__file__).parents[2]
TESTS = ("tests/gpu", "tests/paged")
PACKAGES = ("torch", "triton", "transformers", "safetensors", "numpy", "msgspec")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="tests and measurements on a CUDA machine")
    parser.add_argument("--out", required=True, metavar="FILE", help="where the JSON goes")
    parser.add_argument("--skip-tests", action="store_true", help="measure only")
    arguments = parser.parse_args(argv)
    if not torch.cuda.is_available():
        print("gpu-check: torch finds no CUDA device here")
        return 1
    report: Figures = {"machine": machine(), "tests": None if arguments.skip_tests else run_tests()}
    parts = {"limits": limits, "kernels": kernels, "engine": engines, "transformers": peers}
    for name, part in parts.items():
        try:
            report[name] = part(report.get("limits", {}))
        except Exception as error:  # one part that fails must not take the others' figures along
            report[name] = {"error": f"{type(error).__name__}: {error}".splitlines()[0]}
        gc.collect()
        torch.cuda.empty_cache()
        Path(arguments.out).write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
        print(f"{name}: {json.dumps(report[name], indent=1)}", flush=True)
    failed = [name for name, part in report.items() if isinstance(part, dict) and "error" in part]
    passed = report["tests"] is None or report["tests"]["status"] == 0
    return 0 if passed and not failed else 1


def machine() -> Figures:
    """What the figures depend on."""
    properties = torch.cuda.get_device_properties(0)
    return {
        "gpu": properties.name,
        "multiprocessors": properties.multi_processor_count,
        "memory_gib": round(properties.total_memory / (1 << 30), 1),
        "cuda": torch.version.cuda,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "commit": commit(),
        **{name: installed(name) for name in PACKAGES},
    }


def commit() -> str | None:
    """Of the working tree, with ``+`` if it was changed since; None outside a repository."""
    try:
        head, changes = (
            subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
            for words in (["rev-parse", "HEAD"], ["status", "--porcelain"])
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return f"{head}{'+' if changes else ''}"


def installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def run_tests() -> Figures:
    """The tests that make sense here, in a process of their own."""
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-c",
        "tests/gpu/settings.ini",
        "--rootdir",
        ".",
        "--confcutdir",
        ".",
        *TESTS,
    ]
    done = subprocess.run([*command, "-p", "no:cacheprovider"], cwd=ROOT, capture_output=True, text=True)
    lines = done.stdout.splitlines()
    print("\n".join(lines if done.returncode else lines[-1:]), flush=True)
    return {"status": done.returncode, "summary": lines[-1] if lines else done.stderr[-500:]}


if __name__ == "__main__":
    sys.exit(main())
