"""Starting, draining, dying: real processes, real signals."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import shutil
import signal
import ssl
import stat
import subprocess
import sys
import time
from pathlib import Path

import httpx
import psutil
import pytest

from server.config import ServerConfig
from server.run import run_server
from tandem.config import ModelOptions
from tests.server.process import CHAT, ENDLESS, ROOT, Open, ServerProcess, events, eventually, is_alive


def open_several(server: ServerProcess) -> tuple[list[Open], list[Open]]:
    """Streams that have begun, and whole answers that are being made."""
    streams = [
        Open(server, "/v1/completions", ENDLESS | {"stream": True}),
        Open(server, "/v1/completions", ENDLESS | {"stream": True, "prompt": ["a", "b"], "n": 2}),
        Open(server, "/v1/chat/completions", CHAT | {"stream": True}),
    ]
    wholes = [Open(server, "/v1/completions", ENDLESS | {"n": 2}), Open(server, "/v1/chat/completions", CHAT)]
    for stream in streams:
        assert stream.started.wait(20)
    eventually(lambda: server.load()["num_requests_unfinished"] == 9)
    return streams, wholes


def assert_all_failed(streams: list[Open], wholes: list[Open], code: str) -> None:
    for stream in streams:
        *before, last = events(stream.wait(5).text)
        assert last["error"]["code"] == code and last["error"]["type"] == "server_error"
        assert before and all("error" not in chunk for chunk in before)
    for whole in wholes:
        assert whole.wait(5).status == 503 and code in whole.text


# ---------------------------------------------------------------------- starting


def test_it_answers_while_it_loads(model_dir: Path) -> None:
    began = time.monotonic()
    with ServerProcess(model_dir, wait=False) as server:
        assert server.health() == (503, "loading")
        assert time.monotonic() - began < 5
        assert httpx.get(server.url + "/v1/models").json()["data"][0]["id"] == str(model_dir)
        assert httpx.get(server.url + "/metrics").status_code == 200
        for path in ("/v1/completions", "/v1/chat/completions", "/tokenize", "/detokenize"):
            refused = server.post(path, {"prompt": "a"})
            assert refused.status_code == 503 and refused.json()["error"]["code"] == "engine_loading"
            assert int(refused.headers["retry-after"]) > 0
        server.wait_healthy()
        server.process.send_signal(signal.SIGINT)
        assert server.process.wait(10) == 0
        for line in ("Started server process", "Loading model", "Model loaded in", "No --api-key"):
            assert (line in server.log) == (line != "No --api-key")  # it listens on the loopback only


def test_a_signal_while_loading_ends_it(model_dir: Path) -> None:
    with ServerProcess(model_dir, wait=False) as server:
        assert server.stop() == 0


def test_a_busy_port_is_told_in_one_line(server: ServerProcess, model_dir: Path) -> None:
    began = time.monotonic()
    done = _serve(str(model_dir), "--host", "127.0.0.1", "--port", str(server.port))
    assert done.returncode == 1 and time.monotonic() - began < 10
    assert done.stderr == f"error: --port: {server.port} is already in use; choose another, or 0 for any\n"


def test_models_that_cannot_be_loaded(model_dir: Path, tmp_path: Path) -> None:
    no_weights = shutil.copytree(model_dir, tmp_path / "no-weights", ignore=shutil.ignore_patterns("*.safetensors"))
    no_tokenizer = shutil.copytree(model_dir, tmp_path / "no-tokenizer", ignore=shutil.ignore_patterns("tokenizer*"))
    for broken in (tmp_path, tmp_path / "nowhere", no_weights, no_tokenizer):
        done = _serve(str(broken), "--port", "0")
        assert done.returncode == 1, done.stderr
        assert done.stderr.splitlines()[-1].startswith("error: ") and "Traceback" not in done.stderr


def _serve(*options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tandem.cli", "serve", *options]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=40, check=False)


def test_a_unix_socket_is_its_owners_alone(model_dir: Path, tmp_path: Path) -> None:
    path = tmp_path / "server.sock"
    with ServerProcess(model_dir, "--uds", str(path), wait=False) as server:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        with httpx.Client(transport=httpx.HTTPTransport(uds=str(path)), base_url="http://x", timeout=20) as http:
            eventually(lambda: http.get("/health").status_code == 200, 40)
            assert http.post("/v1/completions", json={"prompt": "a", "max_tokens": 1}).status_code == 200
        again = _serve(str(model_dir), "--uds", str(path))
        assert again.returncode == 1 and again.stderr.startswith("error: --uds")
        listening = [c for c in psutil.Process(server.process.pid).net_connections("tcp") if c.status == "LISTEN"]
        assert not listening
    assert not path.exists()


def test_the_engine_may_run_in_a_thread(model_dir: Path) -> None:
    with ServerProcess(model_dir, "--disable-frontend-multiprocessing") as server:
        assert not psutil.Process(server.process.pid).children()
        body = {"prompt": "the quick", "max_tokens": 8, "seed": 3}
        whole = server.post("/v1/completions", body).json()["choices"][0]["text"]
        chunks = events(server.post("/v1/completions", body | {"stream": True}).text)
        assert "".join(chunk["choices"][0]["text"] for chunk in chunks[:-1]) == whole
        assert server.stop() == 0


# ---------------------------------------------------------------------- the engine dies or stops


def test_a_killed_engine(model_dir: Path) -> None:
    with ServerProcess(model_dir) as server:
        streams, wholes = open_several(server)
        server.worker.kill()
        assert eventually(lambda: server.health() == (503, "dead"), 2) < 2
        assert_all_failed(streams, wholes, "engine_dead")
        refused = server.post("/v1/completions", ENDLESS)
        assert refused.status_code == 503 and refused.json()["error"]["code"] == "engine_dead"
        eventually(server.is_idle_without_engine)
        assert server.stop() == 0


def test_a_stopped_engine_comes_back(model_dir: Path) -> None:
    with ServerProcess(model_dir) as server:
        streams, wholes = open_several(server)
        worker = server.worker
        worker.suspend()
        assert eventually(lambda: server.health() == (503, "stalled"), 2.5) < 2.1
        assert_all_failed(streams, wholes, "engine_stalled")
        assert server.post("/v1/completions", ENDLESS).json()["error"]["code"] == "engine_stalled"
        worker.resume()
        eventually(lambda: server.health() == (200, "healthy"), 3)
        eventually(server.is_idle)
        assert server.post("/v1/completions", ENDLESS | {"max_tokens": 3}).status_code == 200


@pytest.mark.parametrize("when", ["loading", "serving"])
def test_no_child_outlives_a_killed_server(model_dir: Path, when: str) -> None:
    with ServerProcess(model_dir, wait=when == "serving") as server:
        eventually(lambda: bool(psutil.Process(server.process.pid).children()))
        if when == "serving":
            open_several(server)
        children = psutil.Process(server.process.pid).children(recursive=True)
        server.process.kill()
        server.process.wait()
        assert children
        eventually(lambda: not any(is_alive(child.pid) for child in children), 5)


# ---------------------------------------------------------------------- the end


def test_a_first_signal_lets_open_requests_finish(model_dir: Path) -> None:
    with ServerProcess(model_dir) as server:
        stream = Open(server, "/v1/completions", ENDLESS | {"max_tokens": 1200, "stream": True})
        whole = Open(server, "/v1/completions", ENDLESS | {"max_tokens": 1200})
        assert stream.started.wait(20)
        eventually(lambda: server.load()["num_requests_unfinished"] == 2)
        os.killpg(server.process.pid, signal.SIGTERM)  # as a service manager does: to the whole group
        eventually(lambda: server.health() == (503, "draining"))
        refused = server.post("/v1/completions", ENDLESS)
        assert refused.status_code == 503 and refused.json()["error"]["code"] == "shutting_down"
        assert refused.headers["retry-after"] and refused.headers["connection"] == "close"
        assert server.process.poll() is None
        assert events(stream.wait().text)[-1] == "[DONE]"
        assert whole.wait().status == 200
        assert server.process.wait(5) == 0


def test_the_timeout_of_a_shutdown_holds(model_dir: Path) -> None:
    with ServerProcess(model_dir, "--shutdown-timeout", "0.5") as server:
        streams, wholes = open_several(server)
        began = time.monotonic()
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(10) == 0
        assert time.monotonic() - began < 8
        assert_all_failed(streams, wholes, "engine_dead")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_it_at_once(model_dir: Path, number: int) -> None:
    with ServerProcess(model_dir) as server:
        stream = Open(server, "/v1/completions", ENDLESS | {"stream": True})
        assert stream.started.wait(20)
        worker = server.worker
        server.process.send_signal(number)
        eventually(lambda: server.health() == (503, "draining"))
        server.process.send_signal(number)
        assert server.process.wait(1) == 128 + number
        eventually(lambda: not is_alive(worker.pid), 2)


# ---------------------------------------------------------------------- options


def test_requests_are_logged_where_asked(model_dir: Path) -> None:
    options = ("--enable-log-requests", "--max-log-len", "9", "--api-key", "secret-key", "--root-path", "/api")
    with ServerProcess(model_dir, *options, "--disable-uvicorn-access-log", "--disable-fastapi-docs") as server:
        keys = {"authorization": "Bearer secret-key"}
        for path in ("/v1/completions", "/api/v1/completions"):
            body = {"prompt": "the quick brown fox", "max_tokens": 1, "top_k": 3, "request_id": "mine"}
            assert server.post(path, body, headers=keys).status_code == 200
            assert server.post(path, body).status_code == 401
        assert httpx.get(server.url + "/api/health").status_code == 200
        assert httpx.get(server.url + "/docs", headers=keys).status_code == 404
        assert httpx.get(server.url + "/openapi.json", headers=keys).status_code == 404
        logged = [line for line in server.lines if "Received request cmpl-mine" in line]
        assert len(logged) == 2 and '"top_k":3' in logged[0] and "the quick'" in logged[0]
        assert "secret-key" not in server.log and "HTTP/1.1" not in server.log


def test_a_program_may_run_a_server(model_dir: Path) -> None:
    async def program() -> None:
        config = ServerConfig(model=ModelOptions(model=str(model_dir)), host="127.0.0.1", port=0)
        task = asyncio.create_task(run_server(config))
        while not any("Tandem running" in record.getMessage() for record in records):
            await asyncio.sleep(0.02)
        url = re.search(r"http\S+", next(m for r in records if "running on" in (m := r.getMessage())))[0]
        async with httpx.AsyncClient(base_url=url, timeout=20) as http:
            while (await http.get("/health")).status_code != 200:
                await asyncio.sleep(0.05)
            answer = await http.post("/v1/completions", json={"prompt": "a", "max_tokens": 1})
            assert answer.status_code == 200
        children = [child for child in psutil.Process().children() if "tandem.process.worker" in child.cmdline()]
        assert len(children) == 1
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert asyncio.all_tasks() == {asyncio.current_task()}
        eventually(lambda: not any(is_alive(child.pid) for child in children), 5)

    records: list[logging.LogRecord] = []
    note = logging.Handler()
    note.emit = records.append  # type: ignore[method-assign]
    root = logging.getLogger("tandem")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "server.operations.logs.configure_logging", lambda config: (root.addHandler(note), root.setLevel("INFO"))
        )
        asyncio.run(program())
    root.removeHandler(note)


@pytest.mark.skipif(not shutil.which("openssl"), reason="makes its certificate with openssl")
def test_tls(model_dir: Path, tmp_path: Path) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "cert.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=localhost", "-days", "2"]
    names = ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run([*command, *names], check=True, capture_output=True)
    options = ("--ssl-keyfile", str(key), "--ssl-certfile", str(certificate))
    with ServerProcess(model_dir, *options, wait=False) as server:
        assert server.url.startswith("https://")
        trusted = ssl.create_default_context(cafile=str(certificate))
        assert httpx.get(server.url + "/version", verify=trusted).status_code == 200
    key.write_text("no key")
    done = _serve(str(model_dir), "--port", "0", *options)
    assert done.returncode == 1 and done.stderr.splitlines()[-1].startswith("error: --ssl-certfile")
    assert "Traceback" not in done.stderr
