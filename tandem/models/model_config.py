"""An architecture as data: what ``config.json`` says of a decoder, in one vocabulary for all families.

The engines read these fields and nothing else of the file. Also here is what both must agree on because the file
format fixes it: the names and shapes of a checkpoint's tensors. What is computed from them is each engine's own.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from tandem.errors import CheckpointError

RopeType = Literal["default", "linear", "dynamic", "llama3", "yarn", "longrope"]
Activation = Literal["silu", "gelu", "gelu_tanh"]
Mixer = Literal["attention"]  # what mixes the tokens of a sequence in a layer

# (before attention, after it, before the MLP, after it); None where the family has no norm
NormNames = tuple[str | None, str | None, str | None, str | None]
PRE_NORMS: NormNames = ("input_layernorm", None, "post_attention_layernorm", None)
POST_NORMS: NormNames = (None, "post_attention_layernorm", None, "post_feedforward_layernorm")
SANDWICH_NORMS: NormNames = (
    "input_layernorm",
    "post_attention_layernorm",
    "pre_feedforward_layernorm",
    "post_feedforward_layernorm",
)


MAX_MODEL_LEN = 2**24
MAX_EXPERTS = 2**17  # of all layers together


class RopeConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Rotary position embedding: the angle of a channel pair is the position times the pair's frequency.

    A token's rotation depends on its position alone (and, for ``longrope``, on the engine's ``max_model_len``), never
    on the length of its sequence, so cached keys stay valid. For the two types that the papers define by sequence
    length this means:

    - ``dynamic``: position p uses the base for the length ``max(original_max_len, p + 1)``, which is what
      transformers computes when it decodes token by token.
    - ``longrope``: every position uses ``long_factor`` if the engine's ``max_model_len`` is above
      ``original_max_len``, else ``short_factor``.

    Attributes:
        type: how frequencies are scaled beyond the original context.
        theta: base of the geometric series of wavelengths.
        rotary_dim: the first so many channels of a head are rotated; even.
        factor: how much longer the context becomes.
        original_max_len: context of the original training, in tokens.
        low_freq_factor, high_freq_factor: ``llama3``.
        beta_fast, beta_slow, mscale, mscale_all_dim, truncate: ``yarn``.
        attention_factor: ``yarn`` and ``longrope``; multiplies cosine and sine; None is derived from ``factor``.
        short_factor, long_factor: ``longrope``; one divisor for each frequency.
    """

    type: RopeType
    theta: float
    rotary_dim: int
    original_max_len: int
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    mscale: float | None = None
    mscale_all_dim: float | None = None
    truncate: bool = True
    attention_factor: float | None = None
    short_factor: tuple[float, ...] = ()
    long_factor: tuple[float, ...] = ()


class MoeConfig(msgspec.Struct, frozen=True, kw_only=True):
    """A mixture of experts in place of a layer's MLP.

    Attributes:
        num_experts, num_experts_per_tok: in a layer; chosen for each token.
        intermediate_size: of one expert.
        norm_topk_prob: the chosen experts' probabilities are scaled to sum to one.
        block_name: the layer's module that holds ``gate`` and ``experts``.
        gate_name, up_name, down_name: an expert's three matrices.
    """

    num_experts: int
    num_experts_per_tok: int
    intermediate_size: int
    norm_topk_prob: bool
    block_name: str = "mlp"
    gate_name: str = "gate_proj"
    up_name: str = "up_proj"
    down_name: str = "down_proj"


