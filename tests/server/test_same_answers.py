"""The same HTTP request to a server of either engine gives the same JSON.

What may differ ``tests/server/likeness.py`` says: the reference engine has no prefix cache, and outputs that a busy
front process has not read yet are joined.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.server.conftest import MODEL
from tests.server.likeness import compare
from tests.server.process import ServerProcess

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
JSON = {"content-type": "application/json"}
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

EITHER: list[dict[str, Any]] = [
    {},
    {"temperature": 0},
    {"temperature": 0, "max_tokens": 1},
    {"n": 2},
    {"n": 3, "temperature": 1.3, "logit_bias": {"260": 3.0, "100": -100}},
    {"temperature": 0.8, "top_k": 12, "top_p": 0.9, "min_p": 0.02},
    {"top_p": 0},
    {"stop": "e"},
    {"stop": ["o", "qu"], "include_stop_str_in_output": True, "n": 2},
    {"stop_token_ids": list(range(0, 320, 5)), "min_tokens": 4},
    {"temperature": 0, "repetition_penalty": 1.4},
    {"temperature": 0, "frequency_penalty": 1.5, "presence_penalty": -0.5},
    {"allowed_token_ids": list(range(60, 120)), "bad_words": ["a", "the"]},
    {"ignore_eos": True, "max_tokens": 90, "temperature": 2.0},
    {"prompt_logprobs": 3},
    {"return_token_ids": True, "skip_special_tokens": False, "n": 2},
    {"truncate_prompt_tokens": 3},
    {"stream_options": {"include_usage": True, "continuous_usage_stats": True}},
    {"cache_salt": "a", "priority": 0, "user": "me"},
    {"priority": -3},
    {"an_unknown_field": 1},
    {"use_beam_search": True, "n": 3, "max_tokens": 9},
    {"use_beam_search": True, "n": 2, "length_penalty": 2.5, "stop_token_ids": list(range(0, 320, 7))},
    # refused, by the front process or by the engine
    {"temperature": 3},
    {"logit_bias": {"999999": 1}},
    {"min_tokens": 99},
    {"max_tokens": 100_000},
    {"model": "another"},
    {"n": 1000},
    {"allowed_token_ids": [7], "bad_words": ["the"], "stop_token_ids": [7], "min_tokens": 3},
    {"guided_json": {"not": {}}},
    {"guided_json": {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}},
    {"structured_outputs": {"regex": "[a-f]{2,9}(the quick brown fox){1,2}[0-9]+"}, "n": 2, "max_tokens": 60},
    {"guided_choice": ["the quick", "the lazy dog", "naïve café"], "stream_options": {"include_usage": True}},
    {"guided_grammar": 'start: ("a" | "bc")+ "." "0 1 2 3 4 5 6 7"', "logit_bias": {"46": 5.0}, "max_tokens": 40},
    {"response_format": {"type": "json_object"}, "stop": '"', "min_tokens": 4},
]
CHAT_ONLY: list[dict[str, Any]] = [
    {"logprobs": True, "top_logprobs": 5},
    {"logprobs": True, "n": 2, "stop": "o"},
    {"max_completion_tokens": 5},
    {"tools": [TOOL], "tool_choice": "required"},
    {"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "jump"}}, "n": 2, "max_tokens": 80},
    {"tools": [TOOL], "response_format": {"type": "json_object"}, "max_tokens": 80},
    {"tools": [TOOL], "tool_choice": "none", "reasoning_effort": "high", "thinking_token_budget": 6},
    {"messages": CONVERSATIONS[1], "logprobs": True, "top_logprobs": 0},
    {"messages": CONVERSATIONS[2], "temperature": 0},
    {"messages": [*HI, {"role": "assistant", "content": "jumps"}], "continue_final_message": True, "echo": True,
     "add_generation_prompt": False},
    {"messages": []},
    {"top_logprobs": 5},
    {"messages": [{"role": "user"}]},
]  # fmt: skip
TEXT_ONLY: list[dict[str, Any]] = [
    *({"prompt": prompt, "logprobs": 2} for prompt in PROMPTS),
    {"echo": True},
    {"echo": True, "logprobs": 4, "max_tokens": 0},
    {"echo": True, "logprobs": 1, "prompt": PROMPTS[2], "n": 2},
    {"prompt": PROMPTS[3], "return_token_ids": True, "return_tokens_as_token_ids": True, "logprobs": 1},
    {"prompt": ""},
    {"prompt": [5] * 5000},
    {"prompt": [999_999]},
    {"best_of": 2, "suffix": "x"},
]
REQUESTS = [
    *((CHAT, {"messages": HI} | options) for options in (*EITHER, *CHAT_ONLY)),
    *((TEXT, {"prompt": "the quick"} | options) for options in (*EITHER, *TEXT_ONLY)),
]
Servers = tuple[ServerProcess, ServerProcess]


@pytest.fixture(scope="module")
def servers(model_dir: Path) -> Iterator[Servers]:
    """The reference engine and the optimized one, in float32, where only the order of additions is left to differ."""
    options = ("--served-model-name", MODEL, "--dtype", "float32", "--tool-call-parser", "hermes")
    options = (*options, "--reasoning-parser", "qwen3", "--enable-ollama-api")
    with (
        ServerProcess(model_dir, *options, "--backend", "reference", wait=False) as reference,
        ServerProcess(model_dir, *options, "--backend", "optimized", wait=False) as optimized,
    ):
        reference.wait_healthy()
        optimized.wait_healthy()
        yield reference, optimized


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize(("path", "body"), REQUESTS, ids=lambda value: str(value)[-60:])
def test_both_engines_answer_alike(servers: Servers, path: str, body: dict[str, Any], stream: bool) -> None:
    compare(servers, path, {"max_tokens": 20, "seed": 11, "stream": stream} | body)


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
    "min_tokens": st.integers(0, 40),
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
        "thinking_token_budget": st.integers(0, 9),
    },
).map(lambda body: body | ({"tool_choice": "required"} if "tools" in body and body["seed"] % 2 else {}))
completions = of(
    {"prompt": sometimes(*PROMPTS), "seed": st.integers(-(2**63), 2**63 - 1), "max_tokens": st.integers(0, 30)}
    | STREAM,
    MORE | {"logprobs": st.integers(0, 4), "echo": st.booleans()},
)
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
).map(lambda body: body | ({"tool_choice": "required"} if "tools" in body and body["seed"] % 2 else {}))
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
DRAWN = {
    CHAT: chats,
    TEXT: completions | beams,
    "/v1/responses": responses,
    "/v1/messages": messages,
    "/v1/messages/count_tokens": counts,
    "/api/chat": ollama_chats,
    "/api/generate": ollama_texts,
}
requests = st.sampled_from(list(DRAWN)).flatmap(lambda path: st.tuples(st.just(path), DRAWN[path]))


@settings(max_examples=10 * settings().max_examples)
@given(request=requests)
def test_drawn_requests_of_all_routes_are_answered_alike(
    servers: Servers, request: tuple[str, dict[str, Any]]
) -> None:
    compare(servers, *request)


def test_the_drawn_requests_are_mostly_answered(servers: Servers) -> None:
    """What is refused says little about engines."""
    statuses: list[tuple[str, int]] = []

    @settings(max_examples=100)
    @given(request=requests)
    def collect(request: tuple[str, dict[str, Any]]) -> None:
        path, body = request
        statuses.append((path, servers[1].post(path, body).status_code))

    collect()
    for path in DRAWN:
        own = [status for other, status in statuses if other == path]
        assert own and own.count(200) > len(own) / 2, (path, own)


@pytest.mark.parametrize("data", [b"{", b"[]", b'{"messages": 1, "prompt": 1}', b"\xff"])
def test_both_refuse_alike_what_is_no_request(servers: Servers, data: bytes) -> None:
    for path in (CHAT, TEXT):
        ours, theirs = (httpx.post(server.url + path, content=data, headers=JSON, timeout=30) for server in servers)
        assert (ours.status_code, ours.json()) == (theirs.status_code, theirs.json()) and ours.status_code == 400


def test_both_describe_the_model_alike(servers: Servers) -> None:
    ours, theirs = (httpx.get(server.url + "/v1/models", timeout=30).json() for server in servers)
    for model in (*ours["data"], *theirs["data"]):
        del model["created"]
    assert ours == theirs
