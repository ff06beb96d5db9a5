"""Requests to every generating route, drawn: for laws that hold whatever is asked."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from tests.server.conftest import MODEL

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
HI = [{"role": "user", "content": "the quick brown fox"}]
CALL = {"id": "call_1", "type": "function", "function": {"name": "jump", "arguments": '{"over": "dog"}'}}
TOOL = {
    "type": "function",
    "function": {
        "name": "jump",
        "parameters": {"type": "object", "properties": {"over": {"enum": ["dog", "fox"]}}, "required": ["over"]},
    },
}
CONVERSATIONS: list[list[dict[str, Any]]] = [
    HI,
    [{"role": "system", "content": "Be lazy."}, {"role": "user", "content": [{"type": "text", "text": "naïve 🎉"}]}],
    [
        *HI,
        {"role": "assistant", "content": "", "tool_calls": [CALL]},
        {"role": "tool", "tool_call_id": "call_1", "content": "0 1 2"},
    ],
]
PROMPTS: list[Any] = ["the quick", [5, 6, 7, 8, 300, 12], ["the lazy dog", "東京"], [[9, 8], [7, 6, 5, 4, 3]]]


def sometimes(*values: Any) -> st.SearchStrategy[Any]:
    return st.sampled_from(values)


SAMPLING = {
    "temperature": st.floats(0, 2),
    "top_k": sometimes(-1, 0, 1, 3, 40, 400),
    "top_p": st.floats(0, 1),
    "min_p": sometimes(0, 0.01, 0.3, 1),
    "repetition_penalty": st.floats(0.5, 2),
    "frequency_penalty": st.floats(-2, 2),
    "presence_penalty": st.floats(-2, 2),
    "logit_bias": st.dictionaries(st.integers(0, 319).map(str), st.floats(-100, 100), max_size=5),
    "min_tokens": st.integers(0, 3),
    "stop": sometimes("a", "e", ["x", "\n", "京"], "the"),
    "stop_token_ids": st.lists(st.integers(0, 319), max_size=30),
    "ignore_eos": st.booleans(),
}
MORE = SAMPLING | {
    "allowed_token_ids": st.lists(st.integers(0, 319), min_size=1, max_size=50),
    "bad_words": st.lists(sometimes("a", "e", "the", "🎉"), max_size=2),
    "n": st.integers(1, 3),
    "include_stop_str_in_output": st.booleans(),
    "prompt_logprobs": st.integers(0, 5),
    "logprob_token_ids": st.lists(st.integers(0, 319), max_size=6, unique=True),
    "return_token_ids": st.booleans(),
    "skip_special_tokens": st.booleans(),
    "cache_salt": sometimes("a", "b"),
    "structured_outputs": sometimes({"regex": "[a-z ]{3,20}[.!]"}, {"json_object": True}, {"choice": ["a", "ab"]}),
    "priority": sometimes(0),
}
TEXTS = sometimes("the quick brown fox", "naïve 🎉", "0 1 2", "東京" * 9)
STREAM = {"stream": st.booleans()}
SCHEMA = TOOL["function"]["parameters"]
JUMP = {"type": "function", "name": "jump", "parameters": SCHEMA}


def possible(body: dict[str, Any]) -> dict[str, Any]:
    """Without what is refused together."""
    if body["stream"]:
        body.pop("prompt_logprobs", None)
    return body | ({"tool_choice": "required"} if "tools" in body and body["seed"] % 2 else {})


def of(required: dict[str, st.SearchStrategy[Any]], optional: dict[str, st.SearchStrategy[Any]]) -> Any:
    """Bodies of a route."""
    return st.fixed_dictionaries(required, optional=optional)


chats = of(
    {
        "messages": sometimes(*CONVERSATIONS),
        "seed": st.integers(-(2**63), 2**63 - 1),
        "max_tokens": st.integers(1, 30),
    }
    | STREAM,
    MORE
    | {
        "logprobs": st.just(True),
        "tools": st.just([TOOL]),
        "reasoning_effort": sometimes("none", "high"),
    },
).map(possible)
completions = of(
    {"prompt": sometimes(*PROMPTS), "seed": st.integers(-(2**63), 2**63 - 1), "max_tokens": st.integers(0, 30)}
    | STREAM,
    MORE | {"logprobs": st.integers(0, 4), "echo": st.booleans()},
).map(possible)
beams = of(
    {"prompt": sometimes(*PROMPTS), "n": st.integers(1, 4), "max_tokens": st.integers(1, 12)} | STREAM,
    {"length_penalty": st.floats(-3, 3), "stop_token_ids": st.lists(st.integers(0, 319), max_size=30)},
).map(lambda body: body | {"use_beam_search": True})
ITEMS = [
    {"role": "user", "content": "the quick"},
    {"type": "function_call", "call_id": "call_1", "name": "jump", "arguments": '{"over": "dog"}'},
    {"type": "function_call_output", "call_id": "call_1", "output": "0 1 2"},
]
responses = of(
    {"input": TEXTS | st.just(ITEMS), "seed": st.integers(0, 99), "max_output_tokens": st.integers(1, 30)} | STREAM,
    SAMPLING
    | {
        "instructions": TEXTS,
        "store": st.booleans(),
        "include": st.just(["message.output_text.logprobs"]),
        "reasoning": sometimes({"effort": "low"}, {"effort": "none"}),
        "text": sometimes(
            {"format": {"type": "json_object"}},
            {"format": {"type": "json_schema", "name": "jump", "schema": SCHEMA}},
        ),
        "tools": st.just([JUMP]),
        "metadata": st.just({"a": "b"}),
    },
).map(possible)
messages = of(
    {
        "messages": TEXTS.map(lambda text: [{"role": "user", "content": text}]),
        "model": st.just(MODEL),
        "seed": st.integers(0, 99),
        "max_tokens": st.integers(1, 30),
    }
    | STREAM,
    {
        "temperature": st.floats(0, 1),
        "top_k": sometimes(0, 1, 40),
        "top_p": st.floats(0, 1),
        "system": TEXTS,
        "stop_sequences": sometimes(["e"], ["o", "qu"]),
        "thinking": sometimes({"type": "disabled"}, {"type": "adaptive"}),
        "tools": st.just([{"name": "jump", "input_schema": SCHEMA}]),
        "output_config": st.just({"format": {"type": "json_schema", "schema": SCHEMA}}),
    },
).map(lambda body: body | ({"tool_choice": {"type": "any"}} if "tools" in body and body["seed"] % 2 else {}))
counts = messages.map(lambda body: {k: v for k, v in body.items() if k in ("messages", "model", "system", "tools")})
ollama_options = of(
    {"seed": st.integers(0, 99), "num_predict": st.integers(1, 30)},
    {
        "temperature": st.floats(0, 2),
        "top_k": sometimes(0, 1, 40),
        "top_p": st.floats(0, 1),
        "stop": sometimes(["e"], ["o", "qu"]),
        "repeat_penalty": st.floats(0.5, 2),
    },
)
ollama_chats = of(
    {
        "messages": TEXTS.map(lambda text: [{"role": "user", "content": text}]),
        "model": st.just(MODEL),
        "options": ollama_options,
    },
    STREAM | {"format": st.just("json") | st.just(SCHEMA), "tools": st.just([TOOL]), "think": st.booleans()},
)
ollama_texts = of(
    {"prompt": TEXTS, "model": st.just(MODEL), "options": ollama_options},
    STREAM | {"raw": st.booleans(), "format": st.just("json")},
)
STATES = st.fixed_dictionaries({"who": TEXTS}, optional={"calls": st.integers(0, 9)})
CRITERIA = st.dictionaries(sometimes("fox", "dog", "cat"), st.none() | TEXTS, min_size=2)
QUESTIONS = of({"type": st.just("choice"), "criteria": CRITERIA}, {"instructions": TEXTS}) | of(
    {"type": st.just("score"), "criteria": st.lists(TEXTS, min_size=2, max_size=5, unique=True)}, {}
)
states = of(
    {
        "state": TEXTS | STATES,
        "questions": st.dictionaries(sometimes("a", "b", "c"), QUESTIONS, min_size=1),
    },
    {},
)
VALUES = sometimes("fox", "dog", "cat", True)
decisions = of(
    {
        "input": TEXTS,
        "questions": st.lists(
            of(
                {
                    "type": st.just("choice"),
                    "instructions": TEXTS,
                    "choices": st.lists(VALUES, min_size=2, unique_by=str).map(lambda vs: [{"value": v} for v in vs]),
                },
                {},
            ),
            min_size=1,
            max_size=3,
        ),
    },
    {},
)
IDS = st.lists(st.integers(0, 319), min_size=1, max_size=20)
scorings = of(
    {
        "query": IDS,
        "items": st.lists(IDS, min_size=1, max_size=4),
        "label_token_ids": st.lists(st.integers(0, 319), min_size=1, max_size=5, unique=True),
    },
    {"apply_softmax": st.booleans(), "item_first": st.booleans()},
)
PARAMS = {name: SAMPLING[name] for name in SAMPLING if name not in ("logit_bias", "stop")}
tokens = of(
    {
        "token_ids": IDS,
        "sampling_params": of(
            {"seed": st.integers(0, 99), "max_tokens": st.integers(1, 30)},
            PARAMS | {"n": st.integers(1, 3), "logprobs": st.integers(0, 4)},
        ),
    }
    | STREAM,
    {},
)
DRAWN = {
    CHAT: chats,
    TEXT: completions | beams,
    "/v1/responses": responses,
    "/v1/messages": messages,
    "/v1/messages/count_tokens": counts,
    "/api/chat": ollama_chats,
    "/api/generate": ollama_texts,
    "/v1/systemone": states,
    "/v1/decisions": decisions,
    "/generative_scoring": scorings,
    "/inference/v1/generate": tokens,
    "/invocations": chats | completions,
}


requests = st.sampled_from(list(DRAWN)).flatmap(lambda path: st.tuples(st.just(path), DRAWN[path]))
