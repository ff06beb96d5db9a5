"""What requests for messages get wrong, and what goes wrong with them, in Anthropic's terms."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anthropic
import httpx
import pytest
from anthropic.types import (
    ErrorResponse,
    ThreadUnsupportedRequestErrorDetails,
)

from server.app import create_app
from server.config import ServerConfig
from server.routes.vendors.messages import COUNT_PARSER, FAMILY, PARSER
from server.schemas.vendors.messages import REFUSALS
from server.state import ServerState
from tandem.errors import RequestError
from tests.growth import assert_linear
from tests.server.conftest import MODEL
from tests.server.messages import (
    COUNT,
    DEMO,
    JSON,
    OSLO,
    PATH,
    RESULT,
    SUM,
    USED,
    WEATHER,
    meant,
    stream_of,
    strictly,
)
from tests.server.process import ServerProcess, connect, eventually


@pytest.fixture(scope="module")
def demo() -> Iterator[ServerProcess]:
    """The bundled model, which calls tools and thinks."""
    with ServerProcess("") as running:
        yield running


@pytest.fixture(scope="module")
def client(demo: ServerProcess) -> anthropic.Anthropic:
    return anthropic.Anthropic(base_url=demo.url, api_key="none", max_retries=0)


def refused(answer: httpx.Response, status: int, kind: str, named: str = "") -> str:
    """The message of an error, which must be of the API's shape."""
    assert answer.status_code == status, answer.text[:500]
    assert answer.headers["content-type"] == "application/json"
    body = answer.json()
    assert set(body) == {"type", "error", "request_id"} and set(body["error"]) - {"details"} == {"type", "message"}
    assert body["request_id"] == answer.headers["request-id"] and body["request_id"].startswith("req_")
    if details := body["error"].pop("details", None):  # which the types of errors leave out
        strictly(ThreadUnsupportedRequestErrorDetails, details)
    if kind != "request_too_large":  # of which the published types know nothing
        strictly(ErrorResponse, body)
    message: str = body["error"]["message"]
    assert body["error"]["type"] == kind and named in message, message
    assert message and "\n" not in message and len(message) < 5000 and "Traceback" not in message
    return message


