"""Too much at once: what is taken on is bounded before it costs anything, and health answers all the while."""

from __future__ import annotations

import json
import select
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.server.conftest import MODEL
from tests.server.process import ENDLESS, ServerProcess, connect, eventually

# Asks for health until its standard input ends, then prints how long each answer took. A process of its own, since
# whoever makes the load has no time to look at the clock.
WATCH = """
import http.client, json, sys, threading, time
ended = threading.Event()
threading.Thread(target=lambda: (sys.stdin.read(), ended.set()), daemon=True).start()
connection, waits = http.client.HTTPConnection("127.0.0.1", int(sys.argv[1]), timeout=60), []
while not ended.is_set():
    began = time.monotonic()
    connection.request("GET", "/health")
    answer = connection.getresponse()
    assert answer.read() and answer.status == 200
    waits.append(time.monotonic() - began)
    time.sleep(0.005)
print(json.dumps(sorted(waits)))
"""
MEGABYTE = "the quick brown fox jumps over the lazy dog " * 24_000
SCALE: dict[str, Any] = {"type": "score", "criteria": ["low", "high"]}
LEVELS: dict[str, Any] = {"type": "score", "instructions": "x", "levels": [{"label": "a"}, {"label": "b"}]}
HEAD = b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"


@pytest.fixture(scope="module")
def small(model_dir: Path) -> Iterator[ServerProcess]:
    with ServerProcess(model_dir, "--max-num-queued-reqs", "4", "--max-num-queued-tokens", "3000") as running:
        yield running


def post_all(server: ServerProcess, requests: list[tuple[str, Any]], seconds: float = 120) -> list[bytes]:
    """Send all at once; the first bytes of the answers, in the order in which they came."""
    waiting = [connect(server, path, body) for path, body in requests]
    answers, until = [], time.monotonic() + seconds
    while waiting and time.monotonic() < until:
        for connection in select.select(waiting, [], [], 1)[0]:
            answers.append(connection.recv(1 << 16))
            connection.close()
            waiting.remove(connection)
    assert not waiting
    return answers


def rss(server: ServerProcess) -> int:
    """Memory of the front process in MB."""
    return psutil.Process(server.process.pid).memory_info().rss >> 20


# ---------------------------------------------------------------------- capacity


def test_capacity_is_taken_before_a_body_is_read(small: ServerProcess) -> None:
    body = json.dumps(ENDLESS | {"max_tokens": 2}).encode()
    connections = []
    for _ in range(300):
        connection = socket.create_connection(("127.0.0.1", small.port), timeout=10)
        connection.sendall(HEAD % len(body))
        connections.append(connection)
    time.sleep(0.5)
    refused = [c for c in select.select(connections, [], [], 0)[0]]
    assert len(refused) == 296
    answer = refused[0].recv(4096)
    assert answer.startswith(b"HTTP/1.1 429") and b"retry-after" in answer.lower() and b"server_overloaded" in answer
    for connection in connections:
        if connection not in refused:
            connection.sendall(body)
            assert connection.recv(4096).startswith(b"HTTP/1.1 200")
    for connection in connections:
        connection.close()
    eventually(small.is_idle)


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
def test_choices_are_counted_and_given_back_whatever_happens(small: ServerProcess, path: str) -> None:
    chat = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 3500, "ignore_eos": True}
    endless = (chat if "chat" in path else ENDLESS | {"max_tokens": 3500}) | {"n": 3}
    short = endless | {"n": 4, "max_tokens": 1}
    for _ in range(3):
        held = connect(small, path, endless)
        eventually(lambda: small.load()["num_requests_unfinished"] == 3)
        assert small.post(path, short | {"n": 2}).status_code == 429
        assert small.post(path, short | {"n": 1}).status_code == 200
        held.close()
        eventually(small.is_idle)
        assert small.post(path, short | {"stream": True}).status_code == 200
        for wrong in (
            {"n": 5},
            {"temperature": "x"},
            {"model": "x"},
            {"max_tokens": 10**6},
            {"logit_bias": {"9999": 1}},
        ):
            assert small.post(path, short | wrong).status_code in (400, 404)
        connect(small, path, short).close()
        eventually(small.is_idle)
    eventually(lambda: small.post(path, short).status_code == 200)


