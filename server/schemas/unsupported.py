"""Parameters that clients know and this server cannot honour yet.

Set to a neutral value they are accepted, because leaving them out would mean the same; otherwise the request gets 400
naming them: silence would be a wrong answer.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from tandem.errors import RequestError

_FUNCTIONS = "it is the older spelling of tools and tool_choice"
_ANY: tuple[Any, ...] = ()

# name -> why not, and the values (besides null) that change nothing
Refusals = Mapping[str, tuple[str, tuple[Any, ...]]]
UNSUPPORTED: Refusals = {
    "functions": (_FUNCTIONS, ([],)),
    "function_call": (_FUNCTIONS, ("none", "auto")),
    "early_stopping": ("beam search ends when no better answer can be found", (False,)),
    "suffix": ("gaps are filled by /v1/completions", ("",)),
    "modalities": ("only text can be generated", (["text"],)),
    "audio": ("only text can be generated", _ANY),
    "mm_processor_kwargs": ("only text can be read", ({},)),
    "media_io_kwargs": ("only text can be read", ({},)),
    "prediction": ("predicted outputs are not available", _ANY),
    "web_search_options": ("there is no web search", _ANY),
    "store": ("answers are not kept", (False,)),
    "moderation": ("there is no moderation", _ANY),
    "verbosity": ("the model has no such setting", ("medium",)),
    "logits_processors": ("requests may not bring code", ([],)),
    "return_token_offsets": ("offsets of tokens are not available", (False,)),
    "return_prompt_text": ("ask for echo, or for /tokenize", (False,)),
    "repetition_detection": ("repetition is not looked for; see repetition_penalty", (False,)),
    "stream_interval": ("each step is sent as it comes", (1,)),
    "prompt_embeds": ("prompts are text or token ids", _ANY),
    "prompt_cache_options": ("the prefix cache has no options; see cache_salt", ({},)),
    "kv_transfer_params": ("transfer of KV caches is not available yet", ({},)),
    "vllm_xargs": ("there are no such arguments", ({},)),
}


def refuse_unsupported(name: str, raw: msgspec.Raw, refusals: Refusals = UNSUPPORTED) -> None:
    """Raise ``RequestError`` if ``name`` is set to a value that would change the answer."""
    why, neutral = refusals[name]
    if len(raw) < 64:
        value = msgspec.json.decode(raw)
        if value is None or any(is_same(value, one) for one in neutral):
            return
    raise RequestError(f"{name} is not supported: {why}", name, "unsupported_parameter")


def is_same(value: object, neutral: object) -> bool:
    """Equality as in JSON, where 1 is 1.0 but not true."""
    return isinstance(value, bool) is isinstance(neutral, bool) and value == neutral