LONG = "x" * 100_000
BIG = 10**30
NESTED = json.loads('{"a": ' * 100 + "1" + "}" * 100)
DEEP = '{"a": ' * 5000 + "1" + "}" * 5000
WRONG: dict[str, list[Any]] = {
    "model": [None, 1, [], LONG],
    "max_tokens": [None, 0, -1, "x", 1.5, True, 100_000, BIG],
    "messages": [
        None, "hi", [], {}, [1], [{"role": "user"}], [{"role": "king", "content": "a"}], [{"content": "a"}],
        [{"role": "user", "content": ""}], [{"role": "user", "content": []}], [{"role": "user", "content": 1}],
        [{"role": "user", "content": None}], [{"role": "user", "content": "a", "name": "b"}],
        [{"role": "user", "content": [{"type": "text"}]}], [{"role": "user", "content": [{"text": "a"}]}],
        [{"role": "user", "content": [{"type": "text", "text": ""}]}],
        [{"role": "user", "content": [{"type": "text", "text": "a", "made_up": 1}]}],
        [{"role": "user", "content": [{"type": "text", "text": "a", "cache_control": {"type": "made_up"}}]}],
        [{"role": "user", "content": [{"type": "image", "source": {"type": "url", "url": "http://x"}}]}],
        [{"role": "user", "content": [{"type": "document", "source": {}}]}],
        [{"role": "user", "content": [{"type": "search_result"}]}],
        [{"role": "user", "content": [{"type": "container_upload", "file_id": "x"}]}],
        [{"role": "user", "content": [{"type": "thinking", "thinking": "a", "signature": ""}]}],
        [{"role": "user", "content": [USED]}], [{"role": "user", "content": [RESULT]}],
        [*OSLO, {"role": "assistant", "content": [USED]}],
        [*OSLO, {"role": "assistant", "content": [USED]}, {"role": "user", "content": "well?"}],
        [*OSLO, {"role": "assistant", "content": [USED, USED]}, {"role": "user", "content": [RESULT]}],
        [*OSLO, {"role": "assistant", "content": [USED]}, {"role": "user", "content": [RESULT, RESULT]}],
        [*OSLO, {"role": "assistant", "content": [{**USED, "input": "a"}]}, {"role": "user", "content": [RESULT]}],
        [*OSLO, {"role": "assistant", "content": [USED]},
         {"role": "user", "content": [{**RESULT, "content": [{"type": "image"}]}]}],
        [*OSLO, {"role": "assistant", "content": [RESULT]}],
        [*OSLO, {"role": "assistant", "content": "ends in space "}],
        [*OSLO, {"role": "assistant", "content": [{"type": "thinking", "thinking": "a", "signature": ""}]}],
        [{"role": "user", "content": "word " * 3000}], [{"role": "user", "content": "\ud800"}],
        [{"role": "assistant", "content": ""}],
    ],
    "system": [1, {}, [1], [{"type": "image"}], [{"type": "text", "text": ""}]],
    "tools": [
        "x", {}, [1], [{"name": "f"}], [{"input_schema": {"type": "object"}}], [{**WEATHER, "name": "a b"}],
        [{**WEATHER, "name": ""}], [{**WEATHER, "name": LONG}], [WEATHER, WEATHER], [{**WEATHER, "input_schema": {}}],
        [{**WEATHER, "input_schema": {"type": "string"}}], [{**WEATHER, "input_schema": []}],
        [{"type": "web_search_20250305", "name": "web_search", "max_uses": 3}],
        [{"type": "bash_20250124", "name": "bash"}], [{**WEATHER, "defer_loading": True}],
        [{**WEATHER, "allowed_callers": ["code_execution_20250825"]}], [{**WEATHER, "input_examples": [{}]}],
        [{**WEATHER, "eager_input_streaming": False}], [{**WEATHER, "strict": "yes"}], [WEATHER] * 2000,
    ],
    "tool_choice": [
        "auto", 1, {"type": "auto"}, {"type": "any"}, {"type": "made_up"}, {"type": "tool", "name": "f"},
        {"type": "tool"}, {"type": "auto", "disable_parallel_tool_use": "yes"},
    ],
    "thinking": [
        1, "enabled", {"type": "enabled"}, {"type": "enabled", "budget_tokens": 1023},
        {"type": "enabled", "budget_tokens": 5000}, {"type": "enabled", "budget_tokens": "x"},
        {"type": "between_tools"}, {"type": "adaptive", "display": "loud"}, {"type": "disabled", "budget_tokens": 1},
    ],
    "output_config": [
        1, {"effort": "little"}, {"format": {}}, {"format": {"type": "json_schema"}}, {"made_up": 1},
        {"format": {"type": "json_schema", "schema": {"type": "made_up"}}}, {"format": {"type": "text"}},
        {"format": {"type": "json_schema", "schema": {"$ref": "http://x"}}},
    ],
    "cache_control": [1, {"type": "made_up"}, {"type": "ephemeral", "ttl": "1d"}],
    "stream": ["yes", 1],
    "temperature": ["warm", -0.1, 1.1, BIG, True],
    "top_p": ["x", -0.1, 1.1],
    "top_k": ["x", -1, 1.5, BIG],
    "stop_sequences": ["x", [1], [""], [" \n"], [LONG], ["x"] * 65],
    "metadata": [1, {"user_id": 1}, {"user_id": LONG}, {"made_up": 1}],
    "service_tier": [1, "priority"],
    "seed": ["x", 1.5, BIG],
}  # fmt: skip
CASES = [
    pytest.param(path, field, value, id=f"{path}-{field}-{str(value)[:40]}")
    for path, parser in ((PATH, PARSER), (COUNT, COUNT_PARSER))
    for field in parser.struct.__struct_fields__
    for value in WRONG[field]
]


