"""Starting, draining, dying: real processes, real signals."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import shutil
import signal
import socket
import ssl
import stat
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from server.app import create_app
from server.config import ServerConfig
from server.middleware.gate import OPEN_PATHS
from server.run import run_server
from server.state import ServerState
from tandem.config import ModelOptions
from tandem.errors import ConfigError
from tests.process.helpers import free_tcp_address
from tests.server.process import CHAT, ENDLESS, ROOT, Open, ServerProcess, connect, events, eventually, is_alive


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


def test_an_engine_that_dies_while_it_loads_ends_the_server(model_dir: Path) -> None:
    with ServerProcess(model_dir, wait=False) as server:
        eventually(lambda: bool(psutil.Process(server.process.pid).children()))
        server.worker.kill()
        assert server.process.wait(10) == 1
        assert "error: the engine process was killed (SIGKILL)" in server.log and "Traceback" not in server.log


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


def test_the_port_is_all_that_is_open_to_others(server: ServerProcess) -> None:
    """Of the server and of all its children, over any protocol; Unix sockets lie where only their owner may look."""
    family = [psutil.Process(server.process.pid), *psutil.Process(server.process.pid).children(recursive=True)]
    opened = [c for process in family for c in process.net_connections("inet")]
    assert [c.laddr.port for c in opened if c.status == "LISTEN"] == [server.port]
    assert not [c for c in opened if c.type == socket.SOCK_DGRAM]
    names = {c.laddr for process in family for c in process.net_connections("unix") if c.laddr}
    assert all(name.startswith("/") for name in names), names  # the others, abstract sockets, are open to all users
    paths = {Path(name) for name in names}
    assert paths
    for path in paths:
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700, path


def test_a_unix_socket_that_another_server_has_taken_over_is_left_alone(model_dir: Path, tmp_path: Path) -> None:
    path = tmp_path / "server.sock"
    with ServerProcess(model_dir, "--uds", str(path), wait=False) as server:
        path.unlink()
        with socket.socket(socket.AF_UNIX) as other:
            other.bind(str(path))
            assert server.stop() == 0
            assert path.exists()


def test_a_long_place_for_temporary_files(model_dir: Path, tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 60) / ("e" * 60)
    deep.mkdir(parents=True)
    with ServerProcess(model_dir, environment={"TMPDIR": str(deep)}) as server:
        assert server.post("/v1/completions", ENDLESS | {"max_tokens": 3}).status_code == 200
        assert server.stop() == 0
        assert "Traceback" not in server.log


def test_the_engine_may_listen_on_tcp(model_dir: Path) -> None:
    address = free_tcp_address()
    with ServerProcess(model_dir, "--engine-address", address) as server:
        assert server.post("/v1/completions", ENDLESS | {"max_tokens": 3}).status_code == 200
        listening = [c.laddr.port for c in server.worker.net_connections("tcp") if c.status == "LISTEN"]
        port = int(address.rpartition(":")[2])
        assert sorted(listening) == [port, port + 1]


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("max_engine_restarts", -1),
        ("engine_stall_timeout", -0.5),
        ("engine_stall_timeout", float("nan")),
        ("engine_stall_timeout", float("inf")),
        ("engine_address", "tcp://127.0.0.1"),
        ("engine_address", "ipc:///tmp/x"),
        ("shutdown_timeout", float("nan")),
    ],
)
def test_options_about_the_engine_are_checked(option: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=f"^--{option.replace('_', '-')}: "):
        ServerConfig(**{option: value})


def test_the_engine_may_run_in_a_thread(model_dir: Path) -> None:
    with ServerProcess(model_dir, "--disable-frontend-multiprocessing") as server:
        workers = [p for p in psutil.Process(server.process.pid).children() if "tandem.process.worker" in p.cmdline()]
        assert not workers
        body = {"prompt": "the quick", "max_tokens": 8, "seed": 3}
        whole = server.post("/v1/completions", body).json()["choices"][0]["text"]
        chunks = events(server.post("/v1/completions", body | {"stream": True}).text)
        assert "".join(chunk["choices"][0]["text"] for chunk in chunks[:-1]) == whole
        assert server.stop() == 0


# ---------------------------------------------------------------------- the engine dies or stops


def test_a_killed_engine_is_restarted(model_dir: Path) -> None:
    with ServerProcess(model_dir) as server:
        streams, wholes = open_several(server)
        server.worker.kill()
        seconds = eventually(lambda: server.health() == (503, "restarting"), 2)
        assert_all_failed(streams, wholes, "engine_dead")
        assert "was killed (SIGKILL)" in wholes[0].text
        refused = server.post("/v1/completions", ENDLESS)
        assert refused.status_code == 503 and refused.json()["error"]["code"] == "engine_loading"
        assert "SIGKILL" in refused.json()["error"]["message"] and int(refused.headers["retry-after"]) > 0
        eventually(server.is_idle)
        assert 'vllm:num_requests_running{engine="0",model_name=' in httpx.get(server.url + "/metrics").text
        assert sample(server, "vllm:num_requests_running") == 0
        ready = eventually(lambda: server.health() == (200, "healthy"), 30)
        print(f"SIGKILL: 503 after {seconds:.2f} s, healthy {ready:.2f} s later")
        assert server.post("/v1/completions", ENDLESS | {"max_tokens": 3}).status_code == 200
        assert server.stop() == 0


def sample(server: ServerProcess, name: str) -> float:
    """A metric's value."""
    (line,) = [line for line in httpx.get(server.url + "/metrics").text.splitlines() if line.startswith(name + "{")]
    return float(line.rpartition(" ")[2])


