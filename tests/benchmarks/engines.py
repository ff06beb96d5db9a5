"""The engines against each other and against transformers, on random weights: output tokens in a second.

Prints a table and, as the last line, JSON. Rounds of all systems are interleaved and medians taken, so that a machine
that slows down slows all of them down. Reading bandwidth is measured in the same run.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from importlib.metadata import version

from tests.benchmarks.shapes import SHAPES
from tests.benchmarks.systems import INPUT, OUTPUT, SYSTEMS, Worker

SETTLE_SECONDS = 0.1  # the threads of the system before have gone to sleep by then


def read_bandwidth() -> float:
    """Bytes in a second that a sum over memory much larger than the caches reads."""
    import torch  # after the measurements: its threads are no business of theirs

    x = torch.ones(1 << 28, dtype=torch.float32)  # 1 GiB
    seconds = []
    for _ in range(5):
        began = time.perf_counter()
        x.sum()
        seconds.append(time.perf_counter() - began)
    return x.numel() * x.itemsize / min(seconds)


def measure(workers: dict[str, Worker], counts: list[int], rounds: int) -> dict[str, dict[int, float]]:
    """Median output tokens in a second, by system and number of requests at once."""
    seconds: dict[str, dict[int, list[float]]] = {name: {count: [] for count in counts} for name in workers}
    for number in range(rounds + 1):
        for count in sorted(counts, reverse=True):  # what a system sizes by its first call is sized by the largest
            for name, worker in workers.items():
                time.sleep(SETTLE_SECONDS)
                took = worker.seconds(count, seed=number)
                if number:  # the first round warms up
                    seconds[name][count].append(took)
    return {
        name: {count: round(count * OUTPUT / statistics.median(s), 1) for count, s in by_count.items()}
        for name, by_count in seconds.items()
    }


def main(arguments: list[str]) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="engines", description=__doc__)
    parser.add_argument("--shape", choices=SHAPES, default="88m")
    parser.add_argument("--counts", type=int, nargs="+", default=[1, 16, 64])
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--systems", nargs="+", choices=SYSTEMS, default=list(SYSTEMS))
    options = parser.parse_args(arguments)
    workers = {name: Worker(name, options.shape) for name in options.systems}
    figures = measure(workers, options.counts, options.rounds)
    for worker in workers.values():
        worker.close()
    print(f"output tokens/s, {options.shape}, {INPUT} in, {OUTPUT} out")
    print(f"{'at once':>8} " + " ".join(f"{name:>14}" for name in figures))
    for count in options.counts:
        print(f"{count:>8} " + " ".join(f"{figures[name][count]:>14.1f}" for name in figures))
    report = {"shape": options.shape, "output_tokens_per_second": figures}
    machine = {"read_gb_s": round(read_bandwidth() / 1e9, 1), "cores": os.cpu_count(), "machine": platform.machine()}
    print(json.dumps(report | machine | {name: version(name) for name in ("torch", "transformers")}))