@pytest.mark.parametrize(("path", "field", "value"), CASES)
def test_a_wrong_value_is_refused_by_name(demo: ServerProcess, path: str, field: str, value: Any) -> None:
    body = {"model": DEMO, "messages": SUM} | ({"max_tokens": 4} if path == PATH else {})
    answer = httpx.post(demo.url + path, content=json.dumps(body | {field: value}), headers=JSON, timeout=30)
    if path == COUNT and (
        value == [{"role": "user", "content": "word " * 3000}]
        or field == "output_config"
        and "json_schema" in str(value)
        and "schema" in value["format"]
        or field == "thinking"
        and value == {"type": "enabled", "budget_tokens": 5000}
    ):
        assert answer.status_code == 200, "it is no more than counted"
        return
    named = "body is not valid JSON" if "\ud800" in json.dumps(value, ensure_ascii=False) else field
    message = refused(answer, 400, "invalid_request_error", "")
    assert named in message, message


@pytest.mark.parametrize("name", REFUSALS)
def test_what_cannot_be_honoured_is_refused_by_name(demo: ServerProcess, name: str) -> None:
    body = {"model": DEMO, "messages": SUM, "max_tokens": 1}
    refused(demo.post(PATH, body | {name: {"id": "x"}}), 400, "invalid_request_error", name)
    for value in (None, *REFUSALS[name][1]):
        assert demo.post(PATH, body | {name: value}).status_code == 200


def test_a_refused_thread_says_so_to_tool_runners(demo: ServerProcess) -> None:
    """They then send the whole conversation; a thread that is ignored loses all of it but the last turn."""
    body = {"model": DEMO, "messages": SUM, "max_tokens": 1}
    for thread in ({"type": "create"}, {"type": "continue", "previous_message_id": "msg_1"}):
        answer = demo.post(PATH, body | {"thread": thread})
        refused(answer, 400, "invalid_request_error", "thread")
        assert answer.json()["error"]["details"] == {"error_code": "thread_unsupported_request"}
    assert "details" not in demo.post(PATH, body | {"container": "x"}).json()["error"]


def test_refusals_say_what_is_meant(demo: ServerProcess) -> None:
    body = {"model": DEMO, "messages": SUM, "max_tokens": 1}

    def message(**fields: Any) -> str:
        return refused(demo.post(PATH, body | fields), 400, "invalid_request_error")

    image = [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "image"}]}]
    assert message(messages=image) == "messages[0].content[1]: this model reads text, no image"
    search = [WEATHER, {"type": "web_search_20250305", "name": "web_search"}]
    assert message(tools=search).startswith("tools[1].type: 'web_search_20250305'")
    assert "thinking.budget_tokens" in message(thinking={"type": "enabled", "budget_tokens": 2000})
    unknown = {**WEATHER, "input_schema": {"type": "object", "properties": {"a": {"type": "made_up"}}}}
    choice = {"type": "any"}
    assert "tools" in message(tools=[unknown], tool_choice=choice)


def test_unknown_fields_are_ignored_and_named(demo: ServerProcess) -> None:
    for path in (PATH, COUNT):
        body = {"model": DEMO, "messages": SUM, "max_tokens": 1, "made_up": 1}
        names = demo.post(path, body).headers["x-tandem-ignored-fields"]
        assert names == ("made_up" if path == PATH else "max_tokens, made_up")


def test_null_means_not_given(demo: ServerProcess) -> None:
    body = dict.fromkeys(PARSER.struct.__struct_fields__) | {"model": DEMO, "messages": SUM, "max_tokens": 1}
    assert demo.post(PATH, body).status_code == 200


@pytest.mark.parametrize("path", [PATH, COUNT])
@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"nonsense", b"[]", b"null", b'{"a": NaN}', b'{"model": "\xff"}', b"[" * 100_000, DEEP.encode()],
)
def test_broken_json(demo: ServerProcess, path: str, body: bytes) -> None:
    answer = httpx.post(demo.url + path, content=body, headers=JSON)
    refused(answer, 400, "invalid_request_error")


