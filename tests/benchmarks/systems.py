"""The systems that ``engines`` compares, each in a process of its own.

``python -m tests.benchmarks.systems NAME SHAPE`` is a worker. It answers every line of its standard input, a number
of requests and a seed, with the seconds they took. Nobody sets variables for another: a system runs in the
environment that it would have if it were alone, and what it sets itself (as our registry does for the threads of
OpenMP) reaches no other. For that, nothing here may import torch before the system is built. While a worker waits for
a line, it uses no core.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

from tests.benchmarks.shapes import SHAPES, on_disk

INPUT, OUTPUT = 128, 64
Prompts = list[list[int]]
Round = Callable[[Prompts], int]  # answers all, sent at once, each with OUTPUT tokens; returns how many came
CACHE_SHARE = 0.2  # of the memory, for transformers' own cache: it would take most, and there are others


def engine_round(backend: str, shape: dict[str, Any]) -> Round:
    """One of ours."""
    from tandem.config import ModelOptions, resolve
    from tandem.engine import EngineRequest
    from tandem.registry import create_engine
    from tandem.sampling_params import SamplingParams

    with on_disk(shape) as directory:
        engine = create_engine(resolve(ModelOptions(model=directory, backend=backend, load_format="dummy")).engine)
    sampling = SamplingParams(temperature=0, ignore_eos=True)

    def run(prompts: Prompts) -> int:
        for i, prompt in enumerate(prompts):
            request = EngineRequest(
                request_id=str(i), prompt_token_ids=prompt, sampling=sampling, max_tokens=OUTPUT, seed=0
            )
            engine.add(request)
        num_tokens = 0
        while engine.has_unfinished:
            num_tokens += sum(len(output.new_token_ids) for output in engine.step())
        return num_tokens

    return run


def _transformers_model(shape: dict[str, Any]) -> Any:
    import torch
    import transformers

    transformers.utils.logging.set_verbosity_error()
    fields = {name: value for name, value in shape.items() if name not in ("model_type", "dtype", "architectures")}
    config = transformers.AutoConfig.for_model(shape["model_type"], **fields)
    model = transformers.AutoModelForCausalLM.from_config(config).to(torch.bfloat16).eval()
    model.generation_config.update(eos_token_id=None, pad_token_id=0, max_new_tokens=OUTPUT, do_sample=False)
    return model


def generate_round(shape: dict[str, Any]) -> Round:
    """``transformers.generate`` on one batch."""
    import torch

    model = _transformers_model(shape)

    def run(prompts: Prompts) -> int:
        ids = torch.tensor(prompts)
        with torch.inference_mode():
            answers = model.generate(ids, attention_mask=torch.ones_like(ids), min_new_tokens=OUTPUT)
        return int(answers[:, INPUT:].numel())

    return run


def generate_batch_round(shape: dict[str, Any]) -> Round:
    """``transformers.generate_batch``, its continuous batching over a paged cache.

    The manager with its cache is kept from call to call, as a server would; what it does in every call counts.
    """
    import logging

    from transformers import ContinuousBatchingConfig

    logging.getLogger("ContinuousBatchingLogger").setLevel(logging.ERROR)
    model = _transformers_model(shape)
    config = ContinuousBatchingConfig(max_memory_percent=CACHE_SHARE)

    def run(prompts: Prompts) -> int:
        answers = model.generate_batch(prompts, continuous_batching_config=config, persistent_manager=True)
        return sum(len(answer.generated_tokens) for answer in answers.values())

    return run


SYSTEMS: dict[str, Callable[[dict[str, Any]], Round]] = {
    "optimized": lambda shape: engine_round("optimized", shape),
    "reference": lambda shape: engine_round("reference", shape),
    "generate": generate_round,
    "generate_batch": generate_batch_round,
}


class Worker:
    """One system's process."""

    def __init__(self, name: str, shape: str) -> None:
        command = [sys.executable, "-m", "tests.benchmarks.systems", name, shape]
        self._name = name
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def seconds(self, count: int, seed: int) -> float:
        """How long so many requests took; the same count and seed give the same prompts to every system."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(f"{count} {seed}\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"{self._name} has ended")
        answer = json.loads(line)
        if answer["tokens"] != count * OUTPUT:
            raise SystemExit(f"{self._name} answered with {answer['tokens']} tokens instead of {count * OUTPUT}")
        seconds: float = answer["seconds"]
        return seconds

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def serve(name: str, shape: dict[str, Any]) -> None:
    """Be the worker."""
    replies, sys.stdout = sys.stdout, sys.stderr  # whatever a library prints is no reply
    run = SYSTEMS[name](shape)
    for line in sys.stdin:
        count, seed = map(int, line.split())
        draw = random.Random(seed)
        prompts = [draw.choices(range(shape["vocab_size"]), k=INPUT) for _ in range(count)]
        began = time.perf_counter()
        num_tokens = run(prompts)
        seconds = time.perf_counter() - began
        print(json.dumps({"seconds": seconds, "tokens": num_tokens}), file=replies, flush=True)


if __name__ == "__main__":
    serve(sys.argv[1], SHAPES[sys.argv[2]])
