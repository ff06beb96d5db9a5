"""Every field of every route, set wrongly: the right status in the right shape, the field named, and no harm done."""

from __future__ import annotations

import asyncio
import json
import re
from typing import Any

import httpx
import pytest

from server.app import create_app
from server.config import ServerConfig
from server.routes.openai.chat import PARSER as CHAT
from server.routes.openai.completions import PARSER as COMPLETIONS
from server.routes.openai.decisions import DECISIONS_PARSER, SCORING_PARSER, SYSTEM_ONE_PARSER
from server.routes.tokens import DETOKENIZE, TOKENIZE
from server.routes.vendors.token_generation import PARSER as TOKENS
from server.schemas.unsupported import UNSUPPORTED
from server.state import ServerState
from tests.server.conftest import MODEL
from tests.server.process import ServerProcess, raw

SCALE: dict[str, Any] = {"type": "score", "criteria": ["low", "high"]}
SCALE_LEVELS: dict[str, Any] = {"type": "score", "instructions": "x", "levels": [{"label": "a"}, {"label": "b"}]}
VALID: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"model": MODEL, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 1},
    "/v1/completions": {"model": MODEL, "prompt": "hi", "max_tokens": 1},
    "/tokenize": {"model": MODEL, "prompt": "hi"},
    "/detokenize": {"model": MODEL, "tokens": [1]},
    "/generative_scoring": {"model": MODEL, "query": "a", "items": ["b"], "label_token_ids": [5]},
    "/v1/systemone": {"model": MODEL, "state": "a", "questions": {"q": SCALE}},
    "/inference/v1/generate": {"model": MODEL, "token_ids": [5, 6], "sampling_params": {"max_tokens": 1}},
    "/v1/decisions": {"model": MODEL, "input": "a", "questions": [SCALE_LEVELS]},
}
PARSERS = {
    "/v1/chat/completions": CHAT,
    "/v1/completions": COMPLETIONS,
    "/tokenize": TOKENIZE,
    "/detokenize": DETOKENIZE,
    "/generative_scoring": SCORING_PARSER,
    "/v1/systemone": SYSTEM_ONE_PARSER,
    "/v1/decisions": DECISIONS_PARSER,
    "/inference/v1/generate": TOKENS,
}
GENERATING = ("/v1/chat/completions", "/v1/completions")
BIG = 10**30
NESTED = '{"a": ' * 5000 + "1" + "}" * 5000
LONG = "x" * 100_000
TOOL = {"type": "function", "function": {"name": "f"}}
CHAINED = "start: r0\n" + "".join(f'r{i}: "a" r{i + 1} | "b"\n' for i in range(5000)) + 'r5000: "z"'
# values of which each is wrong for that field, wherever it occurs
WRONG: dict[str, list[Any]] = {
    "model": [1, [], {}, LONG],
    "stream": ["yes", 1, []],
    "stream_options": [
        1, "usage", {"include_usage": "yes"}, {"continuous_usage_stats": 1}, {"include_obfuscation": True},
        {"made_up": None},
    ],
    "temperature": ["warm", -0.1, 2.1, BIG, [], True, {}],
    "top_p": ["x", -0.1, 1.1, BIG],
    "top_k": ["x", -2, 1.5, BIG, True],
    "min_p": [-0.1, 1.1, "x"],
    "repetition_penalty": [0, -1, 101, "x"],
    "frequency_penalty": [-2.1, 2.1, "x"],
    "presence_penalty": [-2.1, 2.1, "x"],
    "logit_bias": [[], {"a": 1}, {"1": 101}, {"1": -101}, {"1": "x"}, {"-1": 1}, {"999999": 1}, {str(BIG): 1}],
    "allowed_token_ids": [1, [], ["a"], [-1], [999_999], [BIG]],
    "bad_words": ["x", [1], [""], ["x"] * 2000, [LONG]],
    "seed": ["x", 1.5, BIG, -BIG, True],
    "n": [0, -1, 129, "x", 1.5, True, BIG],
    "use_beam_search": ["yes", 1],
    "length_penalty": ["x", 11, 2.0],
    "min_tokens": [-1, "x", 5, BIG],
    "max_tokens": [-1, "x", 1.5, 100_000, BIG],
    "max_completion_tokens": [0, -1, "x", 100_000, BIG],
    "stop": [1, [1], "", [""], list("abcde"), LONG, [LONG]],
    "stop_token_ids": ["x", ["x"], [-1], [999_999], [BIG]],
    "include_stop_str_in_output": ["yes", 1],
    "ignore_eos": ["yes", 1],
    "prompt_logprobs": [-1, 21, "x", True],
    "logprob_token_ids": [1, ["x"], [-1], [999_999], [BIG], [7, 7], list(range(129))],
    "return_token_ids": ["yes", 1],
    "return_tokens_as_token_ids": ["yes", 1],
    "skip_special_tokens": ["yes", 1],
    "spaces_between_special_tokens": ["yes", 1],
    "add_special_tokens": ["yes", 1],
    "truncate_prompt_tokens": [-2, "x", BIG],
    "truncation_side": ["middle", 1],
    "echo": ["yes", 1],
    "priority": ["x", 1.5, BIG, 1, -1],
    "request_id": [1, "", "a b", "a\r\nb", "é", "x" * 129],
    "cache_salt": [1, "", LONG],
    "user": [1, LONG],
    "metadata": ["x", {"k": 1}, {"k": LONG}, {LONG: "v"}, {str(i): "v" for i in range(17)}],
    "service_tier": [1, LONG, "flex", "priority"],
    "safety_identifier": [1, LONG],
    "prompt_cache_key": [1, LONG],
    "prompt_cache_retention": [1, LONG],
    "messages": [
        "hi", [], [1], {}, [{"content": "hi"}], [{"role": "king", "content": "hi"}], [{"role": 1, "content": "hi"}],
        [{"role": "user"}], [{"role": "user", "content": None}], [{"role": "assistant", "content": None}],
        [{"role": "user", "content": 1}], [{"role": "user", "content": [1]}],
        [{"role": "user", "content": [{"type": "text"}]}],
        [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://x"}}]}],
        [{"role": "user", "content": "hi", "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]}],
        [{"role": "assistant", "tool_calls": [{"function": {"arguments": "{}"}}]}],
        [{"role": "user", "content": "hi", "name": 1}], [{"role": "tool", "content": "x", "tool_call_id": 1}],
        [{"role": "user", "content": "hi", "made_up": 1}], [{"role": "user", "content": "hi", "audio": {"id": "x"}}],
        [{"role": "user", "content": [{"type": "text", "text": "hi", "made_up": 1}]}],
        [{"role": "user", "content": "hi", "function_call": {"name": "f", "arguments": "{}"}}],
        [{"role": "assistant", "function_call": {"name": "f", "arguments": "{}", "made_up": 1}}],
        [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{}"}, "made_up": 1}]}],
        [{"role": "tool", "content": "x"}], [{"role": "user", "content": []}],
    ],
    "top_logprobs": [-1, 21, "x", 1.5, True],
    "parallel_tool_calls": ["yes"],
    "include_reasoning": ["yes"],
    "add_generation_prompt": ["yes", 1],
    "continue_final_message": ["yes", 1],
    "documents": ["x", [1]],
    "chat_template": [1, "{{ messages }}", "{% broken"],
    "chat_template_kwargs": ["x", {"messages": []}, {"tools": []}, {str(i): 1 for i in range(65)}],
    "best_of": [-1, 3, "x", 129],
    "suffix": [1, [], "x"],
    "response_format": [
        "json", {}, {"type": "yaml"}, {"type": "json_schema"}, {"type": "json_schema", "json_schema": {}},
        {"type": "json_schema", "json_schema": {"name": "a b", "schema": {}}}, {"type": "json_object", "made_up": 1},
        {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "strange"}}},
        {"type": "json_schema", "json_schema": {"name": "x", "schema": {"not": {}}}},
        {"type": "json_schema", "json_schema": {"name": "x", "schema": {"$ref": "#/nowhere"}}},
        {"type": "json_schema", "json_schema": {"name": "x", "schema": {"enum": [LONG] * 6}}},
        {"type": "structural_tag", "structures": [], "triggers": []},
        {"type": "structural_tag", "structures": [{"begin": "<a>", "end": "</a>"}], "triggers": ["<b"]},
    ],
    "structured_outputs": [
        1, {}, {"regex": "a", "choice": ["b"]}, {"regex": "("}, {"regex": 1}, {"choice": []}, {"choice": "yes"},
        {"grammar": "start: x"}, {"grammar": "¿"}, {"json": 1}, {"json": "{broken"}, {"made_up": 1},
        {"json_object": False}, {"structural_tag": {}}, {"json": {}, "whitespace_pattern": "("}, {"regex": LONG * 6},
        {"grammar": CHAINED},
    ],
    "guided_json": [1, "{broken", {"type": "strange"}],
    "guided_regex": [1, "", "[", LONG * 6],
    "guided_choice": ["yes", [], [1]],
    "guided_grammar": [1, "", "start: x", CHAINED],
    "guided_whitespace_pattern": [1, ""],
    "guided_decoding_backend": [1, "outlines"],
    "tools": [
        "f", [1], [{}], [{"type": "web_search"}], [{"type": "function"}], [{"type": "function", "function": {}}],
        [{"type": "function", "function": {"name": "a b"}}], [{"type": "function", "function": {"name": LONG}}],
        [{"type": "function", "function": {"name": "f", "parameters": 1}}], [TOOL] * 2, [TOOL],
    ],
    "tool_choice": [
        "maybe", 1, {}, {"type": "function"}, "required", {"type": "function", "function": {"name": "f"}},
    ],
    "reasoning_effort": [1, LONG],
    "thinking_token_budget": [-1, "x", 1.5, 5],
    "tokens": ["x", ["x"], [-1], [999_999], None],
    "token_ids": [None, 1, "a", [], ["a"], [-1], [999_999], [BIG], [5] * 4097],
    "output_mode": [1, "words"],
    "sampling_params": [
        1, [], {"made_up": 1}, {"temperature": 3}, {"temperature": "x"}, {"n": 0}, {"stop": list("abcde")},
        {"logprobs": 21}, {"prompt_logprobs": 21}, {"logit_bias": {"999999": 1}}, {"max_tokens": 100_000},
        {"min_tokens": 99}, {"structured_outputs": {}}, {"structured_outputs": {"regex": "("}},
    ],
    "query": [None, 1, {}, ["a"], [-1], [999_999], [BIG]],
    "items": [None, 1, "a", [], [1], [{}], ["a", [1]], [[999_999]], ["a"] * 2049],
    "label_token_ids": [None, 1, [], ["a"], [-1], [999_999], [BIG], [7, 7], list(range(129))],
    "apply_softmax": ["yes", 1],
    "item_first": ["yes", 1],
    "state": [None, "fox " * 5000],
    "input": [None, 1, {}, [1], [{}], [{"role": "king", "content": "a"}], [{"type": "computer_call"}], []],
    "instructions": [1, {}, []],
    "return_token_strs": ["yes", 1],
}  # fmt: skip
ONLY: dict[tuple[str, str], list[Any]] = {
    ("/v1/chat/completions", "logprobs"): [1, "yes"],
    ("/v1/completions", "logprobs"): [-1, 21, "x", True],
    ("/v1/completions", "prompt"): [
        None, 1, {}, [], [[]], [1, "a"], ["a", 1], ["a", [1]], [1.5], [[1, "a"]], [-1], [999_999], [BIG],
        ["a"] * 2049, [5] * 4097,
    ],
    ("/tokenize", "prompt"): [1, [], ["a"]],
    ("/v1/systemone", "questions"): [
        None, 1, [], {}, {"": SCALE}, {"q": 1}, {"q": {}}, {"q": SCALE | {"type": "box"}},
        {"q": SCALE | {"made_up": 1}}, {"q": SCALE | {"criteria": None}}, {LONG: SCALE},
        {str(i): SCALE for i in range(65)},
    ],
    ("/v1/decisions", "questions"): [
        None, 1, {}, [], [1], [{}], [SCALE_LEVELS | {"type": "box"}], [SCALE_LEVELS | {"made_up": 1}],
        [SCALE_LEVELS | {"levels": []}], [SCALE_LEVELS | {"instructions": None}], [SCALE_LEVELS] * 401,
    ],
    ("/tokenize", "tools"): ["f", [1], [{}], [{"type": "function", "function": {"name": "a b"}}]],
}  # fmt: skip
BESIDE = {"top_logprobs": {"logprobs": True}, "continue_final_message": {"add_generation_prompt": True}}


def cases() -> list[Any]:
    found = []
    for path, parser in PARSERS.items():
        for field in parser.struct.__struct_fields__:
            values = ONLY.get((path, field)) or WRONG.get(field)
            assert values, f"no wrong value for {field} of {path}"
            found += [pytest.param(path, field, value, id=f"{path}-{field}-{str(value)[:30]}") for value in values]
    return found


def check(answer: httpx.Response, status: int, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    """The error of an answer, which must be of OpenAI's shape and tell nothing of our insides."""
    assert answer.status_code == status, answer.text[:500]
    assert answer.headers["content-type"] == "application/json"
    body = answer.json()
    assert set(body) == {"error"} and set(body["error"]) == {"message", "type", "param", "code"}
    error: dict[str, Any] = body["error"]
    assert error["message"] and "\n" not in error["message"] and len(error["message"]) < 5000
    assert not re.search(r"Traceback|site-packages|\.py|0x[0-9a-f]{6}|\$\.", error["message"])
    assert error["type"] == ("server_error" if status >= 500 else "invalid_request_error")
    assert isinstance(error["code"], str)
    if param is not None:
        assert error["param"] is not None and re.fullmatch(rf"{param}([.\[].*)?", error["param"]), error
    if code is not None:
        assert error["code"] == code, error
    return error


@pytest.fixture(scope="module")
def http(server: ServerProcess) -> Any:
    with httpx.Client(base_url=server.url, timeout=30) as client:
        yield client
        for path, body in VALID.items():
            assert client.post(path, json=body).status_code == 200


@pytest.mark.parametrize(("path", "field", "value"), cases())
def test_a_wrong_value_is_refused_by_name(http: httpx.Client, path: str, field: str, value: Any) -> None:
    body = VALID[path] | BESIDE.get(field, {})
    if path == "/tokenize" and field in ("messages", "chat_template", "chat_template_kwargs", "documents"):
        body = {"messages": VALID["/v1/chat/completions"]["messages"]}
    if field == "min_tokens" and value == 5:
        body = body | {"max_tokens": 4}
    if field == "continue_final_message":
        body = body | {"add_generation_prompt": True}
    answer = http.post(path, json=body | {field: value})
    if field == "model" and value == LONG:
        check(answer, 400, "model")
        return
    named = {"min_tokens": "min_tokens|max_tokens"}.get(field, field)
    check(answer, 400, f"({named})")


@pytest.mark.parametrize("path", VALID)
@pytest.mark.parametrize(
    "body",
    [
        b"", b"{", b"nonsense", b'{"a": NaN}', b'{"model": "\xff"}', b"[" * 100_000,
        b'{"a": ' * 50_000 + b"1" + b"}" * 50_000,
        b'{"model": 1e999}', b'{"a": "\\ud800"}', b'{"a": 1} x', b"\x00",
        b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    ],
    ids=lambda body: str(body[:12]),
)  # fmt: skip
def test_broken_json(http: httpx.Client, path: str, body: bytes) -> None:
    answer = http.post(path, content=body, headers={"content-type": "application/json"})
    error = check(answer, 400)
    assert error["code"] == "invalid_json" or body[:1] == b"[" or error["param"] == "model"


@pytest.mark.parametrize("path", VALID)
@pytest.mark.parametrize("body", [[], 1, "text", None, {}])
def test_json_of_the_wrong_shape(http: httpx.Client, path: str, body: Any) -> None:
    answer = http.post(path, content=json.dumps(body), headers={"content-type": "application/json"})
    error = check(answer, 400)
    assert error["code"] == ("missing_required_parameter" if body == {} else "invalid_type")


def test_codes_and_paths_name_what_is_wrong(http: httpx.Client) -> None:
    chat = "/v1/chat/completions"
    for messages, param, code in (
        ([{"role": 1}], "messages[0].role", "invalid_type"),
        ([{"role": "king"}], "messages[0].role", "invalid_value"),
        ([{"role": "user", "content": "a"}, {"content": "b"}], "messages[1].role", "missing_required_parameter"),
        ([{"role": "user"}], "messages[0].content", "missing_required_parameter"),
        ([], "messages", "invalid_value"),
        ([{"role": "user", "content": "word " * 5000}], "messages", "context_length_exceeded"),
    ):
        error = check(http.post(chat, json={"messages": messages}), 400, code=code)
        assert error["param"] == param
    check(http.post(chat, json={}), 400, "messages", "missing_required_parameter")
    check(http.post("/detokenize", json={}), 400, "tokens", "missing_required_parameter")
    check(http.post("/tokenize", json={"prompt": "a", "messages": []}), 400, "(prompt|messages)")
    check(http.post(chat, json=VALID[chat] | {"top_logprobs": 2}), 400, "top_logprobs", "invalid_value")
    for path in GENERATING:
        body = VALID[path] | {"stream": True, "prompt_logprobs": 1}
        check(http.post(path, json=body), 400, "prompt_logprobs")
        check(http.post(path, json=VALID[path] | {"stream_options": {}}), 400, "stream_options")


@pytest.mark.parametrize(
    ("path", "name"),
    [(p, name) for p in GENERATING for name in UNSUPPORTED if name not in PARSERS[p].struct.__struct_fields__],
)
def test_what_cannot_be_honoured_is_refused(http: httpx.Client, path: str, name: str) -> None:
    for value in ({"type": "json_object"}, [{"type": "function"}], "high", 7):
        check(http.post(path, json=VALID[path] | {name: value}), 400, name, "unsupported_parameter")
    for value in (None, *UNSUPPORTED[name][1]):
        assert http.post(path, json=VALID[path] | {name: value}).status_code == 200


@pytest.mark.parametrize("path", GENERATING)
def test_null_means_not_given(http: httpx.Client, path: str) -> None:
    nulls = dict.fromkeys(PARSERS[path].struct.__struct_fields__) | VALID[path]
    assert http.post(path, json=nulls).status_code == 200


@pytest.mark.parametrize("path", VALID)
def test_unknown_fields_are_ignored_and_named(http: httpx.Client, path: str) -> None:
    answer = http.post(path, json=VALID[path] | {"made_up": 1, "naïve\r\nname": 2})
    assert answer.status_code == 200
    assert answer.headers["x-tandem-ignored-fields"] == "made_up, na%C3%AFve%0D%0Aname"
    assert "x-tandem-ignored-fields" not in http.post(path, json=VALID[path]).headers


@pytest.mark.parametrize("path", VALID)
def test_unknown_models(http: httpx.Client, path: str) -> None:
    check(http.post(path, json=VALID[path] | {"model": "other"}), 404, "model", "model_not_found")
    check(http.post(path, json=VALID[path] | {"model": ""}), 404, "model", "model_not_found")


@pytest.mark.parametrize("path", VALID)
def test_content_types(http: httpx.Client, path: str) -> None:
    body = json.dumps(VALID[path])
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "json", ""):
        answer = http.post(path, content=body, headers={"content-type": kind})
        check(answer, 415, code="unsupported_media_type")
    for kind in ("application/json; charset=utf-8", "Application/JSON", "application/problem+json"):
        assert http.post(path, content=body, headers={"content-type": kind}).status_code == 200


def test_unknown_routes_and_methods(http: httpx.Client) -> None:
    for path in (
        "/v1",
        "/v1/chat",
        "/v1/completions/",
        "//v1/models",
        "/v1/embeddings",
        "/%00",
        "/../etc/passwd",
    ):
        check(http.get(path), 404, code="unknown_url")
    check(http.get("/v1/completions"), 405, code="method_not_allowed")
    check(http.post("/v1/models"), 405, code="method_not_allowed")
    check(http.delete("/health"), 405, code="method_not_allowed")


def test_large_bodies(http: httpx.Client, server: ServerProcess) -> None:
    path, size = "/v1/completions", 32 * 2**20
    large = b'{"prompt": "' + b"x" * size + b'"}'
    check(http.post(path, content=large, headers={"content-type": "application/json"}), 413, code="request_too_large")

    def chunks() -> Any:
        for _ in range(33):
            yield b"x" * 2**20

    check(
        http.post(path, content=chunks(), headers={"content-type": "application/json"}), 413, code="request_too_large"
    )
    lie = b"POST %b HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % (
        path.encode(),
        10**12,
    )
    assert raw(server, lie + b"{}").startswith(b"HTTP/1.1 413")


def test_bytes_that_are_no_http(server: ServerProcess, http: httpx.Client) -> None:
    for data in (
        b"\x00\x01\x02\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\ncontent-length: x\r\n\r\n",
    ):
        assert raw(server, data).startswith(b"HTTP/1.1 400")
    raw(server, b"GET /health HTTP/1.1\r\nhost: x\r\nx: " + b"y" * 2**17 + b"\r\nconnection: close\r\n\r\n")
    assert http.get("/health").status_code == 200


def test_too_many_choices_at_once(http: httpx.Client) -> None:
    body = VALID["/v1/completions"] | {"prompt": ["a"] * 33, "n": 128}
    check(http.post("/v1/completions", json=body), 400, "n")


def test_an_unforeseen_error_tells_nothing() -> None:
    app = create_app(ServerState(ServerConfig()))

    @app.get("/broken")
    async def broken() -> None:
        raise ValueError("a secret of ours")

    async def ask() -> httpx.Response:
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://x") as client:
            return await client.get("/broken")

    assert check(asyncio.run(ask()), 500, code="internal_error")["message"] == "internal error"
