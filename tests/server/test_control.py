"""Routes that change what the server does: absent unless asked for, and then they do it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.server.process import ENDLESS, ServerProcess, eventually

TEXT = "/v1/completions"
ROUTES = {
    "/pause": "POST", "/resume": "POST", "/is_paused": "GET", "/sleep": "POST", "/wake_up": "POST",
    "/is_sleeping": "GET", "/reset_prefix_cache": "POST", "/collective_rpc": "POST", "/server_info": "GET",
}  # fmt: skip


@pytest.fixture(scope="module")
def controlled(model_dir: Path) -> Iterator[ServerProcess]:
    with ServerProcess(model_dir, "--enable-dev-mode", "--api-key", "secret-key") as running:
        yield running


@pytest.fixture
def http(controlled: ServerProcess) -> Iterator[httpx.Client]:
    headers = {"authorization": "Bearer secret-key"}
    with httpx.Client(base_url=controlled.url, headers=headers, timeout=30) as client:
        yield client


def test_without_the_option_they_are_not_there(server: ServerProcess) -> None:
    for path, method in ROUTES.items():
        assert httpx.request(method, server.url + path).status_code == 404


def test_they_need_the_key_and_their_method(controlled: ServerProcess, http: httpx.Client) -> None:
    for path, method in ROUTES.items():
        assert httpx.request(method, controlled.url + path).status_code == 401
        assert http.request("GET" if method == "POST" else "POST", path).status_code == 405


def test_sleep_and_wake_up(http: httpx.Client) -> None:
    body = {"prompt": "the quick", "max_tokens": 5, "seed": 3}
    before = http.post(TEXT, json=body).json()["choices"]
    for level in (1, 2):
        assert http.post("/sleep", params={"level": level}).status_code == 200
        eventually(lambda: http.get("/is_sleeping").json() == {"is_sleeping": True})
        answers: list[httpx.Response] = []
        asking = threading.Thread(target=lambda a=answers: a.append(http.post(TEXT, json=body)))
        asking.start()
        asking.join(0.5)
        assert asking.is_alive() and http.get("/health").status_code == 200, "requests wait"
        assert http.post("/wake_up").status_code == 200
        asking.join(10)
        assert answers[0].json()["choices"] == before
    for path, params, param in (("/sleep", {"level": 3}, "level"), ("/wake_up", {"tags": "weights"}, "tags")):
        answer = http.post(path, params=params)
        assert answer.status_code == 400 and answer.json()["error"]["param"] == param


def test_pause_aborts_and_holds_back_and_resume_lets_go_on(controlled: ServerProcess, http: httpx.Client) -> None:
    stream: list[str] = []

    def read() -> None:
        with http.stream("POST", TEXT, json=ENDLESS | {"stream": True}) as answer:
            stream.extend(answer.iter_text())

    reading = threading.Thread(target=read)
    reading.start()
    eventually(lambda: bool(stream))
    assert http.post("/pause").json() == {"status": "paused"}
    reading.join(10)
    assert not reading.is_alive() and http.get("/is_paused").json() == {"is_paused": True}
    answers: list[int] = []
    body = {"prompt": "a", "max_tokens": 2}
    waiting = threading.Thread(target=lambda: answers.append(http.post(TEXT, json=body).status_code))
    waiting.start()
    waiting.join(0.5)
    assert waiting.is_alive()
    assert http.post("/resume").json() == {"status": "resumed"}
    waiting.join(10)
    assert answers == [200] and http.get("/is_paused").json() == {"is_paused": False}


def test_pause_can_wait_for_what_is_in_flight(http: httpx.Client) -> None:
    answers: list[httpx.Response] = []
    body = {"prompt": "a", "max_tokens": 300, "ignore_eos": True}
    asking = threading.Thread(target=lambda: answers.append(http.post(TEXT, json=body)))
    asking.start()
    eventually(lambda: http.get("/load").json()["num_requests_running"] == 1)
    assert http.post("/pause", params={"mode": "wait"}).status_code == 200
    asking.join(5)
    assert answers[0].json()["usage"]["completion_tokens"] == 300
    http.post("/resume")
    assert http.post("/pause", params={"mode": "keep"}).status_code == 400


def test_the_prefix_cache_can_be_forgotten(http: httpx.Client) -> None:
    body = {"prompt": list(range(40, 140)), "max_tokens": 1}

    def cached() -> int:
        return int(http.post(TEXT, json=body).json()["usage"]["prompt_tokens_details"]["cached_tokens"])

    cached()
    assert cached() > 0
    assert http.post("/reset_prefix_cache").status_code == 200
    assert cached() == 0
    call = {"method": "reset_prefix_cache"}
    assert http.post("/collective_rpc", json=call).json() == {"results": [None]} and cached() == 0
    for wrong, param in (
        ({"method": "eval"}, "method"),
        ({"method": "sleep", "args": [1, 2, 3]}, "args"),
        ({}, "method"),
    ):
        answer = http.post("/collective_rpc", json=wrong)
        assert answer.status_code == 400 and answer.json()["error"]["param"] == param


def test_the_configuration_is_told_without_secrets(http: httpx.Client) -> None:
    answer = http.get("/server_info")
    assert answer.json()["engine"]["backend"] == "optimized" and answer.json()["config"]["enable_dev_mode"] is True
    assert "secret-key" not in answer.text


@pytest.mark.parametrize(
    ("path", "param"), [("/sleep?level=x", "level"), ("/sleep?level=3", "level"), ("/pause?mode=x", "mode")]
)
def test_a_parameter_that_is_not_known_is_refused_by_name(http: httpx.Client, path: str, param: str) -> None:
    answer = http.post(path)
    assert answer.status_code == 400 and answer.json()["error"]["param"] == param
    assert http.get("/is_paused").json() == {"is_paused": False}
    assert http.get("/is_sleeping").json() == {"is_sleeping": False}