def test_prompt_tokens_are_counted(small: ServerProcess) -> None:
    long: dict[str, Any] = ENDLESS | {"prompt": [5] * 2000, "max_tokens": 2000}
    held = connect(small, "/v1/completions", long)
    eventually(lambda: small.load()["num_requests_unfinished"] == 1)
    assert small.post("/v1/completions", long).status_code == 429
    assert small.post("/v1/completions", long | {"prompt": [5] * 900, "max_tokens": 1}).status_code == 200
    both = small.post("/v1/completions", long | {"prompt": [[5] * 2000] * 2})
    assert both.status_code == 400 and both.json()["error"]["param"] == "prompt"
    held.close()
    eventually(small.is_idle)
    assert small.post("/v1/completions", long | {"max_tokens": 1}).status_code == 200


def test_the_limit_is_finite_by_default(server: ServerProcess) -> None:
    wide = {"prompt": ["a"] * 32, "n": 128, "max_tokens": 3000, "ignore_eos": True}
    held = [connect(server, "/v1/completions", wide)]
    eventually(lambda: server.load()["num_requests_unfinished"] == 4096, 20)
    held.append(connect(server, "/v1/completions", wide | {"n": 127}))
    eventually(lambda: server.load()["num_requests_unfinished"] == 4096 + 32 * 127, 20)
    refused = server.post("/v1/completions", wide)
    assert refused.status_code == 429 and int(refused.headers["retry-after"]) > 0
    for connection in held:
        connection.close()
    eventually(server.is_idle, 20)


def test_ten_times_what_it_can_do_is_mostly_turned_away_and_else_answered(model_dir: Path) -> None:
    """Open loop: requests come at their times whatever becomes of those before them."""
    body: dict[str, Any] = {"prompt": "the quick", "max_tokens": 400, "temperature": 0, "ignore_eos": True}
    with ServerProcess(model_dir, "--max-num-queued-reqs", "16", "--max-num-seqs", "4") as server:
        alone = server.post("/v1/completions", body).json()["choices"][0]["text"]
        rate = 10 * throughput(server, body)
        before, began = rss(server), time.monotonic()
        with ThreadPoolExecutor(64) as threads:
            waiting = []
            for i in range(200):
                time.sleep(max(0.0, began + i / rate - time.monotonic()))
                waiting.append(threads.submit(server.post, "/v1/completions", body))
            answers = [future.result() for future in waiting]
        statuses = Counter(answer.status_code for answer in answers)
        assert statuses.keys() <= {200, 429} and statuses[200] >= 16 and statuses[429] > 20, statuses
        for answer in answers:
            if answer.status_code == 200:
                assert answer.json()["choices"][0]["text"] == alone
            else:
                assert int(answer.headers["retry-after"]) > 0
        assert rss(server) - before < 100
        eventually(server.is_idle)
        assert server.post("/v1/completions", body).json()["choices"][0]["text"] == alone


def throughput(server: ServerProcess, body: dict[str, Any]) -> float:
    """Requests a second, with a few at once."""
    began = time.monotonic()
    with ThreadPoolExecutor(4) as threads:
        assert all(
            answer.status_code == 200
            for answer in threads.map(lambda _: server.post("/v1/completions", body), range(24))
        )
    return 24 / (time.monotonic() - began)


