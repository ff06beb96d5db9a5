"""Tiny models of every family, drawn by Hypothesis, as transformers builds and saves them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
import transformers
from hypothesis import strategies as st

VOCAB = 97
CONTEXT = 80  # max_position_embeddings; sequences in the tests are longer where scaling allows it
FAMILIES = {
    "llama": "Llama",
    "mistral": "Mistral",
    "qwen2": "Qwen2",
    "qwen3": "Qwen3",
    "qwen3_moe": "Qwen3Moe",
    "mixtral": "Mixtral",
    "gemma2": "Gemma2",
    "gemma3": "Gemma3",
    "phi3": "Phi3",
    "granite": "Granite",
    "olmo2": "Olmo2",
}

windows = st.sampled_from([1, 2, 7, 16, 33])
bools = st.booleans()


@st.composite
def ropes(draw: st.DrawFn, head_dim: int) -> dict[str, Any]:
    """RoPE parameters in transformers-5 style, every type that all families understand."""
    kind = draw(st.sampled_from(["default", "linear", "dynamic", "llama3", "yarn"]))
    rope: dict[str, Any] = {"rope_type": kind, "rope_theta": draw(st.sampled_from([100.0, 10000.0, 500000.0]))}
    if kind != "default":
        rope["factor"] = draw(st.sampled_from([2.0, 4.0, 8.0]))
    if kind == "llama3":
        rope |= {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
    if kind in ("llama3", "yarn"):
        rope["original_max_position_embeddings"] = draw(st.sampled_from([16, 32]))
    if kind == "yarn":
        rope |= draw(
            st.sampled_from(
                [
                    {},
                    {"beta_fast": 4.0, "beta_slow": 0.5},
                    {"attention_factor": 0.8},
                    {"mscale": 0.7, "mscale_all_dim": 1.3},
                    {"truncate": False, "beta_fast": 3.0},
                ]
            )
        )
    return rope


@st.composite
def configs(draw: st.DrawFn, family: str) -> dict[str, Any]:
    """Arguments of the family's configuration class."""
    kv_heads = draw(st.sampled_from([1, 2, 3]))
    heads = kv_heads * draw(st.sampled_from([1, 2, 4]))
    head_dim = draw(st.sampled_from([4, 8, 12] if heads > 2 else [12, 16]))
    layers = draw(st.sampled_from([1, 2, 3]))
    hidden = heads * head_dim
    config: dict[str, Any] = {
        "vocab_size": VOCAB,
        "hidden_size": hidden,
        "intermediate_size": draw(st.sampled_from([16, 40])),
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "max_position_embeddings": CONTEXT,
        "tie_word_embeddings": draw(bools),
        "rms_norm_eps": draw(st.sampled_from([1e-6, 1e-5, 1e-2])),
        "rope_parameters": draw(ropes(head_dim)),
        "eos_token_id": None,
        "bos_token_id": None,
        "pad_token_id": None,
    }
    if family in ("llama", "mistral", "qwen3", "qwen3_moe", "mixtral", "gemma2", "gemma3"):
        # a head size that hidden_size and num_attention_heads don't imply
        config["head_dim"] = draw(st.sampled_from([head_dim, head_dim + 4]))
    if family in ("llama", "qwen3", "qwen3_moe", "gemma2", "gemma3", "granite", "olmo2"):
        config["attention_bias"] = draw(bools)
    if family in ("llama", "granite"):
        config["mlp_bias"] = draw(bools)
    if family in ("mistral", "mixtral", "phi3"):
        config["sliding_window"] = draw(st.none() | windows)
    if family in ("qwen2", "qwen3"):
        config |= {"use_sliding_window": draw(bools), "sliding_window": draw(windows)}
        config["max_window_layers"] = draw(st.integers(0, layers))
    if family in ("gemma2", "gemma3"):
        config |= {"sliding_window": draw(windows), "query_pre_attn_scalar": draw(st.sampled_from([4, 24]))}
        config["final_logit_softcapping"] = draw(st.sampled_from([None, 5.0, 30.0]))
        if draw(bools):
            kinds = st.sampled_from(["sliding_attention", "full_attention"])
            config["layer_types"] = draw(st.lists(kinds, min_size=layers, max_size=layers))
    if family == "gemma2":
        config["attn_logit_softcapping"] = draw(st.sampled_from([None, 2.0, 50.0]))
    if family == "gemma3":
        local = {"rope_type": "default", "rope_theta": draw(st.sampled_from([50.0, 10000.0]))}
        config["rope_parameters"].pop("truncate", None)  # transformers does not find it in a nested object
        config["rope_parameters"] = {"full_attention": config["rope_parameters"], "sliding_attention": local}
        if "layer_types" not in config:
            config["sliding_window_pattern"] = draw(st.sampled_from([1, 2, 3]))
    if family in ("mixtral", "qwen3_moe"):
        experts = draw(st.sampled_from([2, 5]))
        config["num_local_experts" if family == "mixtral" else "num_experts"] = experts
        config["num_experts_per_tok"] = draw(st.integers(1, experts))
    if family == "qwen3_moe":
        config |= {"moe_intermediate_size": 24, "norm_topk_prob": draw(bools)}
        config |= {"use_sliding_window": draw(bools), "sliding_window": draw(windows)}
        config["decoder_sparse_step"] = draw(st.sampled_from([1, 2]))
        config["mlp_only_layers"] = draw(st.lists(st.integers(0, layers - 1), max_size=1))
    if family == "granite":
        config |= {"embedding_multiplier": 3.0, "residual_multiplier": 0.4, "logits_scaling": 1.7}
        config["attention_multiplier"] = draw(st.sampled_from([0.1, 0.5]))
    if family == "phi3":
        config["rope_parameters"] = draw(phi3_ropes(head_dim))
        if config["rope_parameters"]["rope_type"] == "longrope":
            config["original_max_position_embeddings"] = 20
    return config


@st.composite
def phi3_ropes(draw: st.DrawFn, head_dim: int) -> dict[str, Any]:
    part = draw(st.sampled_from([0.5, 1.0]))
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": part}
    if draw(bools):
        pairs = int(head_dim * part) // 2
        factors = st.lists(st.sampled_from([1.0, 1.5, 4.0]), min_size=pairs, max_size=pairs)
        rope |= {"rope_type": "longrope", "short_factor": draw(factors), "long_factor": draw(factors)}
    return rope


def build(family: str, config: dict[str, Any], seed: int) -> Any:
    """The transformers model with weights large enough that every part of it matters."""
    name = FAMILIES[family]
    config_class = getattr(transformers, f"{name}TextConfig" if family == "gemma3" else f"{name}Config")
    model_config = config_class(**config, attn_implementation="eager")
    model = getattr(transformers, f"{name}ForCausalLM")(model_config).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                low = -0.5 if family.startswith("gemma") else 0.5  # Gemma adds one to a norm's weight
                parameter.uniform_(low, low + 1, generator=generator)
            else:
                parameter.normal_(std=1.2 / math.sqrt(parameter.shape[-1]), generator=generator)
    return model


def save(model: Any, directory: Path) -> None:
    model.save_pretrained(directory)