def test_an_engine_that_dies_too_often_ends_the_server(model_dir: Path) -> None:
    with ServerProcess(model_dir, "--max-engine-restarts", "1") as server:
        server.worker.kill()
        eventually(lambda: server.health() == (503, "restarting"), 2)
        server.wait_healthy()
        streams, wholes = open_several(server)
        began = time.monotonic()
        server.worker.kill()
        assert_all_failed(streams, wholes, "engine_dead")
        assert server.process.wait(10) == 70
        print(f"the server ended {time.monotonic() - began:.2f} s after its engine's last death")
        last = server.log.splitlines()[-1]
        assert last.startswith(
            "error: the engine process was killed (SIGKILL); 1 restarts in 10 minutes are the limit"
        )
        assert "Traceback" not in server.log


def test_a_stopped_engine_keeps_its_streams_and_comes_back(model_dir: Path) -> None:
    with ServerProcess(model_dir) as server:
        streams, wholes = open_several(server)
        worker = server.worker
        worker.suspend()
        assert eventually(lambda: server.health() == (503, "unhealthy"), 2.5) < 2.1
        refused = server.post("/v1/completions", ENDLESS)
        assert refused.status_code == 503 and refused.json()["error"]["code"] == "engine_stalled"
        assert refused.headers["retry-after"]
        worker.resume()
        eventually(lambda: server.health() == (200, "healthy"), 3)
        for stream in streams:
            assert events(stream.wait(60).text)[-1] == "[DONE]"
        assert [whole.wait(60).status for whole in wholes] == [200, 200]


def test_an_engine_that_stays_stopped_is_replaced(model_dir: Path) -> None:
    with ServerProcess(model_dir, "--engine-stall-timeout", "3") as server:
        streams, wholes = open_several(server)
        began = time.monotonic()
        server.worker.suspend()
        assert_all_failed(streams, wholes, "engine_stalled")
        assert 2 < time.monotonic() - began < 6
        eventually(lambda: server.health()[1] == "restarting", 2)
        server.wait_healthy()
        assert server.post("/v1/completions", ENDLESS | {"max_tokens": 3}).status_code == 200


@pytest.mark.parametrize("when", ["loading", "serving", "restarting"])
def test_no_child_outlives_a_killed_server(model_dir: Path, when: str) -> None:
    with ServerProcess(model_dir, wait=when != "loading") as server:
        eventually(lambda: bool(psutil.Process(server.process.pid).children()))
        if when == "serving":  # with the processes that try grammars and render templates
            form = {"guided_regex": "[a-z]+", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 2}
            assert server.post("/v1/chat/completions", form).status_code == 200
            names = " ".join(" ".join(p.cmdline()) for p in psutil.Process(server.process.pid).children())
            assert "check_child" in names and "template_child" in names
            open_several(server)
        if when == "restarting":
            first = server.worker
            first.kill()
            eventually(lambda: not is_alive(first.pid) and bool(psutil.Process(server.process.pid).children()))
        children = psutil.Process(server.process.pid).children(recursive=True)
        server.process.kill()
        server.process.wait()
        assert children
        eventually(lambda: not any(is_alive(child.pid) for child in children), 5)


# ---------------------------------------------------------------------- the end


def test_a_first_signal_lets_open_requests_finish(model_dir: Path) -> None:
    with ServerProcess(model_dir) as server:
        stream = Open(server, "/v1/completions", ENDLESS | {"n": 2, "stream": True})
        whole = Open(server, "/v1/completions", ENDLESS | {"n": 2})
        assert stream.started.wait(20)
        eventually(lambda: server.load()["num_requests_unfinished"] == 4)
        os.killpg(server.process.pid, signal.SIGTERM)  # as a service manager does: to the whole group
        eventually(lambda: server.health() == (503, "draining"))
        paths = create_app(ServerState(ServerConfig())).openapi()["paths"]
        new = [(method, path) for path, methods in paths.items() for method in methods if path not in OPEN_PATHS]
        assert len(new) > 30
        with ThreadPoolExecutor(4) as pool:
            answers = list(pool.map(lambda asked: httpx.request(asked[0], server.url + asked[1], timeout=10), new))
        for (_, path), refused in zip(new, answers, strict=True):
            assert refused.status_code == 503 and "the server is shutting down" in refused.text, path
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


def test_clients_that_do_not_read_do_not_hold_a_shutdown(model_dir: Path) -> None:
    """Nor do those that have sent half a request, or nothing at all."""
    with ServerProcess(model_dir, "--shutdown-timeout", "1") as server:
        body = ENDLESS | {"stream": True, "n": 64, "logprobs": 5}
        deaf = [connect(server, "/v1/completions", body) for _ in range(2)]
        whole = connect(server, "/v1/completions", ENDLESS | {"n": 64, "logprobs": 5})
        half = socket.create_connection(("127.0.0.1", server.port))
        half.sendall(b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 1000\r\n\r\n{")
        headers = socket.create_connection(("127.0.0.1", server.port))
        headers.sendall(b"POST /v1/completions HTTP/1.1\r\nhost:")
        silent = socket.create_connection(("127.0.0.1", server.port))
        eventually(lambda: server.load()["server_load"] >= 3, 20)
        time.sleep(4)  # until what the deaf do not read fills the sockets
        began = time.monotonic()
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(20) == 0
        seconds = time.monotonic() - began
        print(f"ended after {seconds:.2f} s")
        assert seconds < 5.5 and "Traceback" not in server.log
        for connection in (*deaf, whole, half, headers, silent):
            connection.close()


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
