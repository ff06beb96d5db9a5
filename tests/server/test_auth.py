"""Keys: every route, every spelling of a path, every way to send a key."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest

from server.app import create_app
from server.config import ServerConfig
from server.middleware.gate import OPEN_PATHS
from server.state import ServerState
from tandem.errors import ConfigError
from tests.server.conftest import MODEL
from tests.server.process import ServerProcess, raw

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


@pytest.mark.parametrize("options", [(), ("--salt-prefix-cache-by-key",)])
def test_keys_share_what_is_computed_unless_told_otherwise(model_dir: Path, options: tuple[str, ...]) -> None:
    """How soon an answer begins would tell one user what another has asked."""
    with ServerProcess(model_dir, "--api-key", "first-key", "--api-key", "second-key", *options) as server:

        def num_found(key: str, path: str, body: dict[str, Any]) -> int:
            answer = server.post(path, body, headers={"authorization": f"Bearer {key}"})
            usage = answer.json()["usage"]
            return usage.get("prompt_tokens_details", usage.get("input_tokens_details"))["cached_tokens"]

        for path, body in (
            ("/v1/completions", {"prompt": "fox " * 50, "max_tokens": 1}),
            ("/v1/completions", {"prompt": "fox " * 50, "max_tokens": 1, "cache_salt": "own"}),
            ("/v1/responses", {"input": "dog " * 50, "max_output_tokens": 1}),
        ):
            assert num_found("first-key", path, body) == 0
            assert num_found("first-key", path, body) > 0
            assert (num_found("second-key", path, body) > 0) is not bool(options)
