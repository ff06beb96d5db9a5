"""Keys: every route, every spelling of a path, every way to send a key."""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import httpx
import pytest

from server.app import create_app
from server.config import ServerConfig
from server.middleware.gate import OPEN_PATHS
from server.routes import page
from server.state import ServerState
from tandem.errors import ConfigError
from tandem.process.profiler import ProfilerConfig
from tests.server.conftest import MODEL
from tests.server.process import ServerProcess, eventually, raw

OPTIONAL = ("--enable-dev-mode", "--enable-tokenizer-info-endpoint", "--enable-ollama-api", "--profiler-config")
OPEN = {"/health", "/ping", "/version", "/metrics"}


def routes() -> list[tuple[str, str]]:
    """Method and path of everything that answers, read off the application."""
    schema = create_app(ServerState(ServerConfig())).openapi()
    found = [(method.upper(), path) for path, methods in schema["paths"].items() for method in methods]
    return [*found, ("GET", "/docs"), ("GET", "/openapi.json"), ("GET", "/nowhere"), ("OPTIONS", "/v1/models")]


@pytest.mark.parametrize(("method", "path"), routes())
@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"authorization": "Bearer wrong"},
        {"authorization": "Bearer"},
        {"authorization": "first-key"},
        {"authorization": "Basic first-key"},
        {"x-api-key": "first-keyx"},
        {"x-api-key": ""},
        {"authorization": "Bearer first-key,second-key"},
        {"host": "localhost/health", "authorization": "Bearer no"},
        {"x-forwarded-prefix": "/health", "x-original-url": "/health"},
        {"x-http-method-override": "GET", "cookie": "api_key=first-key"},
    ],
    ids=str,
)
def test_without_a_key(guarded: ServerProcess, method: str, path: str, headers: dict[str, str]) -> None:
    answer = httpx.request(method, guarded.url + path.replace("{model}", "x"), headers=headers, timeout=10)
    if path in OPEN:
        assert answer.status_code != 401
    else:
        assert answer.status_code == 401
        error = answer.json()["error"]
        assert error.get("code", error["type"]) in ("invalid_api_key", "authentication_error")
        assert answer.headers["www-authenticate"] == "Bearer"


def test_the_open_paths_are_these() -> None:
    assert OPEN | {f"{path}/" for path in OPEN} == OPEN_PATHS


@pytest.mark.parametrize(
    "headers",
    [
        {"authorization": "Bearer first-key"},
        {"authorization": "bearer second-key"},
        {"x-api-key": "second-key"},
        {"authorization": "Bearer wrong", "x-api-key": "first-key"},
    ],
    ids=str,
)
def test_with_a_key(guarded: ServerProcess, headers: dict[str, str]) -> None:
    assert httpx.get(guarded.url + "/v1/models", headers=headers).status_code == 200


@pytest.mark.parametrize(
    "target",
    [
        b"//v1/models", b"/v1//models", b"/./v1/models", b"/health/../v1/models", b"/health/..%2fv1/models",
        b"/%76%31/models", b"/v1/models/", b"/v1/models?x=/health", b"/v1/models#/health", b"/v1/models;/health",
        b"http://x/v1/models", b"/health//", b"//health", b"/HEALTH", b"/health%00",
        b"/health%2f..%2fv1%2fmodels", b"/v1/models%3f/health",
        b"/health;/../v1/models", b"\\v1\\models",
    ],
)  # fmt: skip
@pytest.mark.parametrize("host", [b"x", b"x/health", b"x:80/health?", b"/health", b""])
def test_odd_targets_open_nothing(guarded: ServerProcess, target: bytes, host: bytes) -> None:
    answer = raw(guarded, b"GET %b HTTP/1.1\r\nhost: %b\r\nconnection: close\r\n\r\n" % (target, host))
    assert answer.startswith((b"HTTP/1.1 401", b"HTTP/1.1 400")), answer[:200]


