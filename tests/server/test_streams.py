"""Streams that say nothing, that nobody reads, that fail on the way; and generations that outlive a connection."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import time
from pathlib import Path
from typing import Any

import pytest

from server.config import ServerConfig
from server.errors import ApiError
from server.http import streaming
from server.http.streaming import EventStream
from server.intake.pool import WorkPool
from server.state import ServerState
from tandem.events import TextDelta
from tandem.generation.decoding import Choices
from tandem.generation.generation import Generation
from tests.server.process import ENDLESS, ServerProcess, events, eventually, send
from tests.server.test_metrics import scrape
from tests.unit.test_detokenizer import BYTE_LEVEL
from tests.unit.test_generation import Scripted, output, requests


class Plain:
    """A dialect with nothing in it but text."""

    def begin(self) -> bytes:
        return b"[begin]"

    def size(self, events: Any) -> int:
        return 0

    def events(self, events: Any) -> bytes:
        return "".join(event.text for event in events if isinstance(event, TextDelta)).encode()

    def end(self) -> bytes:
        return b"[end]"

    def error(self, error: ApiError) -> bytes:
        return b"[error %b]" % error.code.encode()

    def whole(self, answer: Any) -> bytes:
        raise NotImplementedError


class Slow(Scripted):
    """Waits for a while before each output."""

    pause = 0.25


def streamed(stream: Any) -> list[bytes]:
    """The bodies that a client of this stream is sent, one a write."""

    async def run() -> list[bytes]:
        sent: list[bytes] = []
        pool = WorkPool()
        generation = Generation(stream, Choices(BYTE_LEVEL, requests()), lambda events: None)

        async def send_one(message: Any) -> None:
            sent.append(message.get("body", b""))

        response = await EventStream(generation, Plain(), pool, {}).wait()
        await response({"type": "http"}, asyncio.Event().wait, send_one)  # type: ignore[arg-type]
        pool.close()
        return [data for data in sent if data]

    return asyncio.run(run())


def test_a_silent_stream_says_that_it_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streaming, "SILENCE_SECONDS", 0.1)
    sent = streamed(Slow([[output("0-0", "a")], [output("0-0", "b", finish_reason="length")]]))
    comment = b": waiting\n\n"
    assert [data for data in sent if data != comment] == [b"[begin]", b"a", b"b", b"[end]"]
    assert sent.count(comment) >= 2 and comment in sent[: sent.index(b"a")], "before the first token, and between"


def test_a_busy_stream_says_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streaming, "SILENCE_SECONDS", 0.4)
    script = [[output("0-0", "x")] for _ in range(3)]
    assert streamed(Slow([*script, [output("0-0", "y", finish_reason="length")]])) == [
        b"[begin]", b"x", b"x", b"x", b"y", b"[end]",
    ]  # fmt: skip


def test_an_error_on_the_way_is_the_last_event() -> None:
    assert streamed(Scripted([[output("0-0", "a")], ValueError("a secret")])) == [
        b"[begin]", b"a", b"[error internal_error]",
    ]  # fmt: skip


def test_a_generation_is_open_work_until_it_ends_whoever_listens() -> None:
    async def scenario() -> None:
        state = ServerState(ServerConfig())
        stream: Any = Slow([[output("0-0", "a")], [output("0-0", "b", finish_reason="length")]])
        generation = Generation(stream, Choices(BYTE_LEVEL, requests()), lambda events: None)
        state.track(generation)
        assert state.has_open_work and state.num_requests == 0
        for _ in range(100):
            if not state.has_open_work:
                break
            await asyncio.sleep(0.05)
        assert not state.has_open_work
        assert [event.text for event in await generation.next() if isinstance(event, TextDelta)] == ["a", "b"]
        state.close()

    asyncio.run(scenario())


# ---------------------------------------------------------------------- nobody reads


def unread(server: ServerProcess, body: dict[str, Any]) -> socket.socket:
    """A stream whose client has sent its request and reads nothing."""
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.connect(("127.0.0.1", server.port))
    send(connection, "/v1/completions", body | {"stream": True})
    return connection


def test_an_unread_stream_is_measured_like_any_other(server: ServerProcess) -> None:
    before = scrape(server)
    body = ENDLESS | {"max_tokens": 1500, "n": 4, "logprobs": 20}
    with unread(server, body):
        names = ("vllm:request_success_total", "vllm:e2e_request_latency_seconds_count")
        eventually(lambda: all(scrape(server).get(name, 0) - before.get(name, 0) >= 4 for name in names), 40)
        assert scrape(server)["vllm:generation_tokens_total"] - before["vllm:generation_tokens_total"] == 6000
        assert server.load()["server_load"] == 1, "it is still being answered"
    eventually(server.is_idle)


def test_an_unread_stream_does_not_hold_up_the_end(model_dir: Path) -> None:
    with ServerProcess(model_dir, "--shutdown-timeout", "1") as server:
        with unread(server, ENDLESS | {"max_tokens": 1500, "n": 4, "logprobs": 20}):
            eventually(lambda: server.load()["num_requests_running"] == 0 and server.load()["server_load"] == 1, 40)
            began = time.monotonic()
            server.process.send_signal(signal.SIGTERM)
            assert server.process.wait(15) == 0
        assert time.monotonic() - began < 1 + 2 + 2  # the timeout, the last writes, and leaving


# ---------------------------------------------------------------------- mistakes that only an engine sees


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
@pytest.mark.parametrize("stream", [False, True])
def test_masks_that_leave_no_token_are_the_clients_mistake(server: ServerProcess, path: str, stream: bool) -> None:
    prompt = {"messages": [{"role": "user", "content": "hi"}]} if "chat" in path else {"prompt": "a"}
    (letter,) = server.post("/tokenize", {"prompt": "q"}).json()["tokens"]
    body = prompt | {"allowed_token_ids": [letter], "max_tokens": 4, "stream": stream}
    at_once = server.post(path, body | {"bad_words": ["q"]})
    assert at_once.status_code == 400 and at_once.json()["error"]["param"] == "allowed_token_ids"
    later = server.post(path, body | {"bad_words": ["qq"]})
    if not stream:
        assert later.status_code == 400
        return
    assert later.status_code == 200
    *chunks, last = events(later.text)
    assert chunks and last["error"]["type"] == "invalid_request_error"
    assert last["error"]["param"] == "allowed_token_ids"


def test_time_to_first_token_counts_from_the_head(server: ServerProcess) -> None:
    """Reading, waiting for a thread and tokenizing are part of what a client waits for."""
    long = "the quick brown fox jumps over the lazy dog " * 24_000
    before, began = scrape(server)["vllm:time_to_first_token_seconds_sum"], time.monotonic()
    answer = server.post("/v1/completions", {"prompt": long, "truncate_prompt_tokens": 5, "max_tokens": 1})
    took = time.monotonic() - began
    assert answer.status_code == 200
    assert scrape(server)["vllm:time_to_first_token_seconds_sum"] - before > took / 2


# ---------------------------------------------------------------------- what templates are shown


@pytest.fixture(scope="module")
def trusting(model_dir: Path) -> Any:
    with ServerProcess(model_dir, "--trust-request-chat-template") as running:
        yield running


def rendered(server: ServerProcess, messages: list[Any], template: str) -> Any:
    answer = server.post("/tokenize", {"messages": messages, "chat_template": template})
    if answer.status_code != 200:
        return answer.json()["error"]
    return server.post("/detokenize", {"tokens": answer.json()["tokens"]}).json()["prompt"]


def test_older_spellings_are_rendered_as_the_newer(trusting: ServerProcess) -> None:
    call = {"name": "look", "arguments": json.dumps({"at": "fox"})}
    template = "{{ messages[1].tool_calls[0].function.name }} {{ messages[1].tool_calls[0].function.arguments.at }}"
    user = {"role": "user", "content": "hi"}
    for message in (
        {"role": "assistant", "content": "well", "function_call": call},
        {"role": "assistant", "content": None, "function_call": call, "annotations": [], "audio": None},
        {"role": "assistant", "tool_calls": [{"id": "c", "type": "function", "function": call}]},
    ):
        assert rendered(trusting, [user, message], template) == "look fox"
    for name in ("reasoning", "reasoning_content"):
        message = {"role": "assistant", "content": "a", name: "why"}
        assert rendered(trusting, [message], "{{ messages[0].reasoning_content }}") == "why"


def test_what_clients_add_to_answers_is_no_part_of_the_prompt(trusting: ServerProcess) -> None:
    """OpenAI's clients when they parse, LiteLLM always."""
    added = {"parsed": {"a": 1}, "provider_specific_fields": {"refusal": None}}
    function = {"name": "look", "arguments": "{}"}
    call = {"id": "c", "type": "function", "function": function}
    plain = {"role": "assistant", "content": "well", "tool_calls": [call]}
    given = (
        plain
        | added
        | {
            "tool_calls": [
                call
                | {"function": function | {"parsed_arguments": {}, "provider_specific_fields": {}}}
                | {"provider_specific_fields": {"signature": "x"}}
            ]
        }
    )
    template = "{{ messages[0] | tojson }}"
    shown = rendered(trusting, [given], template)
    assert shown == rendered(trusting, [plain], template)
    assert json.loads(shown)["tool_calls"] == [call | {"function": function | {"arguments": {}}}]


@pytest.mark.parametrize("arguments", ['{"a": "\\ud800"}', '{"a": ' * 3000 + "1" + "}" * 3000, "[" * 3000])
def test_arguments_that_are_no_json_object_are_shown_as_they_were_written(
    trusting: ServerProcess, arguments: str
) -> None:
    call = {"function": {"name": "f", "arguments": arguments}}
    messages = [{"role": "assistant", "tool_calls": [call]}]
    shown = rendered(trusting, messages, "{{ messages[0].tool_calls[0].function.arguments | tojson }}")
    assert json.loads(shown) == arguments
