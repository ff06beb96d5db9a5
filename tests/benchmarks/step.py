"""Where the time of a step goes besides the model, while many sequences decode: milliseconds by part.

For requests that are all greedy, and for a mix of sampling parameters. Prints a table and, as the last line, JSON.
Nothing is replaced: every part runs as ever, with a watch around it. A part's time is its own, without that of the
parts inside it.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from collections import defaultdict
from typing import Any

from tandem.config import ModelOptions, resolve
from tandem.engine import EngineRequest
from tandem.registry import create_engine
from tandem.sampling_params import SamplingParams
from tests.benchmarks.shapes import SHAPES, on_disk

PARTS = ("schedule", "layout", "model", "sample", "update", "rest")
GREEDY: list[dict[str, Any]] = [{"temperature": 0}]
MIX: list[dict[str, Any]] = [
    {"temperature": 0},
    {"temperature": 0.7},
    {"temperature": 1, "top_p": 0.9},
    {"temperature": 0.8, "top_k": 50},
    {"temperature": 1, "min_p": 0.05, "logprobs": 5},
    {"temperature": 0.7, "top_p": 0.95, "top_k": 40, "repetition_penalty": 1.1},
    {"temperature": 0, "frequency_penalty": 0.5, "presence_penalty": 0.5},
    {"temperature": 1, "logit_bias": {5: 2.0, 17: -100.0}, "logprobs": 0},
]


class Watches:
    """Time spent in each part since the last ``take``."""

    def __init__(self) -> None:
        self._seconds: dict[str, float] = defaultdict(float)
        self._inside = 0.0  # seconds of parts within the one that runs

    def around(self, owner: Any, name: str, part: str) -> None:
        """Let calls of ``owner.name`` count as ``part``."""
        call = getattr(owner, name)

        def timed(*args: Any, **options: Any) -> Any:
            outer, self._inside = self._inside, 0.0
            began = time.perf_counter()
            try:
                return call(*args, **options)
            finally:
                took = time.perf_counter() - began
                self._seconds[part] += took - self._inside
                self._inside = outer + took

        setattr(owner, name, timed)

    def take(self) -> dict[str, float]:
        """Seconds by part."""
        taken = {part: self._seconds[part] for part in PARTS}
        self._seconds.clear()
        return taken


def watched(shape: dict[str, Any], num_seqs: int) -> tuple[Any, Watches]:
    """The optimized engine with watches on its parts."""
    from optimized import engine as module
    from optimized.runner.sampler import Drawing

    with on_disk(shape) as directory:
        options = ModelOptions(model=directory, backend="optimized", load_format="dummy", max_num_seqs=num_seqs)
        engine: Any = create_engine(resolve(options).engine)
    watches = Watches()
    for owner, name, part in (
        (engine, "step", "rest"),
        (engine.scheduler, "schedule", "schedule"),
        (engine, "_prepare_rows", "update"),
        (module, "build_batch", "layout"),
        (engine.cache, "attention", "layout"),
        (engine.model, "forward", "model"),
        (engine.model, "logits", "model"),
        (engine, "_report_prompts", "sample"),
        (engine, "_draw", "sample"),
        (Drawing, "take", "sample"),
        (engine, "_account", "update"),
        (engine, "_finish", "update"),
    ):
        watches.around(owner, name, part)
    return engine, watches


def decode(
    engine: Any, watches: Watches, kinds: list[dict[str, Any]], num_seqs: int, num_steps: int
) -> list[dict[str, float]]:
    """Seconds by part of each step in which all sequences decode."""
    draw = random.Random(0)
    warm_up = 10
    for i in range(num_seqs):
        request = EngineRequest(
            request_id=str(i),
            prompt_token_ids=draw.choices(range(engine.info.vocab_size), k=128),
            sampling=SamplingParams(ignore_eos=True, **kinds[i % len(kinds)]),
            max_tokens=engine.info.max_model_len - 128,
            seed=i,
        )
        engine.add(request)
    started: set[str] = set()
    while len(started) < num_seqs:
        started |= {output.request_id for output in engine.step()}
    steps = []
    for _ in range(warm_up + num_steps):
        watches.take()
        assert len(engine.step()) == num_seqs
        steps.append(watches.take())
    for i in range(num_seqs):
        engine.abort(str(i))
    engine.step()
    return steps[warm_up:]


def summary(steps: list[dict[str, float]]) -> dict[str, dict[str, float]]:
    """Median and 99th percentile in milliseconds; ``besides`` is all but the model."""
    columns = {part: [1e3 * step[part] for step in steps] for part in PARTS}
    columns["besides"] = [1e3 * (sum(step.values()) - step["model"]) for step in steps]
    return {
        part: {
            "median": round(statistics.median(values), 3),
            "p99": round(statistics.quantiles(values, n=100, method="inclusive")[98], 3),
        }
        for part, values in columns.items()
    }


def main(arguments: list[str]) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="step", description=__doc__)
    parser.add_argument("--shape", choices=SHAPES, default="88m")
    parser.add_argument("--vocab-sizes", type=int, nargs="+", default=[8192, 151936])
    parser.add_argument("--sequences", type=int, default=64)
    parser.add_argument("--steps", type=int, default=200)
    options = parser.parse_args(arguments)
    report: dict[str, Any] = vars(options) | {"milliseconds": {}}
    for vocab_size in options.vocab_sizes:
        engine, watches = watched(SHAPES[options.shape] | {"vocab_size": vocab_size}, options.sequences)
        for name, kinds in (("greedy", GREEDY), ("mix", MIX)):
            figures = summary(decode(engine, watches, kinds, options.sequences, options.steps))
            report["milliseconds"][f"{name} {vocab_size}"] = figures
            print(f"{options.sequences} sequences, vocabulary {vocab_size}, {name}: ms")
            for part, values in figures.items():
                print(f"{part:>10} median {values['median']:>9.3f}   p99 {values['p99']:>9.3f}")
        engine.close()
    print(json.dumps(report))
