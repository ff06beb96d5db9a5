"""Profiles of the engine's steps, and the tokenizer's configuration: absent unless asked for."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.server.process import ServerProcess
from tests.tiny import TEMPLATE

TEXT = "/v1/completions"
ANSWER: dict[str, Any] = {"prompt": "the quick", "max_tokens": 4, "ignore_eos": True}


@pytest.fixture(scope="module", params=["optimized", "reference"])
def profiled(
    request: pytest.FixtureRequest, model_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[ServerProcess, Path]]:
    directory = tmp_path_factory.mktemp("profiles") / "made" / "here"
    config = {"profiler": "torch", "torch_profiler_dir": str(directory), "max_iterations": 10}
    options = [
        "--backend",
        request.param,
        "--profiler-config",
        json.dumps(config),
        "--profiler-config.torch_profiler_with_stack",
    ]
    options += ["false", "--enable-tokenizer-info-endpoint", "--api-key", "secret-key"]
    if request.param == "reference":
        options.append("--disable-frontend-multiprocessing")
    with ServerProcess(model_dir, *options) as running:
        yield running, directory


@pytest.fixture
def http(profiled: tuple[ServerProcess, Path]) -> Iterator[httpx.Client]:
    headers = {"authorization": "Bearer secret-key"}
    with httpx.Client(base_url=profiled[0].url, headers=headers, timeout=30) as client:
        yield client


def events(file: Path) -> list[str]:
    trace = json.loads(gzip.decompress(file.read_bytes()))
    return [event["name"] for event in trace["traceEvents"] if event.get("ph") == "X"]


def test_a_profile_is_of_the_steps_between_start_and_stop(
    profiled: tuple[ServerProcess, Path], http: httpx.Client
) -> None:
    directory = profiled[1]
    for _ in range(2):
        before = set(directory.glob("*"))
        assert http.post(TEXT, json=ANSWER).status_code == 200
        assert http.post("/start_profile").status_code == 200
        again = http.post("/start_profile")
        assert again.status_code == 400 and "already" in again.json()["error"]["message"]
        assert http.post(TEXT, json=ANSWER).status_code == 200
        assert http.post("/stop_profile").status_code == 200
        (file,) = set(directory.glob("*")) - before
        names = events(file)
        assert [name for name in names if name.startswith("step ")] == [f"step {i}" for i in range(4)]
        assert any(name.startswith("aten::") for name in names)
    refused = http.post("/stop_profile")
    assert refused.status_code == 400 and http.get("/health").status_code == 200


def test_a_profile_that_nobody_stops_ends_by_itself(profiled: tuple[ServerProcess, Path], http: httpx.Client) -> None:
    before = set(profiled[1].glob("*"))
    assert http.post("/start_profile").status_code == 200
    assert http.post(TEXT, json=ANSWER | {"max_tokens": 30}).status_code == 200
    (file,) = set(profiled[1].glob("*")) - before
    assert sum(name.startswith("step ") for name in events(file)) == 10
    assert http.post("/stop_profile").status_code == 400


def test_a_profile_that_cannot_be_written_harms_nobody(
    profiled: tuple[ServerProcess, Path], http: httpx.Client
) -> None:
    directory = profiled[1]
    assert http.post("/start_profile").status_code == 200
    moved = directory.rename(directory.with_name("elsewhere"))
    try:
        directory.write_text("no directory")
        assert http.post("/stop_profile").status_code == 500
        assert http.post("/start_profile").status_code == 500
        assert http.post(TEXT, json=ANSWER).status_code == 200
    finally:
        directory.unlink()
        moved.rename(directory)


def test_the_tokenizer_is_told_of(http: httpx.Client) -> None:
    answer = http.get("/tokenizer_info").json()
    assert answer["chat_template"] == TEMPLATE and answer["eos_token"] == "<|im_end|>"
    assert answer["tokenizer_class"] == "PreTrainedTokenizerFast"


def test_all_of_it_needs_the_key_and_the_options(profiled: tuple[ServerProcess, Path], server: ServerProcess) -> None:
    for method, path in (("POST", "/start_profile"), ("POST", "/stop_profile"), ("GET", "/tokenizer_info")):
        assert httpx.request(method, profiled[0].url + path).status_code == 401
        assert httpx.request(method, server.url + path).status_code == 404
