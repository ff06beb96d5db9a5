"""The same HTTP request to a server of either engine gives the same JSON.

What may differ: ids and times; ``system_fingerprint``, which names the engine; ``cached_tokens``, since the reference
engine has no prefix cache; log-probabilities in their last digits; and how a stream is cut into chunks: outputs that
a busy front process has not read yet are joined.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.equivalence.tolerances import LOGPROBS
from tests.server.conftest import MODEL
from tests.server.process import ServerProcess, events

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
    {"logprob_token_ids": [61, 5, 300, 12], "n": 2},
    {"logprob_token_ids": []},
    {"logprob_token_ids": [7, 7]},
    {"logprob_token_ids": [7, 999_999]},
    {"stream_options": {"include_usage": True, "continuous_usage_stats": True}},
    {"cache_salt": "a", "priority": 0, "user": "me"},
    {"priority": -3},
    {"an_unknown_field": 1},
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
    {"echo": True, "logprob_token_ids": [9, 8], "prompt": PROMPTS[2]},
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
SCORING, SYSTEM_ONE, DECISIONS = "/generative_scoring", "/v1/systemone", "/v1/decisions"
TEAM = {"type": "choice", "instructions": "Who?", "criteria": {"fox": "quick", "dog": None}}
TONE = {"type": "score", "criteria": ["calm", "lazy", "quick"]}
PICK = {"type": "choice", "instructions": "Who?", "choices": [{"value": "fox"}, {"value": True}]}
READS: list[tuple[str, dict[str, Any]]] = [
    (SCORING, {"query": "the quick", "items": ["fox", "dog", "東京"], "label_token_ids": [5, 300, 61]}),
    (SCORING, {"query": [7, 8], "items": [[9], [10, 11]], "label_token_ids": [5], "apply_softmax": False}),
    (SCORING, {"query": [7, 8], "items": [[9]], "label_token_ids": [999_999]}),
    (SYSTEM_ONE, {"state": {"who": "the quick brown fox"}, "questions": {"team": TEAM, "tone": TONE}}),
    (SYSTEM_ONE, {"state": "x", "questions": {"yes": {"type": "noul"}}}),
    (DECISIONS, {"input": "the lazy dog", "questions": [PICK, PICK | {"name": "again"}]}),
    (DECISIONS, {"input": "the lazy dog" * 900, "questions": [PICK]}),
]
TOKENS = "/inference/v1/generate"
TOKENS_IN_AND_OUT: list[dict[str, Any]] = [
    {},
    {"sampling_params": {"n": 3, "temperature": 1.2, "seed": 5, "logprobs": 3, "max_tokens": 20}},
    {"sampling_params": {"logprob_token_ids": [7, 260], "max_tokens": 9, "seed": 1}},
    {"sampling_params": {"stop": ["e", "o"], "max_tokens": 90, "seed": 2}},
    {"output_mode": "text", "sampling_params": {"logprobs": 1, "max_tokens": 20, "stop": "e", "seed": 3}},
    {"sampling_params": {"max_tokens": 0, "prompt_logprobs": 2}},
    {"sampling_params": {"allowed_token_ids": [7], "bad_words": ["x"], "stop_token_ids": [7], "min_tokens": 3}},
    {"priority": 3},
]
Servers = tuple[ServerProcess, ServerProcess]


@pytest.fixture(scope="module")
def servers(model_dir: Path) -> Iterator[Servers]:
    """The reference engine and the optimized one, in float32, where only the order of additions is left to differ."""
    options = ("--served-model-name", MODEL, "--dtype", "float32", "--tool-call-parser", "hermes")
    options = (*options, "--reasoning-parser", "qwen3")
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


@pytest.mark.parametrize(("path", "body"), READS, ids=lambda value: str(value)[-60:])
def test_both_engines_read_alike(servers: Servers, path: str, body: dict[str, Any]) -> None:
    compare(servers, path, body)


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("body", TOKENS_IN_AND_OUT, ids=lambda value: str(value)[-60:])
def test_both_engines_generate_the_same_tokens(servers: Servers, body: dict[str, Any], stream: bool) -> None:
    common = {"token_ids": [5, 6, 7, 8, 300], "stream": stream}
    compare(servers, TOKENS, common | {"sampling_params": {"temperature": 0}} | body)


def sometimes(*values: Any) -> st.SearchStrategy[Any]:
    return st.sampled_from(values)


bodies = st.fixed_dictionaries(
    {"seed": st.integers(-(2**63), 2**63 - 1), "max_tokens": st.integers(1, 30), "stream": st.booleans()},
    optional={
        "temperature": st.floats(0, 2),
        "top_k": sometimes(-1, 0, 1, 3, 40, 400),
        "top_p": st.floats(0, 1),
        "min_p": sometimes(0, 0.01, 0.3, 1),
        "repetition_penalty": st.floats(0.5, 2),
        "frequency_penalty": st.floats(-2, 2),
        "presence_penalty": st.floats(-2, 2),
        "logit_bias": st.dictionaries(st.integers(0, 319).map(str), st.floats(-100, 100), max_size=5),
        "allowed_token_ids": st.lists(st.integers(0, 319), min_size=1, max_size=50),
        "bad_words": st.lists(sometimes("a", "e", "the", "🎉"), max_size=2),
        "n": st.integers(1, 3),
        "min_tokens": st.integers(0, 40),
        "stop": sometimes("a", "e", ["x", "\n", "京"], "the"),
        "stop_token_ids": st.lists(st.integers(0, 319), max_size=30),
        "include_stop_str_in_output": st.booleans(),
        "ignore_eos": st.booleans(),
        "prompt_logprobs": st.integers(0, 5),
        "logprob_token_ids": st.lists(st.integers(0, 319), max_size=6, unique=True),
        "return_token_ids": st.booleans(),
        "skip_special_tokens": st.booleans(),
        "cache_salt": sometimes("a", "b"),
        "structured_outputs": sometimes(
            {"regex": "[a-z ]{3,20}[.!]"}, {"json_object": True}, {"choice": ["a", "ab"]}
        ),
        "priority": sometimes(0),
    },
)


@settings(max_examples=2 * settings().max_examples)
@given(body=bodies, prompt=sometimes(*PROMPTS, *CONVERSATIONS), logprobs=sometimes(None, None, 0, 4))
def test_drawn_requests_are_answered_alike(
    servers: Servers, body: dict[str, Any], prompt: Any, logprobs: int | None
) -> None:
    if prompt in CONVERSATIONS:
        more = {} if logprobs is None else {"logprobs": True, "top_logprobs": logprobs}
        compare(servers, CHAT, {"messages": prompt} | body | more)
    else:
        compare(servers, TEXT, {"prompt": prompt, "logprobs": logprobs} | body)


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


def compare(servers: Servers, path: str, body: dict[str, Any]) -> None:
    """Send to both; everything but what the module's text names is the same."""
    ours, theirs = (server.post(path, body) for server in servers)
    assert ours.status_code == theirs.status_code, (ours.text, theirs.text)
    for name in ("content-type", "x-tandem-ignored-fields"):
        assert ours.headers.get(name) == theirs.headers.get(name)
    assert_same(essence(ours), essence(theirs), "")


