"""Clients that go away, slow ones, too many of them; and the text they are sent."""

from __future__ import annotations

import http.client
import random
import re
import select
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.server.conftest import MODEL
from tests.server.process import CHAT, ENDLESS, ServerProcess, connect, events, eventually, send

RESPONSE: dict[str, Any] = {"input": "hi", "max_output_tokens": 3900, "ignore_eos": True}
MESSAGE: dict[str, Any] = {
    "messages": [{"role": "user", "content": "hi"}], "max_tokens": 3900, "system": "", "model": MODEL,
}  # fmt: skip
PATHS = {  # by a field that only bodies of this path have
    "input": "/v1/responses",
    "system": "/v1/messages",
    "messages": "/v1/chat/completions",
    "prompt": "/v1/completions",
}


def _after_sending(connection: socket.socket) -> None:
    time.sleep(0.001)


def _after_the_first_bytes(connection: socket.socket) -> None:
    assert connection.recv(100)


def _after_a_while(connection: socket.socket) -> None:
    time.sleep(0.05)


@pytest.mark.parametrize("reset", [False, True])
@pytest.mark.parametrize(
    ("body", "stage"),
    [
        (ENDLESS, _after_sending),
        (ENDLESS | {"prompt": "fox " * 300, "max_tokens": 1000}, _after_a_while),
        (ENDLESS | {"n": 4}, _after_a_while),
        (ENDLESS | {"prompt": ["a", "b", "c"], "n": 2}, _after_a_while),
        (ENDLESS | {"stream": True}, _after_sending),
        (ENDLESS | {"stream": True}, _after_the_first_bytes),
        (ENDLESS | {"stream": True, "n": 3, "logprobs": 2}, _after_the_first_bytes),
        (ENDLESS | {"stream": True, "prompt": ["a", "b", "c"]}, _after_the_first_bytes),
        (ENDLESS | {"stream": True, "prompt": "fox " * 300, "max_tokens": 1000}, _after_a_while),
        (ENDLESS | {"use_beam_search": True, "n": 4, "max_tokens": 500, "ignore_eos": False}, _after_a_while),
        (ENDLESS | {"structured_outputs": {"regex": "(a|b)*"}, "ignore_eos": False}, _after_a_while),
        (CHAT, _after_a_while),
        (CHAT | {"stream": True, "n": 2}, _after_the_first_bytes),
        (RESPONSE, _after_a_while),
        (RESPONSE | {"stream": True}, _after_the_first_bytes),
        (RESPONSE | {"stream": True, "store": False}, _after_sending),
        (MESSAGE, _after_a_while),
        (MESSAGE | {"stream": True}, _after_the_first_bytes),
    ],
)
def test_dropped_connections_free_what_they_held(
    server: ServerProcess, body: dict[str, Any], stage: Callable[[socket.socket], None], reset: bool
) -> None:
    path = PATHS[next(name for name in PATHS if name in body)]
    for _ in range(3):
        connections = [connect(server, path, body) for _ in range(4)]
        for connection in connections:
            stage(connection)
        for connection in connections:
            if reset:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
            connection.close()
    eventually(server.is_idle, 10)
    assert server.post("/v1/completions", ENDLESS | {"max_tokens": 2}).status_code == 200


def test_a_thousand_dropped_connections_leave_nothing_behind(server: ServerProcess) -> None:
    """At any stage: queued, in the prompt, at the first token, in the step that ends it, after the end."""
    draw = random.Random(0)
    short = {"prompt": "the quick", "ignore_eos": True, "seed": 1}
    bodies = [ENDLESS, ENDLESS | {"n": 2}, ENDLESS | {"prompt": "fox " * 300, "max_tokens": 1000}]
    bodies += [short | {"max_tokens": length} for length in (1, 2, 8)]
    eventually(server.is_idle, 10)
    before = blocks_in_use(server)
    for _ in range(50):
        connections = [
            connect(server, "/v1/completions", draw.choice(bodies) | {"stream": draw.random() < 0.5})
            for _ in range(20)
        ]
        draw.shuffle(connections)
        for connection in connections:
            time.sleep(draw.choice([0, 0.001, 0.01]))
            connection.close()
    assert eventually(lambda: server.is_idle() and blocks_in_use(server) == before, 10) < 1
    assert server.post("/v1/completions", ENDLESS | {"max_tokens": 2}).status_code == 200


def blocks_in_use(server: ServerProcess) -> float:
    """As a share of all."""
    return server.metric("vllm:kv_cache_usage_perc")