@pytest.mark.parametrize("depth", [100, 900, 5000])
def test_deep_inputs_do_no_harm(demo: ServerProcess, depth: int) -> None:
    nested = '{"a": ' * depth + "1" + "}" * depth
    turns = json.dumps([*OSLO, {"role": "assistant", "content": [{**USED, "input": {"x": 0}}]},
                        {"role": "user", "content": [RESULT]}]).replace('{"x": 0}', nested)  # fmt: skip
    tools = json.dumps([{**WEATHER, "input_schema": {"type": "object", "default": {"x": 0}}}])
    for field, text in (("messages", turns), ("tools", tools.replace('{"x": 0}', nested))):
        rest = f'"messages": {json.dumps(SUM)}, ' if field == "tools" else ""
        data = f'{{"model": "{DEMO}", "max_tokens": 1, {rest}"{field}": {text}}}'
        answer = httpx.post(demo.url + PATH, content=data, headers=JSON, timeout=60)
        assert answer.status_code in (200, 400), answer.text
    assert demo.health()[0] == 200


def test_many_turns_and_blocks_are_bounded(demo: ServerProcess) -> None:
    body = {"model": DEMO, "max_tokens": 1}
    for turns in (
        [{"role": "user", "content": "a"}] * 70_000,
        [{"role": "user", "content": [{"type": "text", "text": "a"}] * 100_000}],
        [{"role": role, "content": "a"} for role in ("user", "assistant") * 30_000],
    ):
        refused(demo.post(PATH, body | {"messages": turns}), 400, "invalid_request_error", "")
    assert demo.post(PATH, body | {"messages": SUM}).status_code == 200


def test_errors_have_their_classes(client: anthropic.Anthropic, demo: ServerProcess, guarded: ServerProcess) -> None:
    options: Any = {"model": DEMO, "max_tokens": 4, "messages": SUM}
    with pytest.raises(anthropic.NotFoundError) as unknown:
        client.messages.create(**options | {"model": "claude"})
    assert unknown.value.request_id is not None
    with pytest.raises(anthropic.BadRequestError, match="max_tokens"):
        client.messages.create(**options | {"max_tokens": 9000})
    with pytest.raises(anthropic.AuthenticationError):
        anthropic.Anthropic(base_url=guarded.url, api_key="wrong", max_retries=0).messages.create(**options)
    known = anthropic.Anthropic(base_url=guarded.url, api_key="second-key", max_retries=0)
    assert known.messages.create(**options | {"model": MODEL}).usage.output_tokens
    token = anthropic.Anthropic(base_url=guarded.url, auth_token="first-key", max_retries=0)
    assert token.messages.create(**options | {"model": MODEL}).usage.output_tokens


def test_errors_before_the_route_are_of_the_same_shape(demo: ServerProcess, guarded: ServerProcess) -> None:
    url = demo.url
    refused(httpx.get(url + PATH), 405, "invalid_request_error", "GET")
    refused(httpx.post(url + "/v1/messages/batches", json={}), 404, "not_found_error", "/v1/messages/batches")
    refused(httpx.post(url + "/v1/messages/", json={}), 404, "not_found_error")
    refused(
        httpx.post(url + PATH, content="{}", headers={"content-type": "text/plain"}), 415, "invalid_request_error"
    )
    refused(httpx.post(guarded.url + PATH, json={}), 401, "authentication_error")
    refused(httpx.post(guarded.url + COUNT, json={}, headers={"x-api-key": "no"}), 401, "authentication_error")
    large = b'{"model": "' + b"x" * 2**25 + b'"}'
    refused(httpx.post(url + PATH, content=large, headers=JSON), 413, "request_too_large")
    assert (
        "error" in httpx.post(url + "/v1/messagesx", json={}).json() and "type" not in httpx.get(url + "/v1").json()
    )


