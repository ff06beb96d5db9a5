"""What n-gram speculation brings on a text that repeats itself, one request at a time, against none.

A model of random weights that may use only a few tokens writes greedily until its answer turns in a circle. The
prompt is such an answer, so what is measured is how the model goes on with it; the share of draft tokens that were
accepted says how repetitive it was. Both engines answer the same prompts in turn, and medians are of rounds. How many
answers are the same is reported: a sum for several tokens at once may round otherwise than one for each alone, unless
the dtype is float32. Prints a table and, as the last line, JSON.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from typing import Any, NamedTuple

from tandem.config import ModelOptions, SpeculativeConfig, resolve
from tandem.engine import Engine, EngineRequest
from tandem.registry import create_engine
from tandem.sampling_params import SamplingParams
from tests.benchmarks.shapes import SHAPES, on_disk

WITHOUT, WITH = "none", "ngram"


class Answer(NamedTuple):
    """Tokens, and the seconds they took."""

    token_ids: list[int]
    seconds: float


def create(options: argparse.Namespace) -> dict[str, Engine]:
    """Without and with speculation."""
    ngram = SpeculativeConfig(
        method="ngram",
        num_speculative_tokens=options.drafts,
        prompt_lookup_min=options.lookup[0],
        prompt_lookup_max=options.lookup[1],
    )
    engines: dict[str, Engine] = {}
    with on_disk(SHAPES[options.shape]) as directory:
        for name, config in ((WITHOUT, None), (WITH, ngram)):
            model = ModelOptions(
                model=directory,
                backend="optimized",
                load_format="dummy",
                dtype=options.dtype,
                speculative_config=config,
                enable_prefix_caching=False,
            )
            engines[name] = create_engine(resolve(model).engine)
    return engines


def answer(engine: Engine, prompt: list[int], num_tokens: int, allowed: list[int]) -> Answer:
    """Greedy, of just so many tokens."""
    sampling = SamplingParams(temperature=0, ignore_eos=True, allowed_token_ids=allowed)
    engine.add(
        EngineRequest(request_id="r", prompt_token_ids=prompt, sampling=sampling, max_tokens=num_tokens, seed=0)
    )
    token_ids: list[int] = []
    began = time.perf_counter()
    while engine.has_unfinished:
        for output in engine.step():
            token_ids += output.new_token_ids
    return Answer(token_ids, time.perf_counter() - began)


def texts(engine: Engine, options: argparse.Namespace) -> list[tuple[list[int], list[int]]]:
    """Prompts that repeat themselves, each with the tokens that may follow."""
    found = []
    for number in range(options.texts):
        draw = random.Random(number)
        allowed = draw.sample(range(engine.info.vocab_size), k=options.words)
        start = draw.choices(allowed, k=8)
        found.append((start + answer(engine, start, options.prompt, allowed).token_ids, allowed))
    return found


def main(arguments: list[str]) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="speculation", description=__doc__)
    parser.add_argument("--shape", choices=SHAPES, default="88m")
    parser.add_argument("--dtype", default="auto", help="float32 makes equal tokens a certainty, not a likelihood")
    parser.add_argument("--drafts", type=int, default=8, help="tokens guessed at once, at most")
    parser.add_argument(
        "--lookup", type=int, nargs=2, default=[2, 4], help="tokens that are looked up, least and most"
    )
    parser.add_argument("--texts", type=int, default=4)
    parser.add_argument("--words", type=int, default=32, help="tokens that an answer may consist of")
    parser.add_argument("--prompt", type=int, default=256, help="tokens")
    parser.add_argument("--output", type=int, default=128, help="tokens")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args(arguments)
    engines = create(options)
    prompts = texts(engines[WITHOUT], options)
    rates: dict[str, list[float]] = {name: [] for name in engines}
    num_same = 0
    for number in range(options.rounds + 1):
        answers: dict[str, list[Answer]] = {name: [] for name in engines}
        for prompt, allowed in prompts:
            for name, engine in engines.items():
                answers[name].append(answer(engine, prompt, options.output, allowed))
        if number:  # the first round warms up
            for name, given in answers.items():
                rates[name].append(options.output * len(given) / sum(a.seconds for a in given))
            num_same += sum(a.token_ids == b.token_ids for a, b in zip(answers[WITHOUT], answers[WITH], strict=True))
    print_report(options, engines[WITH], rates, num_same)
    for engine in engines.values():
        engine.close()


def print_report(options: argparse.Namespace, engine: Engine, rates: dict[str, list[float]], num_same: int) -> None:
    """A table, and JSON."""
    stats, count = engine.stats, options.texts * options.rounds
    medians = {name: round(statistics.median(values), 1) for name, values in rates.items()}
    ratio = statistics.median(b / a for a, b in zip(rates[WITHOUT], rates[WITH], strict=True))
    acceptance = stats.num_accepted_tokens / max(1, stats.num_draft_tokens)
    print(f"output tokens/s, {options.shape}, one request at a time, {options.prompt} + 8 in, {options.output} out")
    for name, median in medians.items():
        print(f"{name:>8} {median:>10.1f}")
    print(f"ratio {ratio:.2f}; {acceptance:.2f} of {stats.num_draft_tokens} draft tokens were accepted")
    print(f"{num_same} of {count} answers are the same")
    report: dict[str, Any] = vars(options) | {
        "output_tokens_per_second": medians,
        "ratio": round(ratio, 3),
        "accepted": round(acceptance, 3),
        "draft_tokens": stats.num_draft_tokens,
        "same_answers": num_same,
        "answers": count,
    }
    print(json.dumps(report))