def essence(answer: httpx.Response) -> dict[str, Any]:
    """The answer, a stream joined, without what may differ."""
    whole = answer.json() if answer.headers["content-type"] == "application/json" else joined(events(answer.text))
    for name in ("id", "request_id", "created", "system_fingerprint"):
        whole.pop(name, None)
    for choice in whole["choices"] if isinstance(whole.get("choices"), list) else ():
        for call in choice.get("message", {}).get("tool_calls", ()):
            del call["id"]
    for details in ("prompt_tokens_details", "input_tokens_details"):
        whole.get("usage", {}).get(details, {}).pop("cached_tokens", None)
    return whole


def joined(stream: list[Any]) -> dict[str, Any]:
    """A stream's chunks as one object; ``done`` tells whether it was closed in order."""
    chunks = [chunk for chunk in stream if chunk != "[DONE]"]
    choices: dict[int, dict[str, Any]] = {}
    whole: dict[str, Any] = {"done": stream[-1] == "[DONE]", "choices": choices}
    for chunk in chunks:
        for choice in chunk.pop("choices", ()):
            append(choices.setdefault(choice["index"], {}), choice)
        append(whole, chunk)
    return whole


def append(whole: dict[str, Any], part: dict[str, Any]) -> None:
    """Texts and lists grow, of everything else the latest counts."""
    for name, value in part.items():
        old = whole.get(name)
        if isinstance(value, dict) and old:
            append(old, value)
        elif name == "tool_calls":
            calls = whole.setdefault(name, {})
            for call in value:
                append(calls.setdefault(call["index"], {}), {k: v for k, v in call.items() if k != "id"})
        elif isinstance(value, list) and old:
            old += value
        elif name in ("text", "content", "reasoning", "reasoning_content", "arguments") and old:
            whole[name] = old + value
        elif value is not None or name not in whole:
            whole[name] = value


def assert_same(ours: Any, theirs: Any, where: str) -> None:
    """Equal, numbers with a fraction within the tolerance of log-probabilities."""
    assert type(ours) is type(theirs), (where, ours, theirs)
    if isinstance(ours, dict):
        assert ours.keys() == theirs.keys(), where
        for name in ours:
            assert_same(ours[name], theirs[name], f"{where}.{name}")
    elif isinstance(ours, list):
        assert len(ours) == len(theirs), where
        for i, (a, b) in enumerate(zip(ours, theirs, strict=True)):
            assert_same(a, b, f"{where}[{i}]")
    elif isinstance(ours, float):
        assert abs(ours - theirs) < LOGPROBS, (where, ours, theirs)
    else:
        assert ours == theirs, where