@pytest.fixture(scope="module")
def everything(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """All optional routes, below a prefix."""
    options = (
        *OPTIONAL,
        json.dumps({"profiler": "torch", "torch_profiler_dir": str(tmp_path_factory.mktemp("profiles"))}),
    )
    with ServerProcess(model_dir, "--api-key", "first-key", "--root-path", "/base", *options) as running:
        yield running


def all_routes() -> list[str]:
    config = ServerConfig(
        enable_dev_mode=True,
        enable_tokenizer_info_endpoint=True,
        enable_ollama_api=True,
        profiler_config=ProfilerConfig(torch_profiler_dir="/tmp"),
    )
    return sorted({*create_app(ServerState(config)).openapi()["paths"], *page.PATHS, "/docs", "/openapi.json"})


@pytest.mark.parametrize("path", all_routes())
def test_no_spelling_of_a_path_opens_it(everything: ServerProcess, path: str) -> None:
    """Each with every method, and as a proxy would show it; what is open stays so under its own name only."""
    path = path.replace("{", "").replace("}", "").replace(":path", "")
    first = path[1:2]
    targets = [
        path, f"/base{path}", f"/base/base{path}", f"//{path[1:]}", f"/base/{path}", f"{path}/",
        f"{path}//", f"/.{path}",
        f"/health/..{path}", f"/health{path}", f"{path}/../health", f"{path}?/health", f"{path}#/health",
        f"{path};/health",
        f"/%{ord(first or '/'):02x}{path[2:]}", f"{path}%00", f"{path}%2f", f"{path}%20", f"http://x{path}",
        path.upper(),
        f"/health%2f..{path}", f"/base/../health{path}",
    ]  # fmt: skip
    requests = [
        f"{method} {target} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\ncontent-length: 0\r\n\r\n".encode()
        for target in targets
        for method in ("GET", "POST", "DELETE", "HEAD", "PUT", "PATCH", "OPTIONS", "TRACE")
        for host in ("x", "x/health")
    ]
    names = OPEN | page.PATHS
    with ThreadPoolExecutor(4) as pool:
        for request, answer in zip(requests, pool.map(partial(raw, everything), requests), strict=True):
            target = request.split()[1].decode()
            plain = unquote(re.sub(r"^http://x|[?#].*", "", target)).removeprefix("/base")
            is_open = plain in names or plain.rstrip("/") in OPEN and plain.count("/") <= 2
            allowed = (b"HTTP/1.1 401", b"HTTP/1.1 400")
            assert is_open or answer.startswith(allowed), (request, answer[:200])


def test_preflight_needs_no_key(guarded: ServerProcess) -> None:
    asked = {"origin": "http://page", "access-control-request-method": "POST"}
    assert httpx.options(guarded.url + "/v1/chat/completions", headers=asked).status_code == 200


def test_keys_are_not_logged(guarded: ServerProcess) -> None:
    httpx.get(guarded.url + "/v1/models", headers={"authorization": "Bearer first-key"})
    assert "first-key" not in guarded.log and "second-key" not in guarded.log


@pytest.mark.parametrize("key", ["key\n", " key", "key\r\n", "\tkey "])
def test_white_space_around_a_key_is_no_part_of_it(key: str) -> None:
    """Files with secrets end in a newline, which no header can carry."""
    app = create_app(ServerState(ServerConfig(api_keys=(key,))))

    async def ask(given: str) -> int:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://x") as client:
            return (await client.get("/v1/models", headers={"authorization": f"Bearer {given}"})).status_code

    assert asyncio.run(ask("key")) == 200 and asyncio.run(ask("kez")) == 401


def test_keys_are_compared_as_hashes_and_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """All of them, whichever fits; nobody who reads the memory of the gate finds a key."""
    compared = list[tuple[bytes, bytes]]()

    def compare(given: bytes, known: bytes) -> bool:
        compared.append((given, known))
        return given == known

    monkeypatch.setattr("hmac.compare_digest", compare)
    keys = ("first-key", "second-key", "third-key")
    hashes = [hashlib.sha256(key.encode()).digest() for key in keys]
    app = create_app(ServerState(ServerConfig(api_keys=keys)))

    async def ask(given: str) -> int:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://x") as client:
            return (await client.get("/v1/models", headers={"x-api-key": given})).status_code

    for given in (*keys, "none", ""):
        compared.clear()
        assert asyncio.run(ask(given)) == (200 if given in keys else 401)
        assert compared == [(hashlib.sha256(given.encode()).digest(), known) for known in hashes]


@pytest.mark.parametrize("key", ["", " \n", "a\nb", "a\x00b", "a\x7f"])
def test_keys_that_cannot_be_sent_are_refused(key: str) -> None:
    with pytest.raises(ConfigError, match="--api-key"):
        ServerConfig(api_keys=("fine", key))


def test_nothing_is_guarded_by_assertions(model_dir: Path) -> None:
    """``python -O`` leaves them out."""
    command = (sys.executable, "-O", "-m", "tandem.cli", "serve")
    options = ("--api-key", "first-key", "--served-model-name", MODEL)
    with ServerProcess(model_dir, *options, command=command) as server:
        chat = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 1}
        assert server.post("/v1/chat/completions", chat).status_code == 401
        own = {"authorization": "Bearer first-key"}
        assert server.post("/v1/chat/completions", chat, headers=own).status_code == 200
        for wrong, param in (
            ({"chat_template": "{{ 1 }}"}, "chat_template"),
            ({"chat_template_kwargs": {"messages": []}}, "chat_template_kwargs"),
            ({"logit_bias": {"9999999": 1}}, "logit_bias"),
            ({"n": 10**9}, "n"),
            ({"request_id": "a\r\nb"}, "request_id"),
        ):
            refused = server.post("/v1/chat/completions", chat | wrong, headers=own)
            assert refused.status_code == 400 and refused.json()["error"]["param"].startswith(param), refused.text
    refused = subprocess.run(
        [*command, str(model_dir), "--trust-remote-code"], capture_output=True, text=True, timeout=60
    )
    assert refused.returncode == 1 and "--trust-remote-code" in refused.stderr


