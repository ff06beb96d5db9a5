"""What options of ``tandem serve`` change, as a client and an operator see it."""

from __future__ import annotations

import re
import socket
import subprocess
from pathlib import Path

import httpx
import pytest

from tests.server.conftest import MODEL
from tests.server.process import ROOT, SERVE, ServerProcess, events, eventually

BODY = {"prompt": "the quick", "max_tokens": 6, "ignore_eos": True, "temperature": 0}


def refusal(model: Path, *options: str) -> tuple[int, str]:
    """Exit status and standard error of a server that does not start."""
    command = [*SERVE, str(model), "--host", "127.0.0.1", "--port", "0", *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=ROOT)
    return done.returncode, done.stderr


# ------------------------------------------------------- metrics


def metrics_url(server: ServerProcess) -> str:
    server.wait_for_line(r"Metrics at ")
    found = re.search(r"Metrics at (\S+)", server.log)
    assert found is not None
    return found[1]


def test_metrics_on_a_port_of_their_own_are_nowhere_else(model_dir: Path) -> None:
    options = ("--metrics-port", "0", "--api-key", "k", "--served-model-name", MODEL)
    with ServerProcess(model_dir, *options) as server:
        url = metrics_url(server)
        headers = {"authorization": "Bearer k"}
        assert server.post("/v1/completions", BODY, headers=headers).status_code == 200
        for path in (url, url + "/"):
            answer = httpx.get(path)
            assert answer.status_code == 200 and "vllm:generation_tokens_total" in answer.text
        assert httpx.head(url).status_code == 200
        assert httpx.post(url).status_code == 405
        assert httpx.get(url.removesuffix("/metrics") + "/v1/models", headers=headers).status_code == 404
        for path in ("/metrics", "/metrics/"):
            assert httpx.get(server.url + path, headers=headers).status_code == 404
        assert server.stop() == 0
    with pytest.raises(httpx.ConnectError):
        httpx.get(url)


def test_a_metrics_port_that_is_taken_is_one_line(model_dir: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        status, error = refusal(model_dir, "--metrics-port", str(port))
    assert (status, error.count("\n")) == (1, 1) and error.startswith("error: --metrics-port")


def test_a_server_that_measures_nothing_still_answers(model_dir: Path) -> None:
    options = ("--no-enable-metrics", "--no-enable-server-load-tracking")
    with ServerProcess(model_dir, *options) as server:
        answer = server.post("/v1/completions", {**BODY, "n": 2})
        assert answer.status_code == 200 and answer.json()["usage"]["completion_tokens"] == 12
        for path in ("/metrics", "/metrics/", "/load"):
            assert httpx.get(server.url + path).status_code == 404, path
        assert server.health()[0] == 200


# ------------------------------------------------------- logs


def test_requests_and_outputs_are_logged_as_far_as_asked(model_dir: Path) -> None:
    options = ("--enable-log-requests", "--enable-log-outputs", "--max-log-len", "5")
    quiet = ("--disable-access-log-for-endpoints", "/health,/load")
    with ServerProcess(model_dir, *options, *quiet) as server:
        answer = server.post("/v1/completions", {**BODY, "n": 2}).json()
        server.post("/v1/completions", {**BODY, "stream": True})
        eventually(lambda: server.log.count("Generated for request") == 3)
        for choice in answer["choices"]:
            line = f"Generated for request {answer['id']}, choice {choice['index']}, length: {choice['text'][:5]!r}"
            assert line in server.log
        assert f"Received request {answer['id']}" in server.log
        httpx.get(server.url + "/load?a=1")
        httpx.get(server.url + "/version")
        eventually(lambda: "GET /version" in server.log)
        assert "POST /v1/completions" in server.log
        assert "GET /health" not in server.log and "/load" not in server.log


def test_nothing_is_logged_of_requests_by_default(server: ServerProcess) -> None:
    server.post("/v1/completions", BODY)
    assert "Received request" not in server.log and "Generated for" not in server.log


# ------------------------------------------------------- middleware


def test_middleware_goes_around_everything_each_around_those_before_it(model_dir: Path) -> None:
    module = "tests.server.middlewares"
    options = ("--middleware", f"{module}.guard", "--middleware", f"{module}.Signed", "--api-key", "k")
    with ServerProcess(model_dir, *options, "--served-model-name", MODEL) as server:
        headers = {"authorization": "Bearer k"}
        answer = server.post("/v1/completions", BODY, headers=headers)
        assert (answer.status_code, answer.headers["x-order"]) == (200, "function class")
        assert httpx.get(server.url + "/guarded").status_code == 418, "it stands outside the gate"
        refused = server.post("/v1/completions", BODY)
        assert (refused.status_code, refused.headers["x-order"]) == (401, "function class")
        with httpx.stream(
            "POST", server.url + "/v1/completions", json={**BODY, "stream": True}, headers=headers
        ) as stream:
            parts = list(stream.iter_raw())
        assert len(parts) > 1, "the stream came in one piece"
        assert events(b"".join(parts).decode())[-1] == "[DONE]"


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("nodots", "is not a path such as"),
        ("no.such.module.Name", "cannot be imported"),
        ("tests.server.middlewares.Missing", "cannot be imported"),
        ("tests.server.middlewares.NEITHER", "is neither a class nor an async function"),
    ],
)
def test_middleware_that_cannot_be_used_is_one_line(model_dir: Path, path: str, said: str) -> None:
    status, error = refusal(model_dir, "--middleware", path)
    lines = [line for line in error.splitlines() if line.startswith("error:")]
    assert status == 1 and len(lines) == 1 and said in lines[0] and "Traceback" not in error