def test_a_full_server_says_when_to_come_back(model_dir: Path) -> None:
    options = ("--served-model-name", MODEL, "--max-num-queued-reqs", "1", "--root-path", "/root")
    with ServerProcess(model_dir, *options) as small:
        body = {"model": MODEL, "messages": SUM, "max_tokens": 3900, "output_config": ENDLESS, "stream": True}
        with connect(small, PATH, body):
            eventually(lambda: small.load()["num_requests_running"] == 1)
            for prefix in ("", "/root"):
                answer = small.post(prefix + PATH, body)
                refused(answer, 429, "rate_limit_error")
                assert int(answer.headers["retry-after"]) > 0
        eventually(small.is_idle)
        assert small.post("/root" + PATH, body | {"max_tokens": 1}).status_code == 200
    with ServerProcess(model_dir, "--served-model-name", MODEL, wait=False) as loading:
        answer = loading.post(PATH, body)
        if answer.status_code != 200:  # it may be quick
            refused(answer, 503, "overloaded_error")
            assert int(answer.headers["retry-after"]) > 0


ENDLESS = {"format": {"type": "json_schema", "schema": {"type": "string", "minLength": 3500}}}


def test_an_error_in_mid_stream_is_an_event(model_dir: Path) -> None:
    with ServerProcess(model_dir, "--served-model-name", MODEL) as server:
        client = anthropic.Anthropic(base_url=server.url, api_key="none", max_retries=0)
        options: Any = {"model": MODEL, "max_tokens": 3900, "messages": SUM, "output_config": ENDLESS}
        with pytest.raises(anthropic.APIStatusError, match="SIGKILL"):
            for i, _ in enumerate(client.messages.create(**options, stream=True)):
                if i == 3:
                    server.worker.send_signal(signal.SIGKILL)
        body = options | {"stream": True}
        server.wait_healthy()
        with httpx.stream("POST", server.url + PATH, json=body, timeout=60) as answer:
            parts = answer.iter_text()
            text = next(parts)
            server.worker.send_signal(signal.SIGKILL)
            text += "".join(parts)
        *before, last = stream_of(text)
        assert before[0]["type"] == "message_start" and last["type"] == "error"
        assert last["error"]["type"] == "overloaded_error" and "SIGKILL" in last["error"]["message"]


def test_an_unforeseen_error_tells_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    async def broken(*_: Any) -> None:
        raise ValueError("a secret of ours")

    monkeypatch.setattr(type(FAMILY), "respond", broken)
    app = create_app(ServerState(ServerConfig()))

    async def ask() -> httpx.Response:
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://x") as client:
            return await client.post(PATH, json={})

    assert refused(asyncio.run(ask()), 500, "api_error") == "internal error"


def test_a_client_that_leaves_frees_everything(server: ServerProcess) -> None:
    body = {"model": MODEL, "max_tokens": 3900, "messages": SUM, "output_config": ENDLESS}
    for stream in (False, True):
        with connect(server, PATH, body | {"stream": stream}):
            eventually(lambda: server.load()["num_requests_running"] == 1)
        eventually(server.is_idle)


def test_budgets_need_a_known_format_of_thoughts(server: ServerProcess) -> None:
    thinking = {"type": "enabled", "budget_tokens": 1024}
    body = {"model": MODEL, "max_tokens": 1100, "messages": SUM}
    answer = server.post(PATH, body | {"thinking": thinking})
    refused(answer, 400, "invalid_request_error", "thinking.budget_tokens")
    refused(server.post(PATH, body | {"tools": [WEATHER]}), 400, "invalid_request_error", "tools")


def test_many_turns_of_one_role_are_joined_in_linear_time() -> None:
    def join(turns: int) -> None:
        (message,) = meant(messages=[{"role": "user", "content": "a"}] * turns).messages
        assert len(message.content) == turns

    assert_linear(join, 60_000)


def test_errors_of_chat_are_told_in_own_terms() -> None:
    with pytest.raises(RequestError) as error:
        meant(messages=[{"role": "assistant", "content": ""}])
    assert error.value.param == "messages"
