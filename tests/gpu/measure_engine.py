"""How fast the engine decodes a model of 8 billion random weights, beside what the GPU can do at most."""

from __future__ import annotations

import json
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from optimized import engine as engine_module
from optimized.engine import OptimizedEngine
from tandem.config import EngineConfig, ModelOptions, resolve
from tandem.engine import EngineRequest
from tandem.sampling_params import SamplingParams
from tests.gpu.measure_kernels import Figures

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
BATCHES = (1, 32)
PROMPT, OUTPUT = 1024, 128  # tokens of each request


def engines(limits: Figures) -> Figures:
    """Both ways to launch, each at all batch sizes, and the roofline of a decode step."""
    figures: Figures = {}
    for name, enforce_eager in (("graphs", False), ("eager", True)):
        with tempfile.TemporaryDirectory() as directory:
            Path(directory, "config.json").write_text(json.dumps(LLAMA_8B), encoding="utf-8")
            options = ModelOptions(
                model=directory, max_model_len=2 * PROMPT, max_num_seqs=max(BATCHES), enforce_eager=enforce_eager
            )
            config = resolve(options).engine
        began = time.perf_counter()
        with mock.patch.object(engine_module, "iterate_weights", random_weights):
            engine = OptimizedEngine(config)
        figures[f"{name} start"] = {"seconds": round(time.perf_counter() - began, 1)}
        for batch in BATCHES:
            answer(engine, batch, 0)
            first, steps, total = answer(engine, batch, 1)
            step = statistics.median(steps)
            least = roofline(config, engine.info.num_parameters, batch, limits)
            figures[f"{name} batch {batch}"] = {
                "ms_to_first_tokens": round(first * 1000, 2),
                "ms_of_decode_step": round(step * 1000, 3),
                "ms_of_roofline": round(least * 1000, 3),
                "of_roofline": round(least / step, 3),
                "output_tokens_per_s": round(batch * OUTPUT / total, 1),
            }
        engine.close()
        del engine
    return figures


def random_weights(
    config: EngineConfig, device: torch.device, on_progress: Callable[[float], None] | None
) -> Iterator[tuple[str, torch.Tensor]]:
    """Drawn on the GPU: eight billion numbers from the CPU's generator take minutes."""
    for name, shape in config.model.tensor_shapes().items():
        x = torch.empty(shape, dtype=torch.bfloat16, device=device)
        yield name, x.fill_(1) if name.endswith("norm.weight") else x.normal_(std=0.02)


def roofline(config: EngineConfig, num_parameters: int, batch: int, limits: Figures) -> float:
    """Seconds that a decode step takes at least: weights or arithmetic, whichever is slower, then keys and values."""
    model, bandwidth = config.model, limits["copy_bytes_per_s"]
    used = num_parameters - model.vocab_size * model.hidden_size  # of the embedding only some rows are read
    of_token = 2 * model.num_layers * model.num_kv_heads * model.head_dim * 2
    context = PROMPT + OUTPUT // 2
    products = max(2 * used / bandwidth, 2 * used * batch / limits["bf16_flop_per_s"])
    return products + batch * context * of_token / bandwidth


def prompts(batch: int, seed: int) -> list[list[int]]:
    draw = random.Random(seed * 1000 + batch)
    return [draw.choices(range(LLAMA_8B["vocab_size"]), k=PROMPT) for _ in range(batch)]


def answer(engine: OptimizedEngine, batch: int, seed: int) -> tuple[float, list[float], float]:
    """Seconds to the first tokens of all, of each step of decodes alone, and to the end."""
    sampling = SamplingParams(temperature=0, ignore_eos=True)
    for i, prompt in enumerate(prompts(batch, seed)):
        engine.add(
            EngineRequest(request_id=str(i), prompt_token_ids=prompt, sampling=sampling, max_tokens=OUTPUT, seed=0)
        )
    began = last = time.perf_counter()
    first, started, steps = 0.0, set[str](), []
    while engine.has_unfinished:
        outputs = engine.step()
        now = time.perf_counter()
        if first:
            steps.append(now - last)
        started.update(output.request_id for output in outputs)
        if not first and len(started) == batch:
            first = now - began
        last = now
    return first, steps, last - began


def peers(_: Figures) -> Figures:
    """``generate_batch`` of transformers on the same shape and prompts."""
    try:
        from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM
    except ImportError as error:
        return {"skipped": str(error)}
    if not hasattr(LlamaForCausalLM, "generate_batch"):
        return {"skipped": "this version has no generate_batch"}
    with torch.device("cuda"):
        model = LlamaForCausalLM(LlamaConfig(**LLAMA_8B)).to(torch.bfloat16).eval()
    settings = GenerationConfig(
        max_new_tokens=OUTPUT, do_sample=False, eos_token_id=-1, pad_token_id=0, use_cache=True
    )
    figures: Figures = {}
    for batch in BATCHES:
        for seed in (0, 1):  # the first compiles and allocates
            began = time.perf_counter()
            answers = model.generate_batch(inputs=prompts(batch, seed), generation_config=settings)
            torch.cuda.synchronize()
            total = time.perf_counter() - began
        tokens = sum(len(given.generated_tokens) for given in answers.values())
        figures[f"batch {batch}"] = {"output_tokens": tokens, "output_tokens_per_s": round(tokens / total, 1)}
    return figures
