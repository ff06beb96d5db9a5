"""What the prefix cache saves: time to the first token of requests that share a long beginning and are sent at once.

The cache is on, with the beginning seen before, or off. Prints a table and, as the last line, JSON.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from typing import Any

from tandem.config import ModelOptions, resolve
from tandem.engine import Engine, EngineRequest
from tandem.registry import create_engine
from tandem.sampling_params import SamplingParams
from tests.benchmarks.shapes import SHAPES, on_disk

Answers = dict[str, list[int]]


def serve(engine: Engine, prompts: list[list[int]], max_tokens: int) -> tuple[list[float], Answers]:
    """Seconds until the first token of each request, and the answers."""
    sampling = SamplingParams(temperature=0, ignore_eos=True)
    answers: Answers = {str(i): [] for i in range(len(prompts))}
    first: dict[str, float] = {}
    began = time.perf_counter()
    for name, prompt in zip(answers, prompts, strict=True):
        engine.add(
            EngineRequest(request_id=name, prompt_token_ids=prompt, sampling=sampling, max_tokens=max_tokens, seed=0)
        )
    while engine.has_unfinished:
        outputs = engine.step()
        now = time.perf_counter() - began
        for output in outputs:
            first.setdefault(output.request_id, now)
            answers[output.request_id] += output.new_token_ids
    return list(first.values()), answers


def main(arguments: list[str]) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="prefix", description=__doc__)
    parser.add_argument("--shape", choices=SHAPES, default="88m")
    parser.add_argument("--dtype", default="auto", help="float32 makes equal tokens a certainty, not a likelihood")
    parser.add_argument("--shared", type=int, default=1500, help="tokens")
    parser.add_argument("--own", type=int, default=20, help="tokens")
    parser.add_argument("--requests", type=int, default=32)
    parser.add_argument("--output", type=int, default=16, help="tokens")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args(arguments)
    shape = SHAPES[options.shape]
    engines: dict[str, Engine] = {}
    with on_disk(shape) as directory:
        for name, caching in (("on", True), ("off", False)):
            model = ModelOptions(
                model=directory,
                backend="optimized",
                load_format="dummy",
                dtype=options.dtype,
                enable_prefix_caching=caching,
            )
            engines[name] = create_engine(resolve(model).engine)
    seconds: dict[str, list[float]] = {"on": [], "off": []}
    num_same = 0
    for number in range(options.rounds + 1):
        draw = random.Random(number)
        shared, *ends = (
            draw.choices(range(shape["vocab_size"]), k=length)
            for length in (options.shared, *[options.own] * (options.requests + 1))
        )
        answers: dict[str, Answers] = {}
        for name, engine in engines.items():
            serve(engine, [shared + ends[0]], 1)
            first, answers[name] = serve(engine, [shared + end for end in ends[1:]], options.output)
            if number:  # the first round warms up
                seconds[name] += first
        if number:
            num_same += sum(answers["on"][i] == answers["off"][i] for i in answers["on"])
    print_report(options, seconds, num_same)


def print_report(options: argparse.Namespace, seconds: dict[str, list[float]], num_same: int) -> None:
    """A table, and JSON."""
    mean, median = ({name: kind(s) for name, s in seconds.items()} for kind in (statistics.mean, statistics.median))
    print(f"seconds to the first token, {options.requests} requests, {options.shared} + {options.own} tokens")
    print(f"{'cache':>8} {'mean':>10} {'median':>10}")
    for name in seconds:
        print(f"{name:>8} {mean[name]:>10.4f} {median[name]:>10.4f}")
    count = len(seconds["on"])
    print(f"{mean['off'] / mean['on']:.1f} times sooner; {num_same} of {count} answers are the same")
    report: dict[str, Any] = vars(options) | {
        "mean_seconds_to_first_token": mean,
        "median_seconds_to_first_token": median,
        "ratio_of_means": mean["off"] / mean["on"],
        "same_answers": num_same,
        "answers": count,
    }
    print(json.dumps(report))