class ModelConfig(msgspec.Struct, frozen=True, kw_only=True):
    """A decoder-only transformer.

    Attributes:
        architecture: the class name in ``config.json``.
        vocab_size, hidden_size, intermediate_size, num_layers, num_heads, num_kv_heads, head_dim: sizes.
        max_model_len: tokens of context, RoPE scaling included.
        dtype: of the checkpoint, as ``config.json`` says it.
        eos_token_ids: tokens that end an answer.
        tie_word_embeddings: the output projection is the embedding; the file has no ``lm_head.weight``.
        rope: rotary embedding of all layers, or of those without a window where ``local_rope`` is set.
        local_rope: rotary embedding of the layers with a window.
        windows: for each layer, how many tokens a token attends to, itself included; None for all before it.
        sparse_layers: for each layer, whether ``moe`` replaces its MLP.
        activation: of the MLP's gate.
        fused_projections: the file holds ``qkv_proj`` and ``gate_up_proj``, rows in this order, not their parts.
        qkv_bias, o_bias, mlp_bias: which projections have a bias.
        norm_eps: added to the mean square under the root.
        norm_offset: added to each norm's weight.
        norm_float32: multiply by the weight before, not after, rounding to the activations' dtype.
        norm_names: a layer's norms, see ``NormNames``.
        qk_norm: RMSNorm of queries and keys before RoPE: over each head, over all heads together, or none.
        attention_scale: multiplies query·key.
        attention_softcap, logit_softcap: c in ``c · tanh(x / c)`` on scores and logits; None for none.
        embedding_scale: multiplies embeddings, rounded to the activations' dtype.
        residual_scale: multiplies what attention and MLP add to the residual stream.
        logit_divisor: divides logits.
    """

    architecture: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    max_model_len: int
    dtype: str
    eos_token_ids: tuple[int, ...]
    tie_word_embeddings: bool
    rope: RopeConfig
    windows: tuple[int | None, ...]
    sparse_layers: tuple[bool, ...]
    activation: Activation
    norm_eps: float
    attention_scale: float
    local_rope: RopeConfig | None = None
    moe: MoeConfig | None = None
    fused_projections: bool = False
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    norm_offset: float = 0.0
    norm_float32: bool = False
    norm_names: NormNames = PRE_NORMS
    qk_norm: Literal["none", "head", "full"] = "none"
    attention_softcap: float | None = None
    logit_softcap: float | None = None
    embedding_scale: float = 1.0
    residual_scale: float = 1.0
    logit_divisor: float = 1.0

    @property
    def mixers(self) -> tuple[Mixer, ...]:
        """Of each layer."""
        mixer: Mixer = "attention"
        return (mixer,) * self.num_layers

    def rope_of(self, layer: int) -> RopeConfig:
        """The rotary embedding of layer number ``layer``."""
        return self.local_rope if self.local_rope is not None and self.windows[layer] is not None else self.rope

    def tensor_shapes(self) -> dict[str, tuple[int, ...]]:
        """Name and shape of every tensor the checkpoint must hold; matrices are (outputs, inputs)."""
        shapes: dict[str, tuple[int, ...]] = {
            "model.embed_tokens.weight": (self.vocab_size, self.hidden_size),
            "model.norm.weight": (self.hidden_size,),
        }
        if not self.tie_word_embeddings:
            shapes["lm_head.weight"] = (self.vocab_size, self.hidden_size)
        for layer in range(self.num_layers):
            prefix = f"model.layers.{layer}."
            for name in self.norm_names:
                if name is not None:
                    shapes[f"{prefix}{name}.weight"] = (self.hidden_size,)
            shapes |= self._attention_shapes(f"{prefix}self_attn.")
            shapes |= self._moe_shapes(prefix) if self.sparse_layers[layer] else self._mlp_shapes(f"{prefix}mlp.")
        return shapes

    def _attention_shapes(self, prefix: str) -> dict[str, tuple[int, ...]]:
        q_size, kv_size = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        rows = {"q_proj": q_size, "k_proj": kv_size, "v_proj": kv_size}
        if self.fused_projections:
            rows = {"qkv_proj": q_size + 2 * kv_size}
        shapes: dict[str, tuple[int, ...]] = {f"{prefix}o_proj.weight": (self.hidden_size, q_size)}
        for name, size in rows.items():
            shapes[f"{prefix}{name}.weight"] = (size, self.hidden_size)
            if self.qkv_bias:
                shapes[f"{prefix}{name}.bias"] = (size,)
        if self.o_bias:
            shapes[f"{prefix}o_proj.bias"] = (self.hidden_size,)
        if self.qk_norm != "none":
            per_head = self.qk_norm == "head"
            shapes[f"{prefix}q_norm.weight"] = (self.head_dim if per_head else q_size,)
            shapes[f"{prefix}k_norm.weight"] = (self.head_dim if per_head else kv_size,)
        return shapes

    def _mlp_shapes(self, prefix: str) -> dict[str, tuple[int, ...]]:
        hidden, inner = self.hidden_size, self.intermediate_size
        rows = {"gate_up_proj": 2 * inner} if self.fused_projections else {"gate_proj": inner, "up_proj": inner}
        shapes: dict[str, tuple[int, ...]] = {f"{prefix}{name}.weight": (size, hidden) for name, size in rows.items()}
        shapes[f"{prefix}down_proj.weight"] = (hidden, inner)
        if self.mlp_bias:
            shapes |= {f"{prefix}{name}.bias": (size,) for name, size in (rows | {"down_proj": hidden}).items()}
        return shapes

    def _moe_shapes(self, prefix: str) -> dict[str, tuple[int, ...]]:
        assert self.moe is not None
        hidden, inner = self.hidden_size, self.moe.intermediate_size
        block = f"{prefix}{self.moe.block_name}."
        shapes: dict[str, tuple[int, ...]] = {f"{block}gate.weight": (self.moe.num_experts, hidden)}
        for expert in range(self.moe.num_experts):
            shapes[f"{block}experts.{expert}.{self.moe.gate_name}.weight"] = (inner, hidden)
            shapes[f"{block}experts.{expert}.{self.moe.up_name}.weight"] = (inner, hidden)
            shapes[f"{block}experts.{expert}.{self.moe.down_name}.weight"] = (hidden, inner)
        return shapes

    def check(self) -> None:
        """Raises CheckpointError where sizes contradict each other, or together are no model's."""
        if self.num_heads % self.num_kv_heads:
            raise CheckpointError(
                f"config.json: num_attention_heads ({self.num_heads}) is not a multiple of "
                f"num_key_value_heads ({self.num_kv_heads})"
            )
        if not 1 <= self.max_model_len <= MAX_MODEL_LEN:
            raise CheckpointError(
                f"config.json: a context of {self.max_model_len} tokens; it must be at most {MAX_MODEL_LEN}, up to "
                "which float32 knows each position"
            )
        for rope in (self.rope, self.local_rope):
            if rope is not None:
                self._check_rope(rope)
        if self.moe is not None and self.moe.num_experts_per_tok > self.moe.num_experts:
            raise CheckpointError("config.json: num_experts_per_tok is above the number of experts")
        if self.moe is not None and self.moe.num_experts * self.num_layers > MAX_EXPERTS:
            raise CheckpointError(
                f"config.json: {self.num_layers} layers of {self.moe.num_experts} experts are more than any model has"
            )

    def _check_rope(self, rope: RopeConfig) -> None:
        if rope.rotary_dim % 2 or not 0 < rope.rotary_dim <= self.head_dim:
            raise CheckpointError(
                f"config.json: {rope.rotary_dim} rotary channels of a head_dim of {self.head_dim}; must be even"
            )
        if rope.theta <= 1:
            raise CheckpointError(f"config.json: rope_theta must be above 1, got {rope.theta}")
        if rope.type == "dynamic" and rope.rotary_dim == 2:
            raise CheckpointError("config.json: dynamic RoPE scaling needs more than 2 rotary channels")
        if rope.type == "llama3" and rope.low_freq_factor >= rope.high_freq_factor:
            raise CheckpointError("config.json: rope low_freq_factor must be below high_freq_factor")
        if rope.type == "longrope":
            if rope.original_max_len < 2:
                raise CheckpointError("config.json: original_max_position_embeddings must be at least 2")
            for name, factors in (("short_factor", rope.short_factor), ("long_factor", rope.long_factor)):
                if len(factors) != rope.rotary_dim // 2:
                    raise CheckpointError(
                        f"config.json: rope {name} has {len(factors)} numbers, needs {rope.rotary_dim // 2}"
                    )
