"""What ``ModelConfig`` reads out of ``config.json``: published files, both styles, defaults and errors."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from tandem.errors import CheckpointError
from tandem.models.families import FAMILIES, MODEL_TYPES, read_model_config
from tandem.models.model_config import SANDWICH_NORMS, ModelConfig

TINY: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 100,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}

# the keys that matter of files published on the hub
LLAMA_3_1 = {
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "eos_token_id": [128001, 128008, 128009],
    "hidden_act": "silu",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "max_position_embeddings": 131072,
    "model_type": "llama",
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-05,
    "rope_scaling": {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    },
    "rope_theta": 500000.0,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "vocab_size": 128256,
}
QWEN_2_5 = {
    "architectures": ["Qwen2ForCausalLM"],
    "eos_token_id": 151645,
    "hidden_act": "silu",
    "hidden_size": 896,
    "intermediate_size": 4864,
    "max_position_embeddings": 32768,
    "max_window_layers": 21,
    "model_type": "qwen2",
    "num_attention_heads": 14,
    "num_hidden_layers": 24,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000.0,
    "sliding_window": 32768,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "use_sliding_window": False,
    "vocab_size": 151936,
}
GEMMA_3 = {
    "architectures": ["Gemma3ForCausalLM"],
    "attention_bias": False,
    "attn_logit_softcapping": None,
    "eos_token_id": [1, 106],
    "final_logit_softcapping": None,
    "head_dim": 256,
    "hidden_activation": "gelu_pytorch_tanh",
    "hidden_size": 1152,
    "intermediate_size": 6912,
    "max_position_embeddings": 32768,
    "model_type": "gemma3_text",
    "num_attention_heads": 4,
    "num_hidden_layers": 26,
    "num_key_value_heads": 1,
    "query_pre_attn_scalar": 256,
    "rms_norm_eps": 1e-06,
    "rope_local_base_freq": 10000,
    "rope_scaling": None,
    "rope_theta": 1000000,
    "sliding_window": 512,
    "sliding_window_pattern": 6,
    "torch_dtype": "bfloat16",
    "vocab_size": 262144,
}
PHI_4_MINI = {
    "architectures": ["Phi3ForCausalLM"],
    "eos_token_id": 199999,
    "hidden_act": "silu",
    "hidden_size": 3072,
    "intermediate_size": 8192,
    "max_position_embeddings": 131072,
    "model_type": "phi3",
    "num_attention_heads": 24,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "original_max_position_embeddings": 4096,
    "partial_rotary_factor": 0.75,
    "rms_norm_eps": 1e-05,
    "rope_scaling": {"long_factor": [1.5] * 48, "short_factor": [1] * 48, "type": "longrope"},
    "rope_theta": 10000.0,
    "sliding_window": 262144,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "vocab_size": 200064,
}


def read(**changes: Any) -> ModelConfig:
    return read_model_config({key: value for key, value in (TINY | changes).items() if value is not ...})


def test_llama_3_1() -> None:
    c = read_model_config(LLAMA_3_1)
    assert (c.dtype, c.eos_token_ids, c.max_model_len) == ("bfloat16", (128001, 128008, 128009), 131072)
    assert (c.head_dim, c.num_kv_heads, c.windows[0], c.attention_scale) == (128, 8, None, 128**-0.5)
    assert (c.rope.type, c.rope.theta, c.rope.factor, c.rope.original_max_len) == ("llama3", 500000.0, 8.0, 8192)
    assert c.tensor_shapes()["model.layers.31.self_attn.k_proj.weight"] == (1024, 4096)
    assert sum(rows * (columns or [1])[0] for rows, *columns in c.tensor_shapes().values()) == 8_030_261_248


def test_qwen_2_5() -> None:
    c = read_model_config(QWEN_2_5)
    assert c.qkv_bias and not c.o_bias and set(c.windows) == {None} and c.eos_token_ids == (151645,)
    shapes = c.tensor_shapes()
    assert shapes["model.layers.0.self_attn.q_proj.bias"] == (896,) and "lm_head.weight" not in shapes
    assert sum(rows * (columns or [1])[0] for rows, *columns in shapes.values()) == 494_032_768


def test_gemma_3() -> None:
    c = read_model_config(GEMMA_3)
    assert c.windows == (*[512] * 5, None, *[512] * 5, None, *[512] * 5, None, *[512] * 5, None, 512, 512)
    assert c.rope_of(0).theta == 10000.0 and c.rope_of(5).theta == 1000000.0
    assert c.tie_word_embeddings and c.norm_names == SANDWICH_NORMS and c.activation == "gelu_tanh"
    assert sum(rows * (columns or [1])[0] for rows, *columns in c.tensor_shapes().values()) == 999_885_952


def test_gemma_3_with_scaling_of_the_global_layers() -> None:
    c = read_model_config(GEMMA_3 | {"rope_scaling": {"factor": 8.0, "rope_type": "linear"}})
    assert (c.rope.type, c.rope.factor, c.local_rope and c.local_rope.type) == ("linear", 8.0, "default")
    assert c.max_model_len == 32768


def test_phi_4_mini() -> None:
    c = read_model_config(PHI_4_MINI)
    assert (c.rope.type, c.rope.rotary_dim, c.rope.original_max_len, c.rope.factor) == ("longrope", 96, 4096, 32.0)
    assert c.max_model_len == 131072 and c.tensor_shapes()["model.layers.0.self_attn.qkv_proj.weight"] == (5120, 3072)


def test_both_styles_read_the_same() -> None:
    scaling = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
    old = read(rope_theta=5e5, rope_scaling=scaling | {"type": "yarn"}, torch_dtype="float16")
    new = read(rope_parameters=scaling | {"rope_theta": 5e5}, dtype="float16")
    assert old == new and new.dtype == "float16"
    assert read(rope_scaling={"type": "linear", "factor": 2}) == read(
        rope_scaling={"rope_type": "linear", "factor": 2}
    )


@pytest.mark.parametrize(
    ("rope", "expected"),
    [
        ({}, 128),
        ({"rope_type": "default"}, 128),
        ({"rope_type": "linear", "factor": 4.0}, 512),
        ({"rope_type": "dynamic", "factor": 2.0}, 256),
        ({"rope_type": "llama3", "factor": 8, "low_freq_factor": 1, "high_freq_factor": 4}, 128),
        # the file's length is the original one, or the extended one
        ({"rope_type": "yarn", "factor": 4.0}, 512),
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}, 512),
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}, 128),
    ],
)
def test_context(rope: dict[str, Any], expected: int) -> None:
    assert read(rope_parameters=rope).max_model_len == expected


def test_windows() -> None:
    qwen = {"architectures": ["Qwen2ForCausalLM"], "sliding_window": 8, "max_window_layers": 3}
    assert read(**qwen).windows == (None,) * 4
    assert read(**qwen, use_sliding_window=True).windows == (None, None, None, 8)
    kinds = ["sliding_attention", "full_attention"] * 2
    assert read(**qwen, use_sliding_window=True, layer_types=kinds).windows == (8, None, 8, None)
    assert read(architectures=["MistralForCausalLM"]).windows == (4096,) * 4
    assert read(architectures=["MistralForCausalLM"], sliding_window=None).windows == (None,) * 4
    assert read(architectures=["Gemma2ForCausalLM"], sliding_window=8).windows == (8, None, 8, None)
    assert read(sliding_window=8).windows == (None,) * 4  # Llama has none, whatever the file says


def test_gemma_2_caps() -> None:
    gemma = {"architectures": ["Gemma2ForCausalLM"]}
    assert (read(**gemma).attention_softcap, read(**gemma).logit_softcap) == (50.0, 30.0)
    assert read(**gemma, attn_logit_softcapping=None).attention_softcap is None


def test_sparse_layers() -> None:
    moe = {"architectures": ["Qwen3MoeForCausalLM"], "num_experts": 4, "num_experts_per_tok": 2}
    c = read(**moe, moe_intermediate_size=16, decoder_sparse_step=2, mlp_only_layers=[3])
    assert c.sparse_layers == (False, True, False, False)
    shapes = c.tensor_shapes()
    assert shapes["model.layers.1.mlp.experts.3.down_proj.weight"] == (32, 16)
    assert shapes["model.layers.0.mlp.down_proj.weight"] == (32, 48)
    mixtral = read(architectures=["MixtralForCausalLM"], num_local_experts=2).tensor_shapes()
    assert mixtral["model.layers.0.block_sparse_moe.experts.1.w2.weight"] == (32, 48)


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_every_family_travels_as_msgpack(model_type: str) -> None:
    moe = {"num_experts_per_tok": 2, "moe_intermediate_size": 8}
    c = read(architectures=..., model_type=model_type, **moe)
    assert c.architecture == MODEL_TYPES[model_type] and set(MODEL_TYPES.values()) == set(FAMILIES)
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(c), type=ModelConfig) == c
    assert hash(c) == hash(msgspec.structs.replace(c))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architectures": ["BertModel"]}, "unknown architecture BertModel; known are Gemma2ForCausalLM, "),
        ({"architectures": ..., "model_type": "bert"}, "unknown architecture model_type 'bert'; known are "),
        ({"architectures": "LlamaForCausalLM"}, "architectures must be a list of strings"),
        ({"hidden_size": ...}, "config.json has no hidden_size"),
        ({"max_position_embeddings": None}, "config.json has no max_position_embeddings"),
        ({"vocab_size": "many"}, "vocab_size must be a positive integer, got 'many'"),
        ({"num_hidden_layers": 0}, "num_hidden_layers must be a positive integer, got 0"),
        ({"num_hidden_layers": True}, "num_hidden_layers must be a positive integer, got True"),
        ({"num_key_value_heads": 3}, "num_attention_heads (4) is not a multiple of num_key_value_heads (3)"),
        ({"rms_norm_eps": "small"}, "rms_norm_eps must be a number"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps must be a finite number"),
        ({"tie_word_embeddings": 1}, "tie_word_embeddings must be true or false"),
        ({"hidden_act": "relu2"}, "hidden_act 'relu2' is not one of"),
        ({"eos_token_id": "</s>"}, "eos_token_id must be a token id or a list of them"),
        ({"head_dim": 7}, "7 rotary channels of a head_dim of 7; must be even"),
        ({"rope_scaling": [4]}, "rope_scaling must be an object"),
        ({"rope_scaling": {"type": "mrope"}}, "unknown rope_type 'mrope'; known are default, "),
        ({"rope_scaling": {"type": "linear"}}, "config.json has no rope_scaling.factor"),
        (
            {"rope_parameters": {"rope_type": "llama3", "factor": 8}},
            "config.json has no rope_parameters.low_freq_factor",
        ),
        ({"rope_scaling": {"type": "longrope", "factor": 2}}, "short_factor has 0 numbers, needs 4"),
        ({"quantization_config": {"quant_method": "awq"}}, "quantized checkpoints aren't supported yet"),
        ({"architectures": ["Gemma3ForCausalLM"], "use_bidirectional_attention": True}, "isn't supported"),
        ({"architectures": ["Qwen2ForCausalLM"], "layer_types": ["full_attention"]}, "layer_types must be 4 times"),
        ({"architectures": ["Qwen3MoeForCausalLM"]}, "config.json has no num_experts_per_tok"),
    ],
)
def test_errors_name_what_is_wrong(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError) as error:
        read(**changes)
    assert message in str(error.value) and "\n" not in str(error.value)


HUGE = [2**31, 10**12, 10**400]


@pytest.mark.parametrize(
    ("key", "bad"),
    [
        *(
            (key, [*HUGE, 0, -1, True, "8", 8.5, [8], {}])
            for key in ("num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim", "hidden_size")
        ),
        ("intermediate_size", [*HUGE, 0, -1, True, "8"]),
        ("vocab_size", [*HUGE, 2**24 + 1, 0, -1, True, "8"]),
        ("num_hidden_layers", [10**9, 4097]),
        ("num_attention_heads", [2**14 + 1]),
        ("max_position_embeddings", [*HUGE, 0, -1, True, "8"]),
        ("rms_norm_eps", [0, -1e-6, "1e-6", True, float("inf"), 10**400]),
        ("rope_theta", [0, -1, "1e4", True, float("nan"), 10**400]),
        ("eos_token_id", [-1, -99999, 2**31, 2**70, True, "2", 2.5, float("nan"), [True], ["2"], [[2]], {}, [2, -1]]),
        ("model_type", [["llama"]]),
        ("architectures", [[1], {"a": 1}, "x" * 10**6]),
    ],
)
def test_a_value_that_no_model_has_is_one_line_that_names_it(key: str, bad: list[Any]) -> None:
    for value in bad:
        changes = {"architectures": ...} if key == "model_type" else {}
        with pytest.raises(CheckpointError) as error:
            read(**changes, **{key: value})
        assert key in str(error.value) and "\n" not in str(error.value) and len(str(error.value)) < 400


def test_eos_ids_may_be_whole_floats() -> None:
    assert read(eos_token_id=2.0).eos_token_ids == (2,)
    assert read(eos_token_id=[2.0, 3]).eos_token_ids == (2, 3)
    assert read(eos_token_id=None).eos_token_ids == ()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_position_embeddings": 2**24 + 1}, "a context of 16777217 tokens; it must be at most 16777216"),
        ({"rope_scaling": {"type": "linear", "factor": 1e300}}, "a context of 2147483647 tokens"),
        ({"rope_scaling": {"type": "yarn", "factor": 1e-9}}, "a context of 0 tokens"),
        ({"rope_scaling": {"type": "linear", "factor": 0}}, "rope_scaling.factor must be above 0"),
        ({"rope_scaling": {"type": "yarn", "factor": -4}}, "rope_scaling.factor must be above 0"),
        ({"rope_theta": 1}, "rope_theta must be above 1"),
        ({"rope_scaling": {"type": "yarn", "factor": 2, "beta_fast": 0}}, "beta_fast must be above 0"),
        ({"rope_scaling": {"type": "dynamic", "factor": 2}, "head_dim": 2}, "more than 2 rotary channels"),
        (
            {"rope_scaling": {"type": "llama3", "factor": 8, "low_freq_factor": 4, "high_freq_factor": 4}},
            "low_freq_factor must be below",
        ),
        (
            {"rope_scaling": {"type": "longrope", "short_factor": [1, 0, 1, 1], "long_factor": [1] * 4}},
            "short_factor must be above 0",
        ),
        (
            {"rope_scaling": {"type": "longrope", "short_factor": [1] * 4, "long_factor": [1, float("nan"), 1, 1]}},
            "long_factor must be a finite number",
        ),
        (
            {"architectures": ["Gemma2ForCausalLM"], "query_pre_attn_scalar": 0},
            "query_pre_attn_scalar must be above 0",
        ),
        (
            {"architectures": ["Gemma2ForCausalLM"], "query_pre_attn_scalar": -4},
            "query_pre_attn_scalar must be above 0",
        ),
        ({"architectures": ["Gemma2ForCausalLM"], "attn_logit_softcapping": 0}, "softcapping must be above 0"),
        ({"architectures": ["GraniteForCausalLM"], "logits_scaling": 0}, "logits_scaling must be above 0"),
        ({"architectures": ["Phi3ForCausalLM"], "partial_rotary_factor": 1e300}, "rotary channels of a head_dim"),
        (
            {
                "architectures": ["Qwen3MoeForCausalLM"],
                "num_experts": 4096,
                "num_experts_per_tok": 2,
                "moe_intermediate_size": 8,
                "num_hidden_layers": 4096,
            },
            "4096 layers of 4096 experts",
        ),
        ({"architectures": ["MistralForCausalLM"], "sliding_window": 10**30}, "sliding_window must be at most"),
    ],
)
def test_what_an_engine_could_not_compute_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError) as error:
        read(**changes)
    assert message in str(error.value) and "\n" not in str(error.value)
