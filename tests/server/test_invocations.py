"""What SageMaker calls answers as the route does that the body is for."""

from __future__ import annotations

import re
from typing import Any

import httpx
import pytest

from tests.server.process import ServerProcess, connect, eventually

CHAT, TEXT, RESPONSES = "/v1/chat/completions", "/v1/completions", "/v1/responses"
HI = [{"role": "user", "content": "hi"}]
# ids of everything, and times
_VARIES = re.compile(
    r"(?<=\")(chatcmpl|cmpl|resp|msg|rs|fc)[-_][0-9a-f]{32}|(?<=_at\":)[0-9.]+|(?<=\"created\":)[0-9]+"
    r"|(?<=\"cached_tokens\":)[0-9]+"
)
BODIES: list[tuple[str, dict[str, Any]]] = [
    (CHAT, {"messages": HI}),
    (CHAT, {"messages": HI, "prompt": "ignored", "input": "ignored"}),
    (CHAT, {"messages": HI, "n": 2, "logprobs": True}),
    (CHAT, {"messages": []}),
    (CHAT, {"messages": HI, "temperature": 3}),
    (CHAT, {"messages": HI, "model": "other"}),
    (TEXT, {"prompt": ["the", "quick"], "logprobs": 1}),
    (TEXT, {"prompt": "the", "input": "ignored", "made_up": 1}),
    (TEXT, {"prompt": [999_999]}),
    (RESPONSES, {"input": "hi", "store": False}),
    (RESPONSES, {"input": [{"type": "computer_call"}]}),
]


def essence(answer: httpx.Response) -> tuple[int, str, str | None, str]:
    headers = answer.headers
    return (
        answer.status_code,
        headers["content-type"],
        headers.get("x-tandem-ignored-fields"),
        _VARIES.sub("*", answer.text),
    )


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("path", "body"), BODIES, ids=str)
def test_it_answers_as_the_route_itself(server: ServerProcess, path: str, body: dict[str, Any], stream: bool) -> None:
    limit = {"max_output_tokens" if path == RESPONSES else "max_tokens": 1}
    body = {"temperature": 0, "stream": stream} | limit | body
    assert essence(server.post("/invocations", body)) == essence(server.post(path, body))


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"1", b"\xff", b"[" * 100_000])
def test_what_is_no_object_is_refused_as_by_the_route(server: ServerProcess, data: bytes) -> None:
    kind = {"content-type": "application/json"}
    ours, theirs = (httpx.post(server.url + path, content=data, headers=kind) for path in ("/invocations", CHAT))
    assert essence(ours) == essence(theirs) and ours.status_code == 400


def test_a_body_for_no_route_is_refused(server: ServerProcess) -> None:
    answer = server.post("/invocations", {"texts": ["a"]})
    assert answer.status_code == 400 and answer.json()["error"]["code"] == "missing_required_parameter"
    assert httpx.post(server.url + "/invocations", content=b"{}").status_code == 415


def test_clients_that_leave_take_their_request_along(server: ServerProcess) -> None:
    connection = connect(server, "/invocations", {"prompt": "the", "max_tokens": 4000, "ignore_eos": True})
    eventually(lambda: server.load()["num_requests_running"] == 1)
    connection.close()
    eventually(server.is_idle)
