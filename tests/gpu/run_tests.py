"""The tests that make sense on a GPU: its own, and the engine against the reference."""

from __future__ import annotations

import ast
import os
from collections.abc import Iterable, Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.gpu.check import ROOT
from tests.gpu.parts import Figure, Setting, Task, Values, say

FULL = ("tests/gpu", "tests/equivalence")
DRY = ("tests/gpu/test_kernels.py", "tests/equivalence/test_overlap.py")
OPTIONS = (
    *("-q", "-c", "tests/gpu/settings.ini", "--rootdir", ".", "--confcutdir", "."),
    *("-p", "no:cacheprovider", "--continue-on-collection-errors"),
    *("-k", "not planted"),  # some of those bugs stand in code that only a CPU runs, and would not be found
)
MOST_WORKERS = 8  # each has a CUDA context of its own
REPORT_EACH = 25  # tests


class Failed(Exception):
    """Tests did, or could not be run."""


class Tally:
    """A plugin that counts outcomes and says them as they come."""

    def __init__(self) -> None:
        self._counts = {"passed": 0, "failed": 0, "skipped": 0}
        self._failures: list[str] = []

    @property
    def values(self) -> Values:
        return {**self._counts, "failures": self._failures}

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self._fail(report.nodeid)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self._fail(report.nodeid)
        elif report.when == "call" or report.skipped:
            self._counts[report.outcome] += 1
            if sum(self._counts.values()) % REPORT_EACH == 0:
                say("pytest", self.values)

    def _fail(self, name: str) -> None:
        self._counts["failed"] += 1
        self._failures.append(name)
        say("pytest", self.values)


def tests(setting: Setting) -> Iterator[Task]:
    yield Task("pytest", lambda: run(setting))


def run(setting: Setting) -> Iterator[Figure]:
    """In several processes if something is installed that can do so; without files that cannot be imported here."""
    os.chdir(ROOT)
    chosen, most = (DRY, 2) if setting.dry else (FULL, MOST_WORKERS)
    workers = ["-n", str(min(most, os.cpu_count() or 1))] if find_spec("xdist") else []
    left_out = absent(ROOT / name for name in chosen)
    ignored = [f"--ignore={name}" for name in left_out]
    tally = Tally()
    status = pytest.main([*OPTIONS, *workers, *ignored, *chosen], plugins=[tally])
    yield "pytest", tally.values | {"status": int(status), "left out": left_out}
    if status != 0:
        raise Failed(f"pytest ended with {int(status)}")


def absent(places: Iterable[Path]) -> dict[str, list[str]]:
    """Files that import packages that are not installed here, and which."""
    files = [file for place in places for file in ([place] if place.is_file() else sorted(place.glob("*.py")))]
    missing = {file: sorted(name for name in imported(file) if find_spec(name) is None) for file in files}
    return {str(file.relative_to(ROOT)): names for file, names in missing.items() if names}


def imported(file: Path) -> set[str]:
    """The packages that a module imports when it is imported."""
    body = ast.parse(file.read_text(encoding="utf-8")).body
    names = {alias.name for node in body if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module or "" for node in body if isinstance(node, ast.ImportFrom)}
    return {name.partition(".")[0] for name in names}
