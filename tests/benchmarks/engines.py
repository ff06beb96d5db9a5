"""The engines against each other and against transformers, on random weights: ``python -m tests.benchmarks.engines``.

Prints a table and, as the last line, JSON. Rounds of all systems are interleaved and medians taken, so that a machine
that slows down slows all of them down. Reading bandwidth is measured in the same run.
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from tandem.config import ModelOptions, resolve
from tandem.engine import Engine, EngineRequest
from tandem.registry import create_engine
from tandem.sampling_params import SamplingParams

LLAMA_88M = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 768,
    "intermediate_size": 2048,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "num_key_value_heads": 4,
    "vocab_size": 8192,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-5,
    "dtype": "bfloat16",
}
QWEN_05B = {
    "model_type": "qwen2",
    "architectures": ["Qwen2ForCausalLM"],
    "hidden_size": 896,
    "intermediate_size": 4864,
    "num_hidden_layers": 24,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
    "vocab_size": 151936,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000.0,
    "tie_word_embeddings": True,
    "dtype": "bfloat16",
}
SHAPES = {"88m": LLAMA_88M, "0.5b": QWEN_05B}
INPUT, OUTPUT = 128, 64

Round = Callable[[int], float]


def engine_round(engine: Engine) -> Round:
    """Seconds until so many requests, sent at once, are answered."""

    def run(count: int) -> float:
        draw = random.Random(time.monotonic_ns())
        sampling = SamplingParams(temperature=0, ignore_eos=True)
        began = time.perf_counter()
        for i in range(count):
            prompt = draw.choices(range(engine.info.vocab_size), k=INPUT)
            engine.add(
                EngineRequest(
                    request_id=str(i), prompt_token_ids=prompt, sampling=sampling, max_tokens=OUTPUT, seed=0
                )
            )
        while engine.has_unfinished:
            engine.step()
        return time.perf_counter() - began

    return run


def transformers_round(shape: dict[str, Any]) -> Round:
    """The same with ``transformers.generate`` on one batch."""
    from transformers import AutoConfig, AutoModelForCausalLM

    fields = {k: v for k, v in shape.items() if k not in ("model_type", "dtype")}
    model: Any = AutoModelForCausalLM.from_config(AutoConfig.for_model(shape["model_type"], **fields))
    model = model.to(torch.bfloat16).eval()
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0

    def run(count: int) -> float:
        ids = torch.randint(0, shape["vocab_size"], (count, INPUT))
        began = time.perf_counter()
        with torch.inference_mode():
            model.generate(ids, max_new_tokens=OUTPUT, min_new_tokens=OUTPUT, do_sample=False)
        return time.perf_counter() - began

    return run


def read_bandwidth() -> float:
    """Bytes in a second that a sum over memory much larger than the caches reads."""
    x = torch.ones(1 << 28, dtype=torch.float32)  # 1 GiB
    seconds = []
    for _ in range(5):
        began = time.perf_counter()
        x.sum()
        seconds.append(time.perf_counter() - began)
    return x.numel() * x.itemsize / min(seconds)


def measure(systems: dict[str, Round], counts: list[int], rounds: int) -> dict[str, dict[int, float]]:
    """Median output tokens in a second, by system and number of requests at once."""
    seconds: dict[str, dict[int, list[float]]] = {name: {count: [] for count in counts} for name in systems}
    for number in range(rounds + 1):
        for count in counts:
            for name, run in systems.items():
                took = run(count)
                if number:  # the first round warms up
                    seconds[name][count].append(took)
    return {
        name: {count: round(count * OUTPUT / statistics.median(s), 1) for count, s in by_count.items()}
        for name, by_count in seconds.items()
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", choices=SHAPES, default="88m")
    parser.add_argument("--counts", type=int, nargs="+", default=[1, 16, 64])
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--systems", nargs="+", default=["optimized", "reference", "transformers"])
    options = parser.parse_args()
    shape = SHAPES[options.shape]
    systems: dict[str, Round] = {}
    with tempfile.TemporaryDirectory() as directory:
        (Path(directory) / "config.json").write_text(json.dumps(shape))
        for name in options.systems:
            if name == "transformers":
                systems[name] = transformers_round(shape)
                continue
            model = resolve(ModelOptions(model=directory, backend=name, load_format="dummy"))
            systems[name] = engine_round(create_engine(model.engine))
    figures = measure(systems, options.counts, options.rounds)
    print(f"output tokens/s, {options.shape}, {INPUT} in, {OUTPUT} out")
    print(f"{'at once':>8} " + " ".join(f"{name:>14}" for name in figures))
    for count in options.counts:
        print(f"{count:>8} " + " ".join(f"{figures[name][count]:>14.1f}" for name in figures))
    machine = {"torch": torch.__version__, "threads": torch.get_num_threads(), "machine": platform.processor()}
    bandwidth = round(read_bandwidth() / 1e9, 1)
    print(
        json.dumps({"shape": options.shape, "output_tokens_per_second": figures, "read_gb_s": bandwidth, **machine})
    )


if __name__ == "__main__":
    main()
