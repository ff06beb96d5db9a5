"""How far an engine's process grows: printed as JSON by a program of its own, whose memory nobody else has used.

``python -m tests.equivalence.memory_law shared`` sends 64 requests that share a long beginning; ``… distinct`` a few
with nothing in common, more than the cache holds.
"""

from __future__ import annotations

import json
import random
import sys
import tempfile
from pathlib import Path
from typing import Any

import msgspec
import psutil

from optimized import OptimizedEngine
from optimized.runner.memory import budget
from tandem.config import ModelOptions, SchedulerOptions, resolve
from tandem.engine import EngineRequest
from tandem.sampling_params import SamplingParams

SHAPE: dict[str, Any] = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 256,
    "intermediate_size": 256,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "head_dim": 64,
    "vocab_size": 2048,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-5,
    "dtype": "bfloat16",
}
CACHE_BYTES = 128 << 20
SHARED = 3984
NUM_REQUESTS = {"shared": 64, "distinct": 10}


def main(kind: str) -> None:
    import torch

    with tempfile.TemporaryDirectory() as directory:
        (Path(directory) / "config.json").write_text(json.dumps(SHAPE))
        config = resolve(ModelOptions(model=directory, load_format="dummy")).engine
    limits = SchedulerOptions(kv_cache_memory_bytes=CACHE_BYTES, max_num_batched_tokens=1024)
    config = msgspec.structs.replace(config, scheduler=limits)
    engine = OptimizedEngine(config)
    process = psutil.Process()
    before = peak = process.memory_info().rss
    draw = random.Random(0)
    shared = draw.choices(range(SHAPE["vocab_size"]), k=SHARED)
    for i in range(NUM_REQUESTS[kind]):
        own = draw.choices(range(SHAPE["vocab_size"]), k=SHARED)
        engine.add(
            EngineRequest(
                request_id=str(i),
                prompt_token_ids=[*(shared if kind == "shared" else own), i],
                sampling=SamplingParams(temperature=i % 2, repetition_penalty=1 + i % 3 / 10),
                max_tokens=12,
                seed=i,
            )
        )
    usage = 0.0
    while engine.has_unfinished:
        engine.step()
        usage = max(usage, engine.stats.kv_cache_usage)
        peak = max(peak, process.memory_info().rss)
    room = budget(config, torch.device("cpu"))
    copies = 64 * SHARED * room.bytes_per_token
    figures = {"growth": peak - before, "cache": room.cache_bytes, "steps": room.step_bytes, "copies": copies}
    print(json.dumps(figures | {"usage": usage}))


if __name__ == "__main__":
    main(sys.argv[1])
