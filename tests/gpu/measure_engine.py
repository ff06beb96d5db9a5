"""How fast the engine decodes models of random weights, beside what the GPU can do at most."""

from __future__ import annotations

import json
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch

from optimized.engine import OptimizedEngine
from optimized.kernels.native import Library
from optimized.runner import local
from optimized.runner.local import LocalRunner
from tandem.config import EngineConfig, ModelOptions, resolve
from tandem.engine import EngineRequest
from tandem.sampling_params import SamplingParams
from tests.gpu.parts import Figure, Setting, Task, Values

QWEN_06B: dict[str, Any] = {
    "model_type": "qwen3",
    "architectures": ["Qwen3ForCausalLM"],
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 151936,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000.0,
    "tie_word_embeddings": True,
    "bos_token_id": None,
    "eos_token_id": None,
    "dtype": "bfloat16",
}
LLAMA_8B: dict[str, Any] = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "tie_word_embeddings": False,
    "bos_token_id": None,
    "eos_token_id": None,
    "dtype": "bfloat16",
}
TINY: dict[str, Any] = LLAMA_8B | {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 512,
}
NO_GRAPHS, NO_OVERLAP = "eager", "no overlap"


class Load(NamedTuple):
    """What an engine is asked: so many requests at once, tokens of each."""

    batches: tuple[int, ...]
    prompt: int
    output: int


FULL, DRY = Load((1, 32, 128), 1024, 128), Load((1, 3), 12, 6)


class Run(NamedTuple):
    """Tokens and times of one load.

    Attributes:
        first: seconds until all have their first token.
        steps: seconds of each step of decodes alone.
        total: seconds.
        num_tokens: of all answers.
    """

    first: float
    steps: list[float]
    total: float
    num_tokens: int


class Compilations:
    """Counts what Triton compiles, or loads from its cache on disk, while it is entered: a step waits for either."""

    count = 0

    def __enter__(self) -> Compilations:
        from triton import knobs

        self._knob = mock.patch.object(knobs.compilation, "listener", self._note)
        self._knob.__enter__()
        return self

    def __exit__(self, *exception: Any) -> None:
        self._knob.__exit__(*exception)

    def _note(self, **_: Any) -> None:
        self.count += 1


def engine(setting: Setting) -> Iterator[Task]:
    """Both models as they are served, then what graphs and overlapping steps bring. Seconds are guesses, generous."""
    if setting.dry:
        for way in ("", NO_OVERLAP, NO_GRAPHS):
            yield Task(f"tiny {way}".strip(), partial(serve, "tiny", TINY, way, setting))
        return
    for name, shape, way, seconds in (
        ("0.6b", QWEN_06B, "", 40.0),
        ("8b", LLAMA_8B, "", 60.0),
        ("0.6b", QWEN_06B, NO_OVERLAP, 30.0),
        ("0.6b", QWEN_06B, NO_GRAPHS, 40.0),
        ("8b", LLAMA_8B, NO_OVERLAP, 50.0),
    ):
        yield Task(f"{name} {way}".strip(), partial(serve, name, shape, way, setting), seconds)


def serve(name: str, shape: dict[str, Any], way: str, setting: Setting) -> Iterator[Figure]:
    """Start an engine, and give it each batch: once to warm up, and once measured."""
    load = DRY if setting.dry else FULL
    label = f"{name} {way}".strip()
    began = time.perf_counter()
    config = configuration(shape, load, way)
    with mock.patch.object(local, "iterate_weights", random_weights):
        made = OptimizedEngine(config, runner=create_runner(config, way, setting))
    try:
        yield f"{label}, start", {"seconds": round(time.perf_counter() - began, 1), "way": way or "as served"}
        with Compilations() as compilations:
            for batch in load.batches:
                answer(made, batch, 0, load)
                run = answer(made, batch, 1, load)
                yield f"{label}, batch {batch}", figures(run, config, made.info.num_parameters, batch, setting)
        yield f"{label}, compiled while serving", {"kernels": compilations.count}
    finally:
        made.close()