def test_a_prompt_beyond_the_cache_is_refused_at_once(model_dir: Path) -> None:
    """Within the model's context, and yet there is never room for it."""
    tokens = [5] * 1000
    with ServerProcess(
        model_dir, "--served-model-name", MODEL, "--kv-cache-memory-bytes", "200K", "--enable-ollama-api"
    ) as server:
        turn = [{"role": "user", "content": "fox " * 1000}]
        for path, body in (
            ("/v1/completions", {"prompt": tokens}),
            ("/v1/completions", {"prompt": [[5], tokens], "stream": True}),
            ("/v1/chat/completions", {"messages": turn}),
            ("/v1/responses", {"input": "fox " * 1000}),
            ("/v1/messages", {"messages": turn, "max_tokens": 1, "model": MODEL}),
            ("/api/chat", {"messages": turn, "model": MODEL, "truncate": False}),
            ("/api/generate", {"prompt": "fox " * 1000, "model": MODEL, "truncate": False}),
            ("/inference/v1/generate", {"token_ids": tokens, "sampling_params": {"max_tokens": 1}}),
            ("/generative_scoring", {"query": tokens, "items": [[5]], "label_token_ids": [7]}),
            ("/v1/systemone", {"state": "fox " * 1000, "questions": {"a": SCALE}}),
            ("/v1/decisions", {"input": "fox " * 1000, "questions": [LEVELS]}),
        ):
            refused = server.post(path, body)
            assert refused.status_code == 400 and "context length is 400 tokens" in refused.text, (path, refused.text)
            assert server.post("/v1/completions", {"prompt": [5] * 20, "max_tokens": 5}).status_code == 200
        assert server.is_idle()


def test_an_abort_storm_is_over_at_once(server: ServerProcess) -> None:
    wide = {"prompt": ["a"] * 32, "n": 120, "max_tokens": 3000, "ignore_eos": True}
    for _ in range(3):
        held = [connect(server, "/v1/completions", wide) for _ in range(2)]
        eventually(lambda: server.load()["num_requests_unfinished"] == 2 * 32 * 120, 20)
        for connection in held:
            connection.close()
        assert eventually(server.is_idle, 20) < 5
    assert server.post("/v1/completions", ENDLESS | {"max_tokens": 1}).status_code == 200


# ---------------------------------------------------------------------- texts


def test_texts_that_cannot_fit_are_refused_before_they_are_tokenized(server: ServerProcess) -> None:
    text, before = MEGABYTE * 20, rss(server)
    for path, body in (
        ("/v1/completions", {"prompt": text}),
        ("/v1/completions", {"prompt": ["a", text]}),
        ("/v1/completions", {"prompt": text, "truncate_prompt_tokens": 5}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": text[: 2**23]}]}),
        ("/tokenize", {"prompt": text}),
    ):
        began = time.monotonic()
        refused = server.post(path, body)
        assert refused.status_code == 400, path
        assert refused.json()["error"]["code"] in ("context_length_exceeded", "invalid_value")
        assert time.monotonic() - began < 4
    assert rss(server) - before < 150


def test_work_of_clients_that_have_left_is_dropped_and_its_memory_given_back(server: ServerProcess) -> None:
    before = rss(server)
    for i in range(8):
        path = "/tokenize" if i % 2 else "/v1/completions"
        connect(server, path, {"prompt": MEGABYTE * (3 if i % 3 else 28), "max_tokens": 1}).close()
    began = time.monotonic()
    assert server.post("/v1/completions", {"prompt": "fox " * 1000, "max_tokens": 1}).status_code == 200
    assert time.monotonic() - began < 3, "short texts have threads of their own"
    eventually(server.is_idle, 30)
    eventually(lambda: rss(server) - before < 200, 10)


def test_reports_of_prompts_are_bounded(server: ServerProcess) -> None:
    body = {"prompt": [[5] * 3000] * 8, "n": 128, "max_tokens": 0}
    for report in ({"echo": True, "logprobs": 20}, {"prompt_logprobs": 20}):
        refused = server.post("/v1/completions", body | report)
        assert refused.status_code == 400 and refused.json()["error"]["param"] in report


def test_the_largest_reports_at_once_do_not_double_the_engine(server: ServerProcess) -> None:
    """Log-probabilities of 20 tokens at each of 4,000 positions, 24 prompts at once."""
    body = {"prompt_logprobs": 20, "max_tokens": 1, "logprobs": 20}
    prompts = [[5 + i] * 4000 for i in range(24)]
    first = server.post("/v1/completions", body | {"prompt": prompts[0]}).json()["choices"][0]
    worker = server.worker
    before, peak, done = worker.memory_info().rss, 0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.02):
            peak = max(peak, worker.memory_info().rss)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        with ThreadPoolExecutor(24) as pool:
            answers = list(pool.map(lambda p: server.post("/v1/completions", body | {"prompt": p}), prompts))
    finally:
        done.set()
        watcher.join()
    reports = [answer.json()["choices"][0]["prompt_logprobs"] for answer in answers]
    assert all(len(report) == 4000 and len(report[-1]) >= 20 for report in reports)
    assert [entry and len(entry) for entry in reports[0]] == [e and len(e) for e in first["prompt_logprobs"]]
    assert 0 < peak < 2 * before, (peak >> 20, before >> 20)
    assert server.worker.pid == worker.pid
    eventually(server.is_idle)