def test_a_slow_reader_delays_nobody_and_misses_nothing(server: ServerProcess) -> None:
    body = ENDLESS | {"max_tokens": 1500, "stream": True, "logprobs": 20}
    slow = socket.socket()
    slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    slow.connect(("127.0.0.1", server.port))
    send(slow, "/v1/completions", body)
    began = time.monotonic()
    for _ in range(3):
        assert server.post("/v1/completions", ENDLESS | {"max_tokens": 20}).status_code == 200
    assert time.monotonic() - began < 10
    eventually(lambda: server.load()["num_requests_running"] == 0, 30)
    answer = http.client.HTTPResponse(slow)
    answer.begin()
    chunks = events(answer.read().decode())
    slow.close()
    text = "".join(chunk["choices"][0]["text"] for chunk in chunks[:-1])
    assert chunks[-1] == "[DONE]"
    assert text == server.post("/v1/completions", body | {"stream": False}).json()["choices"][0]["text"]


def test_too_many_requests_are_turned_away(model_dir: Path) -> None:
    with ServerProcess(model_dir, "--max-num-queued-reqs", "2") as server:
        held = [connect(server, "/v1/completions", ENDLESS) for _ in range(2)]
        eventually(lambda: server.load()["num_requests_unfinished"] == 2)
        refused = server.post("/v1/completions", ENDLESS)
        assert refused.status_code == 429 and refused.json()["error"]["code"] == "server_overloaded"
        assert int(refused.headers["retry-after"]) > 0
        assert server.health() == (200, "healthy")
        for connection in held:
            connection.close()
        eventually(server.is_idle)
        assert server.post("/v1/completions", ENDLESS | {"max_tokens": 1}).status_code == 200


@pytest.mark.slow
def test_health_answers_while_long_texts_are_tokenized(server: ServerProcess) -> None:
    body = {"prompt": "the quick brown fox jumps over the lazy dog " * 24_000}  # a megabyte
    health = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    waiting = [connect(server, "/tokenize" if i % 2 else "/v1/completions", body) for i in range(64)]
    waits = []
    while waiting:
        began = time.monotonic()
        health.request("GET", "/health")
        answer = health.getresponse()
        assert answer.status == 200 and answer.read()
        waits.append(time.monotonic() - began)
        time.sleep(0.01)
        for connection in select.select(waiting, [], [], 0)[0]:
            assert re.match(rb"HTTP/1.1 (200|400) ", connection.recv(1 << 16))
            connection.close()
            waiting.remove(connection)
    waits.sort()
    assert len(waits) > 10 and waits[len(waits) * 9 // 10] < 0.1, waits[-10:]


# ---------------------------------------------------------------------- text on the wire


def test_streams_carry_whole_characters(server: ServerProcess) -> None:
    seen = set()
    for seed in range(6):
        body = {
            "prompt": "naïve 東京 🎉",
            "max_tokens": 60,
            "seed": seed,
            "temperature": 2,
            "skip_special_tokens": False,
        }
        whole = server.post("/v1/completions", body).json()["choices"][0]["text"]
        chunks = events(server.post("/v1/completions", body | {"stream": True}).text)
        pieces = [chunk["choices"][0]["text"] for chunk in chunks[:-1]]
        assert "".join(pieces) == whole
        seen |= set(whole)
    assert any(0x80 <= ord(character) != 0xFFFD for character in seen)


def test_stop_strings_never_leak(server: ServerProcess) -> None:
    found = 0
    for seed in range(6):
        body: dict[str, Any] = {"prompt": "the quick", "max_tokens": 24, "seed": seed, "ignore_eos": True}
        text = server.post("/v1/completions", body).json()["choices"][0]["text"]
        for start, length in ((3, 2), (7, 4)):
            stop = text[start : start + length]
            if not stop.strip() or text.find(stop) < 0:
                continue
            found += 1
            end = text.index(stop)
            for extra, expected in (
                ({}, text[:end]),
                ({"include_stop_str_in_output": True}, text[: end + len(stop)]),
            ):
                stopped = body | {"stop": [stop, "\x00never"], **extra}
                whole = server.post("/v1/completions", stopped).json()["choices"][0]
                assert (whole["text"], whole["finish_reason"], whole["stop_reason"]) == (expected, "stop", stop)
                chunks = events(server.post("/v1/completions", stopped | {"stream": True}).text)[:-1]
                assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == expected
    assert found > 3
    eventually(server.is_idle)
