"""A Hugging Face ``config.json`` to a ``ModelConfig``: what each family says, and what it leaves unsaid.

Files of transformers 4 and 5 are read alike. Each family is a function that returns only the fields in which it
differs from the common ones.
"""

from __future__ import annotations

import math
import reprlib
from collections.abc import Callable
from typing import Any, get_args

from tandem.errors import CheckpointError
from tandem.models.model_config import (
    POST_NORMS,
    SANDWICH_NORMS,
    Activation,
    ModelConfig,
    MoeConfig,
    RopeConfig,
    RopeType,
)

ACTIVATIONS: dict[str, Activation] = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
}


# Sizes above these belong to no model: a file that holds one is malformed, and would be loaded for ever.
MAX_SIZES = {
    "num_hidden_layers": 2**12,
    "num_attention_heads": 2**14,
    "num_key_value_heads": 2**14,
    "head_dim": 2**14,
    "hidden_size": 2**20,
    "intermediate_size": 2**22,
    "moe_intermediate_size": 2**22,
    "vocab_size": 2**24,
    "num_experts": 2**12,
    "num_local_experts": 2**12,
}
MAX_SIZE = 2**31 - 1


def read_model_config(config: dict[str, Any]) -> ModelConfig:
    """The architecture that ``config``, the contents of a ``config.json``, describes.

    Raises:
        CheckpointError: the architecture is unknown, the checkpoint is quantized, or a key is missing or malformed;
            the message names it.
    """
    architecture = _architecture(config)
    if config.get("quantization_config"):
        method = _Keys(config["quantization_config"], "quantization_config").text("quant_method", "unnamed")
        raise CheckpointError(f"quantized checkpoints aren't supported yet, and this one is ({method})")
    keys = _Keys(config)
    model = ModelConfig(architecture=architecture, **(_common(keys) | FAMILIES[architecture](keys)))
    model.check()
    return model


class _Keys:
    """Typed access to a JSON object; every failure is a CheckpointError that names the key.

    A key that is null counts as absent. Without a default, an absent key is an error.
    """

    def __init__(self, values: Any, path: str = "") -> None:
        if not isinstance(values, dict):
            raise CheckpointError(f"config.json: {path} must be an object, got {reprlib.repr(values)}")
        self.values = values
        self.path = path

    def _name(self, key: str) -> str:
        return f"{self.path}.{key}" if self.path else key

    def _refusal(self, key: str, expected: str, value: Any) -> CheckpointError:
        return CheckpointError(f"config.json: {self._name(key)} must be {expected}, got {reprlib.repr(value)}")

    def _get(self, key: str, kinds: tuple[type, ...], expected: str, default: Any) -> Any:
        value = self.values.get(key)
        if value is None:
            if default is _REQUIRED:
                raise CheckpointError(f"config.json has no {self._name(key)}")
            return default
        # bool is an int to Python, not to JSON
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            raise self._refusal(key, expected, value)
        return value

    def size(self, key: str, default: Any = None) -> int:
        """A positive integer that a model can have; ``default=None`` means that it is required."""
        value = self._get(key, (int,), "a positive integer", _REQUIRED if default is None else default)
        if value < 1:
            raise self._refusal(key, "a positive integer", value)
        if value > (limit := MAX_SIZES.get(key, MAX_SIZE)):
            raise self._refusal(key, f"at most {limit}, as no model has more", value)
        return int(value)

    def optional_size(self, key: str, default: int | None = None) -> int | None:
        if key in self.values and self.values[key] is None:
            return None
        return self.size(key, default) if key in self.values or default is not None else None

    def number(self, key: str, default: Any = None) -> float:
        value = self._get(key, (int, float), "a number", _REQUIRED if default is None else default)
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
        if not math.isfinite(number):
            raise self._refusal(key, "a finite number", value)
        return number

    def positive(self, key: str, default: Any = None) -> float:
        """A number above 0: what is divided by, or raised to a power."""
        value = self.number(key, default)
        if value <= 0:
            raise self._refusal(key, "above 0", value)
        return value

    def optional_positive(self, key: str) -> float | None:
        return None if self.values.get(key) is None else self.positive(key)

    def flag(self, key: str, default: bool) -> bool:
        return bool(self._get(key, (bool,), "true or false", default))

    def text(self, key: str, default: str) -> str:
        return str(self._get(key, (str,), "a string", default))

    def items(self, key: str, kinds: tuple[type, ...], expected: str) -> list[Any] | None:
        values = self._get(key, (list,), f"a list of {expected}", None)
        if values is not None and not all(isinstance(v, kinds) and not isinstance(v, bool) for v in values):
            raise self._refusal(key, f"a list of {expected}", values)
        return None if values is None else list(values)

    def positives(self, key: str) -> tuple[float, ...]:
        values = self.items(key, (int, float), "numbers") or []
        return tuple(_Keys({key: value}, self.path).positive(key) for value in values)

    def child(self, key: str) -> _Keys:
        return _Keys(self._get(key, (dict,), "an object", {}), self._name(key))