# ---------------------------------------------------------------------- health


def p99_of_health(server: ServerProcess, act: Any) -> tuple[float, int]:
    """While ``act`` runs; and how many answers it is the 99th percentile of."""
    watcher = subprocess.Popen(
        [sys.executable, "-c", WATCH, str(server.port)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        act()
        waits = json.loads(watcher.communicate(timeout=70)[0])
    finally:
        watcher.kill()
    return waits[len(waits) * 99 // 100], len(waits)


def heavy(scale: float) -> list[tuple[str, Any]]:
    """Requests each of which has held up an event loop for seconds."""
    chat, text = "/v1/chat/completions", "/v1/completions"
    user = [{"role": "user", "content": "hi"}]
    arguments = json.dumps({"text": "x" * int(15e6 * scale)})
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": arguments}}
    tools = [{"type": "function", "function": {"name": f"f{i}", "parameters": {}}} for i in range(int(2e5 * scale))]
    words = [f"word{i}" for i in range(1024)]
    echoed = {"prompt": [5] * 3000, "echo": True, "logprobs": 20, "max_tokens": 1}
    scored = {"logprobs": True, "top_logprobs": 20, "max_tokens": int(1500 * scale), "ignore_eos": True, "n": 8}
    return [
        *((text if i % 2 else "/tokenize", {"prompt": MEGABYTE}) for i in range(int(64 * scale))),
        (chat, {"messages": [*user, {"role": "assistant", "tool_calls": [call]}], "max_tokens": 1}),
        (chat, {"messages": user, "tools": tools, "max_tokens": 1}),
        (chat, {"messages": [{"role": "user", "content": ""}] * int(65536 * scale), "max_tokens": 1}),
        (text, {"prompt": ["a"] * 100, "bad_words": words, "max_tokens": 1}),
        (text, {"prompt": "a", "n": 64, "bad_words": words, "max_tokens": 1}),
        (text, {"prompt": "a", "n": 128, "allowed_token_ids": list(range(300)) * int(330 * scale), "max_tokens": 1}),
        (chat, {"messages": user} | scored),
        (text, {"prompt": "a"} | scored | {"logprobs": 20} | {"top_logprobs": None}),
        (text, echoed | {"n": int(16 * scale)}),
        (text, echoed | {"n": int(16 * scale), "stream": True}),
        ("/tokenize", {"prompt": MEGABYTE, "return_token_strs": True}),
        ("/detokenize", {"tokens": [70] * int(1e6 * scale)}),
    ]  # fmt: skip


@pytest.mark.parametrize("scale", [0.25, 1.0])
def test_health_answers_within_100_ms_under_heavy_requests(server: ServerProcess, scale: float) -> None:
    def act() -> None:
        answers = post_all(server, heavy(scale), 280)
        assert all(answer.startswith((b"HTTP/1.1 200", b"HTTP/1.1 400")) for answer in answers), answers

    p99, count = p99_of_health(server, act)
    assert count > 200 and p99 < 0.1, (p99, count)
    eventually(server.is_idle, 30)
