"""``tandem bench throughput|latency``: an engine alone, without a server, on random prompts.

Prints a table and, as the last line, the same figures as JSON.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import time
from typing import Any

from tandem.cli.serve import add_model_options, add_scheduler_options, model_options
from tandem.config import ResolvedModel, resolve
from tandem.engine import Engine, EngineRequest
from tandem.errors import ConfigError
from tandem.sampling_params import SamplingParams

Figures = dict[str, Any]


def add_command(commands: Any) -> None:
    """Register ``bench`` and its two measurements."""
    parser = commands.add_parser("bench", help="measure an engine without a server")
    kinds = parser.add_subparsers(dest="kind", required=True, metavar="throughput|latency")
    throughput = kinds.add_parser("throughput", help="all prompts at once: tokens in a second")
    latency = kinds.add_parser("latency", help="one batch, again and again: seconds")
    for kind in (throughput, latency):
        add_model_options(kind)
        add_scheduler_options(kind)
        add = kind.add_argument_group("measurement").add_argument
        add("--input-len", type=int, default=128, metavar="N", help="tokens of a prompt (default: %(default)s)")
        add("--output-len", type=int, default=64, metavar="N", help="tokens of an answer (default: %(default)s)")
        add("--num-iters", type=int, default=3, metavar="N", help="measured rounds (default: %(default)s)")
        add("--num-iters-warmup", type=int, default=1, metavar="N", help="rounds before them (default: %(default)s)")
    throughput.add_argument("--num-prompts", type=int, default=64, metavar="N", help="(default: %(default)s)")
    latency.add_argument("--batch-size", type=int, default=1, metavar="N", help="(default: %(default)s)")
    throughput.set_defaults(run=run, count="num_prompts")
    latency.set_defaults(run=run, count="batch_size")


def run(arguments: argparse.Namespace) -> int:
    """Build the engine, measure, print."""
    from tandem.registry import create_engine

    count = getattr(arguments, arguments.count)
    for name in (arguments.count, "input_len", "output_len", "num_iters"):
        if getattr(arguments, name) < 1:
            raise ConfigError(f"--{name.replace('_', '-')}", "must be at least 1")
    model = resolve(model_options(arguments))
    _check_lengths(model, arguments)
    engine = create_engine(model.engine)
    try:
        rounds = [
            _round(engine, count, arguments.input_len, arguments.output_len, number)
            for number in range(arguments.num_iters_warmup + arguments.num_iters)
        ]
    finally:
        engine.close()
    figures = {
        "kind": arguments.kind,
        "backend": engine.info.backend,
        "dtype": engine.info.dtype,
        "num_parameters": engine.info.num_parameters,
        "requests": count,
        "input_len": arguments.input_len,
        "output_len": arguments.output_len,
        **_summary(rounds[arguments.num_iters_warmup :], count * arguments.output_len),
    }
    width = max(map(len, figures))
    for name, value in figures.items():
        print(f"{name:<{width}}  {value}")
    print(json.dumps(figures))
    return 0


def _check_lengths(model: ResolvedModel, arguments: argparse.Namespace) -> None:
    limit = model.engine.max_model_len
    if arguments.input_len + arguments.output_len > limit:
        raise ConfigError("--input-len", f"with --output-len it exceeds the model's context of {limit} tokens")


def _round(engine: Engine, count: int, input_len: int, output_len: int, seed: int) -> tuple[float, float]:
    """Seconds until the first token of all requests and until the last; prompts differ from round to round."""
    generator = random.Random(seed)
    sampling = SamplingParams(temperature=0, ignore_eos=True)
    started: set[str] = set()
    began = time.perf_counter()
    for i in range(count):
        prompt = generator.choices(range(engine.info.vocab_size), k=input_len)
        engine.add(
            EngineRequest(
                request_id=str(i), prompt_token_ids=prompt, sampling=sampling, max_tokens=output_len, seed=i
            )
        )
    first = 0.0
    while engine.has_unfinished:
        for output in engine.step():
            if output.error is not None:
                print(f"request {output.request_id}: {output.error}", file=sys.stderr)
            started.add(output.request_id)
        if len(started) == count and not first:
            first = time.perf_counter() - began
    return first, time.perf_counter() - began


def _summary(rounds: list[tuple[float, float]], num_output_tokens: int) -> Figures:
    first = statistics.median(first for first, _ in rounds)
    total = statistics.median(total for _, total in rounds)
    return {
        "seconds": round(total, 4),
        "seconds_to_first_tokens": round(first, 4),
        "output_tokens_per_second": round(num_output_tokens / total, 1),
    }