_REQUIRED = object()


def _architecture(config: dict[str, Any]) -> str:
    """The first known name among ``architectures``; else the one that ``model_type`` stands for."""
    names = _Keys(config).items("architectures", (str,), "strings") or []
    for name in names:
        if name in FAMILIES:
            return str(name)
    model_type = config.get("model_type")
    if not names and isinstance(model_type, str) and model_type in MODEL_TYPES:
        return MODEL_TYPES[model_type]
    found = ", ".join(names)[:200] or f"model_type {reprlib.repr(model_type)}"
    raise CheckpointError(f"unknown architecture {found}; known are {', '.join(sorted(FAMILIES))}")


def _common(k: _Keys) -> dict[str, Any]:
    """The fields that all families say in the same way."""
    num_layers, num_heads = k.size("num_hidden_layers"), k.size("num_attention_heads")
    hidden_size = k.size("hidden_size")
    head_dim = k.size("head_dim", hidden_size // num_heads)
    rope = _rope(k, _rope_keys(k), head_dim)
    return {
        "vocab_size": k.size("vocab_size"),
        "hidden_size": hidden_size,
        "intermediate_size": k.size("intermediate_size"),
        "num_layers": num_layers,
        "num_heads": num_heads,
        "num_kv_heads": k.size("num_key_value_heads", num_heads),
        "head_dim": head_dim,
        "max_model_len": _context(k, rope),
        "dtype": k.text("dtype", k.text("torch_dtype", "float32")),
        "eos_token_ids": read_token_ids(k.values.get("eos_token_id"), "config.json: eos_token_id"),
        "tie_word_embeddings": k.flag("tie_word_embeddings", False),
        "rope": rope,
        "windows": (None,) * num_layers,
        "sparse_layers": (False,) * num_layers,
        "activation": _activation(k, "hidden_act", "silu"),
        "norm_eps": k.positive("rms_norm_eps", 1e-6),
        "attention_scale": head_dim**-0.5,
    }


def read_token_ids(value: Any, name: str) -> tuple[int, ...]:
    """One token id, a list of them, or none for null; whole floats are taken for what they are.

    Args:
        name: of the file and the key, for the error.

    Raises:
        CheckpointError: it is none of these.
    """
    given = value if isinstance(value, list) else [] if value is None else [value]
    token_ids = [int(v) if isinstance(v, float) and v.is_integer() else v for v in given]
    if any(type(v) is not int or not 0 <= v <= MAX_SIZE for v in token_ids):
        raise CheckpointError(f"{name} must be a token id or a list of them, got {reprlib.repr(value)}")
    return tuple(token_ids)


def _activation(k: _Keys, key: str, default: str) -> Activation:
    name = k.text(key, default)
    if name not in ACTIVATIONS:
        raise CheckpointError(f"config.json: {key} {reprlib.repr(name)} is not one of {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]


def _rope_keys(k: _Keys) -> _Keys:
    """``rope_parameters`` of transformers 5; else ``rope_scaling`` of transformers 4; else an empty object."""
    return k.child("rope_parameters" if k.values.get("rope_parameters") else "rope_scaling")


def _rope(k: _Keys, r: _Keys, head_dim: int, theta: float = 10000.0) -> RopeConfig:
    """Read the rotary embedding in ``r``, whose defaults stand at the top level ``k``."""
    max_len = k.size("max_position_embeddings")
    kind = r.text("rope_type", r.text("type", "default"))
    kind = {"su": "longrope"}.get(kind, kind)
    known = get_args(RopeType)
    if kind not in known:
        raise CheckpointError(f"config.json: unknown rope_type {reprlib.repr(kind)}; known are {', '.join(known)}")
    original = max_len
    if kind in ("llama3", "yarn", "longrope"):
        original = k.size("original_max_position_embeddings", r.size("original_max_position_embeddings", max_len))
    fields: dict[str, Any] = {}
    if kind in ("linear", "dynamic", "llama3"):
        fields["factor"] = r.positive("factor")
    if kind == "llama3":
        fields |= {key: r.positive(key) for key in ("low_freq_factor", "high_freq_factor")}
    if kind == "yarn":
        fields |= {"beta_fast": r.positive("beta_fast", 32.0), "beta_slow": r.positive("beta_slow", 1.0)}
        fields |= {key: r.optional_positive(key) for key in ("mscale", "mscale_all_dim")}
        fields["truncate"] = r.flag("truncate", True)
    if kind == "longrope":
        for key in ("short_factor", "long_factor"):
            fields[key] = r.positives(key)
    if kind in ("yarn", "longrope"):
        fields["factor"] = r.positive("factor", max_len / original)
        fields["attention_factor"] = r.optional_positive("attention_factor")
    return RopeConfig(
        type=kind,  # type: ignore[arg-type]
        theta=r.positive("rope_theta", k.positive("rope_theta", theta)),
        rotary_dim=head_dim,
        original_max_len=original,
        **fields,
    )


def _context(k: _Keys, rope: RopeConfig) -> int:
    """The context that RoPE scaling gives, as vLLM derives it.

    ``linear`` and ``dynamic`` files leave the original length in ``max_position_embeddings``. ``yarn`` files may
    hold either length there, so the original one is scaled. With ``llama3`` and ``longrope`` the length is the
    extended one already.
    """
    length = k.size("max_position_embeddings")
    if rope.type == "yarn":
        length = rope.original_max_len
    return int(min(length * (rope.factor if rope.type in ("yarn", "linear", "dynamic") else 1), MAX_SIZE))


def _windows(k: _Keys, window: int | None, is_local: Callable[[int], bool]) -> tuple[int | None, ...]:
    """The window of each layer; ``layer_types``, where given, says which have one, else ``is_local`` does."""
    num_layers = k.size("num_hidden_layers")
    types = k.items("layer_types", (str,), "strings")
    if types is None:
        return tuple(window if is_local(layer) else None for layer in range(num_layers))
    known = {"sliding_attention": window, "full_attention": None}
    if len(types) != num_layers or not set(types) <= set(known):
        raise CheckpointError(f"config.json: layer_types must be {num_layers} times one of {', '.join(known)}")
    return tuple(known[t] for t in types)


def _llama(k: _Keys) -> dict[str, Any]:
    bias = k.flag("attention_bias", False)
    return {"qkv_bias": bias, "o_bias": bias, "mlp_bias": k.flag("mlp_bias", False)}


def _mistral(k: _Keys) -> dict[str, Any]:
    return {"windows": (k.optional_size("sliding_window", 4096),) * k.size("num_hidden_layers")}


def _qwen_windows(k: _Keys) -> tuple[int | None, ...]:
    window = k.optional_size("sliding_window", 4096) if k.flag("use_sliding_window", False) else None
    first = int(k.number("max_window_layers", 28))
    return _windows(k, window, lambda layer: layer >= first)


def _qwen2(k: _Keys) -> dict[str, Any]:
    return {"qkv_bias": True, "windows": _qwen_windows(k)}


def _qwen3(k: _Keys) -> dict[str, Any]:
    bias = k.flag("attention_bias", False)
    head_dim = k.size("head_dim", 128)
    return {
        "head_dim": head_dim,
        "rope": _rope(k, _rope_keys(k), head_dim),
        "attention_scale": head_dim**-0.5,
        "qkv_bias": bias,
        "o_bias": bias,
        "qk_norm": "head",
        "windows": _qwen_windows(k),
    }


def _qwen3_moe(k: _Keys) -> dict[str, Any]:
    bias = k.flag("attention_bias", False)
    window = k.optional_size("sliding_window", 4096) if k.flag("use_sliding_window", False) else None
    step = k.size("decoder_sparse_step", 1)
    dense = k.items("mlp_only_layers", (int,), "integers") or []
    layers = range(k.size("num_hidden_layers"))
    moe = MoeConfig(
        num_experts=k.size("num_experts", k.size("num_local_experts", 128)),
        num_experts_per_tok=k.size("num_experts_per_tok"),
        intermediate_size=k.size("moe_intermediate_size"),
        norm_topk_prob=k.flag("norm_topk_prob", False),
    )
    return {
        "qkv_bias": bias,
        "o_bias": bias,
        "qk_norm": "head",
        "windows": (window,) * len(layers),
        "moe": moe,
        "sparse_layers": tuple(i not in dense and (i + 1) % step == 0 for i in layers),
    }


def _mixtral(k: _Keys) -> dict[str, Any]:
    num_layers = k.size("num_hidden_layers")
    moe = MoeConfig(
        num_experts=k.size("num_local_experts", 8),
        num_experts_per_tok=k.size("num_experts_per_tok", 2),
        intermediate_size=k.size("intermediate_size"),
        norm_topk_prob=True,
        block_name="block_sparse_moe",
        gate_name="w1",
        up_name="w3",
        down_name="w2",
    )
    return {
        "norm_eps": k.positive("rms_norm_eps", 1e-5),
        "windows": (k.optional_size("sliding_window"),) * num_layers,
        "moe": moe,
        "sparse_layers": (True,) * num_layers,
    }


def _gemma(k: _Keys) -> dict[str, Any]:
    """What Gemma 2 and 3 have in common."""
    if k.flag("use_bidirectional_attention", False):
        raise CheckpointError("config.json: use_bidirectional_attention makes an encoder, which isn't supported")
    bias = k.flag("attention_bias", False)
    head_dim = k.size("head_dim", 256)
    return {
        "head_dim": head_dim,
        "tie_word_embeddings": k.flag("tie_word_embeddings", True),
        "activation": _activation(k, "hidden_activation", "gelu_pytorch_tanh"),
        "qkv_bias": bias,
        "o_bias": bias,
        "norm_offset": 1.0,
        "norm_float32": True,
        "norm_names": SANDWICH_NORMS,
        "embedding_scale": math.sqrt(k.size("hidden_size")),
        "attention_scale": k.positive("query_pre_attn_scalar", 256.0) ** -0.5,
    }


def _gemma2(k: _Keys) -> dict[str, Any]:
    # null switches a cap off; an absent key does not
    caps = {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0} | k.values
    fields = _gemma(k)
    return fields | {
        "rope": _rope(k, _rope_keys(k), fields["head_dim"]),
        "windows": _windows(k, k.optional_size("sliding_window", 4096), lambda layer: layer % 2 == 0),
        "attention_softcap": _Keys(caps).optional_positive("attn_logit_softcapping"),
        "logit_softcap": _Keys(caps).optional_positive("final_logit_softcapping"),
    }


def _gemma3(k: _Keys) -> dict[str, Any]:
    fields = _gemma(k)
    pattern = k.size("sliding_window_pattern", k.size("_sliding_window_pattern", 6))
    nested = k.values.get("rope_parameters") or {}
    if "full_attention" in nested or "sliding_attention" in nested:
        both = k.child("rope_parameters")
        global_keys, local_keys = both.child("full_attention"), both.child("sliding_attention")
    else:
        global_keys, local_keys = _rope_keys(k), _Keys({})
    # the local layers have a base of their own, and no scaling unless their own object asks for it
    local_base = _Keys(k.values | {"rope_theta": k.positive("rope_local_base_freq", 10000.0)})
    return fields | {
        "qk_norm": "head",
        "rope": _rope(k, global_keys, fields["head_dim"], theta=1e6),
        "local_rope": _rope(local_base, local_keys, fields["head_dim"]),
        "max_model_len": k.size("max_position_embeddings"),  # already the extended length
        "windows": _windows(k, k.optional_size("sliding_window", 4096), lambda layer: (layer + 1) % pattern != 0),
        "logit_softcap": k.optional_positive("final_logit_softcapping"),
    }


def _phi3(k: _Keys) -> dict[str, Any]:
    head_dim = k.size("hidden_size") // k.size("num_attention_heads")
    keys = _rope_keys(k)
    if keys.values.get("type") == "yarn":  # how the first files of this family spelled longrope
        keys = _Keys(keys.values | {"type": "longrope"}, keys.path)
    part = keys.positive("partial_rotary_factor", k.positive("partial_rotary_factor", 1.0))
    rope = _rope(k, keys, int(head_dim * min(part, 2.0)))  # above 1 is refused below
    return {
        "fused_projections": True,
        "head_dim": head_dim,
        "attention_scale": head_dim**-0.5,
        "rope": rope,
        "max_model_len": _context(k, rope),
        "norm_eps": k.positive("rms_norm_eps", 1e-5),
        "windows": (k.optional_size("sliding_window"),) * k.size("num_hidden_layers"),
    }


def _granite(k: _Keys) -> dict[str, Any]:
    return _llama(k) | {
        "embedding_scale": k.number("embedding_multiplier", 1.0),
        "residual_scale": k.number("residual_multiplier", 1.0),
        "attention_scale": k.number("attention_multiplier", 1.0),
        "logit_divisor": k.positive("logits_scaling", 1.0),
    }


def _olmo2(k: _Keys) -> dict[str, Any]:
    bias = k.flag("attention_bias", False)
    return {
        "qkv_bias": bias,
        "o_bias": bias,
        "norm_eps": k.positive("rms_norm_eps", 1e-5),
        "norm_float32": True,
        "norm_names": POST_NORMS,
        "qk_norm": "full",
    }


FAMILIES: dict[str, Callable[[_Keys], dict[str, Any]]] = {
    "LlamaForCausalLM": _llama,
    "MistralForCausalLM": _mistral,
    "Qwen2ForCausalLM": _qwen2,
    "Qwen3ForCausalLM": _qwen3,
    "Qwen3MoeForCausalLM": _qwen3_moe,
    "MixtralForCausalLM": _mixtral,
    "Gemma2ForCausalLM": _gemma2,
    "Gemma3ForCausalLM": _gemma3,
    "Phi3ForCausalLM": _phi3,
    "GraniteForCausalLM": _granite,
    "Olmo2ForCausalLM": _olmo2,
}
MODEL_TYPES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "qwen3_moe": "Qwen3MoeForCausalLM",
    "mixtral": "MixtralForCausalLM",
    "gemma2": "Gemma2ForCausalLM",
    "gemma3_text": "Gemma3ForCausalLM",
    "phi3": "Phi3ForCausalLM",
    "granite": "GraniteForCausalLM",
    "olmo2": "Olmo2ForCausalLM",
}
