"""What others reach on the same GPU, shapes and prompts; a run does not depend on whether they work."""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F

from tests.gpu import measure_engine, measure_kernels
from tests.gpu.parts import Figure, Setting, Task
from tests.gpu.timing import seconds


def peers(setting: Setting) -> Iterator[Task]:
    """PyTorch's attention, and the continuous batching of transformers."""
    yield Task("torch attention", partial(attention, setting))
    for name, shape in (
        [("tiny", measure_engine.TINY)]
        if setting.dry
        else [("0.6b", measure_engine.QWEN_06B), ("8b", measure_engine.LLAMA_8B)]
    ):
        yield Task(f"generate_batch {name}", partial(generate_batch, name, shape, setting), 0 if setting.dry else 20)


@torch.inference_mode()
def _attention_seconds(s: measure_kernels.Sizes, setting: Setting) -> float:
    q, k, v = (
        torch.randn(1, heads, s.prompt, s.head_size, dtype=torch.bfloat16, device=setting.device)
        for heads in (s.heads, s.kv_heads, s.kv_heads)
    )
    return seconds([partial(F.scaled_dot_product_attention, q, k, v, is_causal=True, enable_gqa=True)])


def attention(setting: Setting) -> Iterator[Figure]:
    """The prefill of ``kernels``, over keys and values that lie in one piece."""
    s = measure_kernels.DRY if setting.dry else measure_kernels.FULL
    took = _attention_seconds(s, setting)
    operations = 2 * s.heads * s.head_size * s.prompt * (s.prompt + 1)
    rate = setting.share("flop_per_s", operations / took)
    yield f"torch attention prefill {s.prompt}", {"us": round(took * 1e6, 2), **rate}


def generate_batch(name: str, shape: dict[str, Any], setting: Setting) -> Iterator[Figure]:
    """The second of two calls, whose manager stays: what is set up once does not count."""
    from transformers import AutoConfig, AutoModelForCausalLM, ContinuousBatchingConfig, GenerationConfig

    load = measure_engine.DRY if setting.dry else measure_engine.FULL
    fields = {key: value for key, value in shape.items() if key not in ("model_type", "architectures", "dtype")}
    with torch.device(setting.device):
        config = AutoConfig.for_model(shape["model_type"], **fields)
        model = AutoModelForCausalLM.from_config(config).to(torch.bfloat16).eval()
    options = {
        "generation_config": GenerationConfig(
            max_new_tokens=load.output, do_sample=False, eos_token_id=-1, pad_token_id=0, use_cache=True
        ),
        "continuous_batching_config": ContinuousBatchingConfig(max_memory_percent=0.2 if setting.dry else 0.7),
        "persistent_manager": True,
    }
    for batch in reversed(load.batches):  # what it sizes by its first call is sized by the largest
        for seed in (0, 1):
            inputs = measure_engine.prompts(batch, seed, load, shape["vocab_size"])
            began = time.perf_counter()
            answers = model.generate_batch(inputs=inputs, **options)
            total = time.perf_counter() - began
        tokens = sum(len(given.generated_tokens) for given in answers.values())
        rate = round(tokens / total, 1)
        yield f"generate_batch {name}, batch {batch}", {"output_tokens": tokens, "output_tokens_per_s": rate}
    model.destroy_cached_continuous_batching_manager()  # and its cache, which else stays
