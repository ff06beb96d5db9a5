"""The parts of ``tests.gpu.check``, each a process: ``python -m tests.gpu.parts NAME --seconds S [--limits JSON]``.

A part is a list of tasks. What each measures is printed at once as a line of JSON. A task that raises is reported and
spoils no other; one for which there is no time left is reported as not begun, so that a part ends by itself.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterable
from importlib import import_module
from typing import Any, NamedTuple

from tests.gpu.check import FIGURE

MODULES = {
    "limits": "measure_kernels",
    "kernels": "measure_kernels",
    "engine": "measure_engine",
    "tests": "run_tests",
    "peers": "measure_peers",
}

Values = dict[str, Any]
Figure = tuple[str, Values]  # a name, and what was measured under it


class Task(NamedTuple):
    """Something to measure.

    Attributes:
        name: in messages; figures have names of their own.
        measure: gives figures as it finds them.
        seconds: it is not begun with less time left.
    """

    name: str
    measure: Callable[[], Iterable[Figure]]
    seconds: float = 0.0


class Setting(NamedTuple):
    """What a part is measured under.

    Attributes:
        dry: tiny sizes, on a CPU.
        limits: of the machine, by name; empty if nobody has measured them.
        deadline: of the part, on the monotonic clock.
    """

    dry: bool
    limits: dict[str, float]
    deadline: float

    @property
    def device(self) -> str:
        return "cpu" if self.dry else "cuda"

    @property
    def seconds_left(self) -> float:
        return self.deadline - time.monotonic()

    def share(self, limit: str, rate: float) -> Values:
        """``rate`` as a share of a limit, if that is known."""
        return {f"of_{limit}": round(rate / self.limits[limit], 3)} if limit in self.limits else {}


Plan = Callable[[Setting], Iterable[Task]]


def run(plan: Plan, setting: Setting) -> int:
    """Measure; returns the exit status."""
    failed = False
    for name, measure, seconds in plan(setting):
        if setting.seconds_left < seconds:
            say(name, {"not begun": f"it needs {seconds:.0f} s, and {max(0, setting.seconds_left):.0f} are left"})
            continue
        try:
            for figure in measure():
                say(*figure)
        except Exception as error:
            traceback.print_exc()
            say(name, {"error": f"{type(error).__name__}: {error}".splitlines()[0]})
            failed = True
        free_memory()
    return int(failed)


def say(name: str, values: Values) -> None:
    print(FIGURE + json.dumps([name, values]), flush=True)


def free_memory() -> None:
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()


def main(argv: list[str] | None = None) -> int:
    """Be the process of one part."""
    parser = argparse.ArgumentParser()
    parser.add_argument("name", choices=MODULES)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--limits", type=json.loads, default={})
    parser.add_argument("--dry", action="store_true")
    options = parser.parse_args(argv)
    deadline = time.monotonic() + options.seconds
    if options.dry:
        os.environ |= {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}  # read when torch is imported
    plan: Plan = getattr(import_module(f"tests.gpu.{MODULES[options.name]}"), options.name)
    return run(plan, Setting(options.dry, options.limits, deadline))


if __name__ == "__main__":
    sys.exit(main())