# ------------------------------------------------------- neutral options, engines


def test_the_reference_engine_says_what_changes_nothing_and_honours_the_caches_size(model_dir: Path) -> None:
    options = ("--backend", "reference", "--block-size", "32", "--kv-cache-memory-bytes", "1M")
    with ServerProcess(model_dir, *options, "-tp", "1", "--gpu-memory-utilization", "0.9") as server:
        assert "--block-size changes nothing" in server.log
        assert "--kv-cache-memory-bytes changes" not in server.log
        metrics = httpx.get(server.url + "/metrics").text
        (tokens,) = re.findall(r'kv_cache_tokens="(\d+)"', metrics)
        assert 0 < int(tokens) < 2**20 // 64
        assert 'kv_cache_memory_bytes="1048576"' in metrics
        same = ("--served-model-name", MODEL)
        with ServerProcess(model_dir, *same) as other:
            ours = server.post("/v1/completions", BODY).json()["choices"]
            assert ours == other.post("/v1/completions", BODY).json()["choices"]


def test_a_foreign_option_is_one_line(model_dir: Path) -> None:
    for options in (("-tp", "2"), ("--headless",), ("--attention-backend", "FLASH_ATTN")):
        status, error = refusal(model_dir, *options)
        assert status == 1 and error.count("\n") == 1 and "has no meaning here" in error


@pytest.mark.parametrize("backend", ["reference", "optimized"])
def test_logits_instead_of_log_probabilities(model_dir: Path, backend: str) -> None:
    """Their differences are those of the log-probabilities; what adds probabilities up is refused."""
    asked = {"prompt": "the quick", "max_tokens": 3, "temperature": 0, "logprobs": 3, "prompt_logprobs": 1}
    found = []
    for mode in ("raw_logprobs", "raw_logits"):
        options = ("--backend", backend, "--dtype", "float32", "--logprobs-mode", mode)
        with ServerProcess(model_dir, *options) as server:
            found.append(server.post("/v1/completions", asked).json()["choices"][0])
            if mode == "raw_logits":
                for path, body in (
                    ("/v1/completions", {"prompt": "a", "use_beam_search": True, "n": 2}),
                    ("/v1/systemone", {"state": "x", "questions": {"a": {"type": "score", "criteria": ["b", "c"]}}}),
                    ("/generative_scoring", {"query": [5], "items": [[6]], "label_token_ids": [5]}),
                ):
                    refused = server.post(path, body)
                    assert refused.status_code == 400 and "--logprobs-mode" in refused.text, path
    logprobs, logits = found
    assert logprobs["text"] == logits["text"]
    for own, others in zip(logprobs["logprobs"]["top_logprobs"], logits["logprobs"]["top_logprobs"], strict=True):
        assert own.keys() == others.keys()
        shifts = [others[token] - own[token] for token in own]
        assert max(shifts) - min(shifts) < 1e-3 and abs(shifts[0]) > 0.1
    prompts = [next(iter(choice["prompt_logprobs"][1].values()))["logprob"] for choice in found]
    assert prompts[0] < 0 and abs(prompts[0] - prompts[1]) > 0.1
