"""Fusing loses nothing."""

from __future__ import annotations

import random

import pytest
import torch

from optimized.layers.weights import fuse, unfuse
from tandem.models.families import read_model_config
from tests.reference.families import FAMILIES, VOCAB


@pytest.mark.parametrize("family", FAMILIES)
def test_unfuse_is_the_inverse_of_fuse_in_any_order(family: str) -> None:
    raw = {"architectures": [f"{FAMILIES[family]}ForCausalLM"], "vocab_size": VOCAB, "hidden_size": 24}
    raw |= {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 20}
    raw |= {"max_position_embeddings": 64, "attention_bias": True, "num_experts": 3, "num_local_experts": 3}
    raw |= {"num_experts_per_tok": 2, "moe_intermediate_size": 12, "head_dim": 6, "sliding_window": 9}
    config = read_model_config(raw)
    tensors = {name: torch.randn(shape) for name, shape in config.tensor_shapes().items()}
    shuffled = random.Random(0).sample(list(tensors.items()), len(tensors))
    fused = fuse(config, shuffled)
    assert len(fused) <= len(tensors)
    back = dict(unfuse(config, fused))
    assert back.keys() == tensors.keys()
    assert all(torch.equal(back[name], tensors[name]) for name in tensors)