WORDS = "fox " * 50
IDS = [9] * 50
CHOICE = {"type": "choice", "criteria": {"fox": None, "dog": None}}
DECISION = {"type": "choice", "instructions": "?", "choices": [{"value": "a"}, {"value": "b"}]}
TURN = [{"role": "user", "content": WORDS}]
LOOKED_UP: dict[str, dict[str, Any]] = {
    "/v1/completions": {"prompt": WORDS, "max_tokens": 1},
    "/v1/chat/completions": {"messages": TURN, "max_tokens": 1, "cache_salt": "own"},
    "/v1/responses": {"instructions": WORDS, "input": "hi", "max_output_tokens": 1},
    "/v1/messages": {"system": WORDS, "messages": TURN, "max_tokens": 1, "model": MODEL},
    "/api/chat": {"messages": [*TURN, *TURN], "model": MODEL, "options": {"num_predict": 1}, "stream": False},
    "/api/generate": {"prompt": "dog " * 50, "model": MODEL, "options": {"num_predict": 1}, "stream": False},
    "/inference/v1/generate": {"token_ids": IDS, "sampling_params": {"max_tokens": 1}},
    "/v1/systemone": {"state": WORDS, "questions": {"a": CHOICE}},
    "/v1/decisions": {"input": WORDS, "questions": [DECISION]},
    "/generative_scoring": {"query": [7] * 50, "items": [[5]], "label_token_ids": [7, 8]},
}


@pytest.fixture(scope="module", params=[False, True], ids=["shared", "salted"])
def two_users(model_dir: Path, request: pytest.FixtureRequest) -> Iterator[tuple[ServerProcess, bool]]:
    """A server, and whether each of its users has a prefix cache of their own."""
    options = ["--api-key", "first-key", "--api-key", "second-key", "--enable-ollama-api"]
    options += ["--salt-prefix-cache-by-key"] * request.param
    with ServerProcess(model_dir, "--served-model-name", MODEL, *options) as running:
        yield running, request.param


@pytest.mark.parametrize("path", LOOKED_UP)
def test_keys_share_what_is_computed_unless_told_otherwise(two_users: tuple[ServerProcess, bool], path: str) -> None:
    """How soon an answer begins would tell one user what another has asked."""
    server, is_salted = two_users

    def num_found(key: str) -> float:
        before = hits(server)
        answer = server.post(path, LOOKED_UP[path], headers={"authorization": f"Bearer {key}"})
        assert answer.status_code == 200, answer.text
        return hits(server) - before

    first, again, other = (num_found(f"{name}-key") for name in ("first", "first", "second"))
    assert again >= first + 32
    assert other == (first if is_salted else again)


def hits(server: ServerProcess) -> float:
    """Prompt tokens that the engine has found in its prefix cache."""
    own = {"x-api-key": "first-key"}
    eventually(lambda: not httpx.get(server.url + "/load", headers=own, timeout=5).json()["num_requests_unfinished"])
    return server.metric("vllm:prefix_cache_hits_total")
