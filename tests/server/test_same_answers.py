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

from tests.server.conftest import MODEL
from tests.server.drawn import CHAT, CONVERSATIONS, DRAWN, HI, PROMPTS, TEXT, TOOL, requests
from tests.server.likeness import compare
from tests.server.process import ServerProcess

JSON = {"content-type": "application/json"}
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


@pytest.mark.parametrize(("path", "body"), READS, ids=lambda value: str(value)[-60:])
def test_both_engines_read_alike(servers: Servers, path: str, body: dict[str, Any]) -> None:
    compare(servers, path, body)


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("body", TOKENS_IN_AND_OUT, ids=lambda value: str(value)[-60:])
def test_both_engines_generate_the_same_tokens(servers: Servers, body: dict[str, Any], stream: bool) -> None:
    common = {"token_ids": [5, 6, 7, 8, 300], "stream": stream}
    compare(servers, TOKENS, common | {"sampling_params": {"temperature": 0}} | body)


@settings(max_examples=10 * settings().max_examples)
@given(request=requests)
def test_drawn_requests_of_all_routes_are_answered_alike(
    servers: Servers, request: tuple[str, dict[str, Any]]
) -> None:
    compare(servers, *request)


@pytest.mark.parametrize("path", DRAWN)
def test_the_drawn_requests_are_mostly_answered(servers: Servers, path: str) -> None:
    """What is refused says little about engines."""
    statuses: list[int] = []

    @settings(max_examples=12)
    @given(body=DRAWN[path])
    def collect(body: dict[str, Any]) -> None:
        statuses.append(servers[1].post(path, body).status_code)

    collect()
    assert statuses.count(200) > len(statuses) / 2, statuses


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