def configuration(shape: dict[str, Any], load: Load, way: str) -> EngineConfig:
    with tempfile.TemporaryDirectory() as directory:
        Path(directory, "config.json").write_text(json.dumps(shape), encoding="utf-8")
        options = ModelOptions(
            model=directory,
            max_model_len=2 * (load.prompt + load.output),
            max_num_seqs=max(load.batches),
            enforce_eager=way == NO_GRAPHS,
        )
        return resolve(options).engine


def create_runner(config: EngineConfig, way: str, setting: Setting) -> LocalRunner:
    """It begins a step before the one before is collected, unless it must not; on a CPU laid out as on a GPU."""
    ahead = 0 if way == NO_OVERLAP else 1
    if not setting.dry:
        return LocalRunner(config, num_steps_ahead=ahead)
    capture = None if way == NO_GRAPHS else lambda forward: forward
    return LocalRunner(config, num_steps_ahead=ahead, capture=capture, library=Library())


def random_weights(
    config: EngineConfig, device: torch.device, on_progress: Callable[[float], None] | None
) -> Iterator[tuple[str, torch.Tensor]]:
    """Drawn on the GPU: eight billion numbers from the CPU's generator take minutes."""
    for name, shape in config.model.tensor_shapes().items():
        x = torch.empty(shape, dtype=torch.bfloat16, device=device)
        yield name, x.fill_(1) if name.endswith("norm.weight") else x.normal_(std=0.02)


def figures(run: Run, config: EngineConfig, num_parameters: int, batch: int, setting: Setting) -> Values:
    step = statistics.median(run.steps)
    values = {
        "ms_to_first_tokens": round(run.first * 1000, 2),
        "ms_of_decode_step": round(step * 1000, 3),
        "output_tokens_per_s": round(run.num_tokens / run.total, 1),
    }
    if setting.limits:
        least = roofline(config, num_parameters, batch, setting)
        values |= {"ms_of_roofline": round(least * 1000, 3), "of_roofline": round(least / step, 3)}
    return values


def roofline(config: EngineConfig, num_parameters: int, batch: int, setting: Setting) -> float:
    """Seconds that a decode step takes at least: weights or arithmetic, whichever is slower, then keys and values."""
    model, bandwidth = config.model, setting.limits["bytes_per_s"]
    load = DRY if setting.dry else FULL
    embedding = 0 if model.tie_word_embeddings else model.vocab_size * model.hidden_size  # of which few rows are read
    used = num_parameters - embedding
    of_token = 2 * model.num_layers * model.num_kv_heads * model.head_dim * 2
    context = load.prompt + load.output // 2
    products = max(2 * used / bandwidth, 2 * used * batch / setting.limits["flop_per_s"])
    return products + batch * context * of_token / bandwidth


def prompts(batch: int, seed: int, load: Load, vocab_size: int) -> list[list[int]]:
    draw = random.Random(seed * 1000 + batch)
    return [draw.choices(range(vocab_size), k=load.prompt) for _ in range(batch)]


def answer(engine: OptimizedEngine, batch: int, seed: int, load: Load) -> Run:
    """Greedy answers to so many requests that arrive at once."""
    sampling = SamplingParams(temperature=0, ignore_eos=True)
    for i, prompt in enumerate(prompts(batch, seed, load, engine.info.vocab_size)):
        engine.add(
            EngineRequest(
                request_id=str(i), prompt_token_ids=prompt, sampling=sampling, max_tokens=load.output, seed=0
            )
        )
    began = last = time.perf_counter()
    first, started, num_tokens, steps = 0.0, set[str](), 0, []
    while engine.has_unfinished:
        outputs = engine.step()
        now = time.perf_counter()
        if first:
            steps.append(now - last)
        started.update(output.request_id for output in outputs)
        num_tokens += sum(len(output.new_token_ids) for output in outputs)
        if not first and len(started) == batch:
            first = now - began
        last = now
    return Run(first, steps, last - began, num_tokens)
